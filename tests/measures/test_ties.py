"""Neighbours that tie: no order of the rows changes a score, and nothing aligns out of nothing."""

import numpy as np
import pytest
import reference

from pipeline.calibration import calibrate, calibrate_layers
from pipeline.errors import InputError
from pipeline.measures import (
    compare,
    measure_spec,
    prepare,
    score_pairs,
    score_permuted,
    similarity,
)

SHARED = ["mutual_knn", "jaccard_knn", "cycle_knn", "cknna", "second_order_cosine"]
ORDERED = ["lcs_knn", "edit_knn"]


def one_hot(rng, n, classes):
    return np.eye(classes)[rng.integers(0, classes, n)]


def dead_rows(rng, n, d, share):
    x = rng.normal(size=(n, d))
    x[rng.random(n) < share] = 0.0
    return x


def rectified(rng, n, d):
    return np.maximum(dead_rows(rng, n, d, 0.1), 0.0)


def levels(rng, n, d):
    return np.rint(rng.normal(size=(n, d)))


def test_mutual_knn__independent_labels_are_not_aligned():
    """Ties that go to the lowest index gave .387, p .005, calibrated .31."""
    flags = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, y = (np.eye(2)[rng.integers(0, 2, 200)] for _ in range(2))
        permuted = calibrate(x, y, "mutual_knn", k=10, n_permutations=199)
        analytic = calibrate(x, y, "mutual_knn", k=10, method="analytic")
        assert permuted.p == pytest.approx(analytic.p, abs=0.1)
        flags.append(analytic.flagged)
        assert permuted.p > 0.01
        assert permuted.calibrated < 0.02
    assert all(flags)  # classes have few scores, which no smooth distribution describes


@pytest.mark.parametrize(
    ("name", "share"),
    [(name, share) for share in (0.1, 0.4) for name in SHARED]
    + [(name, share) for share in (0.1, 0.25) for name in ORDERED],
)
def test_calibrate__dead_rows_make_no_false_positives(name, share):
    """At a share of 0.4 mutual k-NN with ties by index had p ≤ .05 in 20 of 20."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = (dead_rows(rng, 100, 16, share) for _ in range(2))
        found.append(calibrate(x, y, name, k=10, n_permutations=39).p)
    assert sum(p <= 0.05 for p in found) <= 4  # 1 is expected; more than 4 in 0.3%
    assert 0.3 < np.mean(found) < 0.7


def test_calibrate__analytic_without_false_positives_where_neighbours_tie():
    for make in (rectified, levels):
        found = []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            x, y = (make(rng, 120, 4) for _ in range(2))
            found.append(calibrate(x, y, "mutual_knn", method="analytic").p)
        assert sum(p <= 0.05 for p in found) <= 8  # 3 are expected; more than 8 in 0.3%
        assert 0.35 < np.mean(found) < 0.65


@pytest.mark.parametrize("make", [rectified, levels, lambda rng, n, d: one_hot(rng, n, d)])
@pytest.mark.parametrize("name", SHARED)
def test_similarity__order_of_the_rows_is_nothing(name, make):
    rng = np.random.default_rng(0)
    x, y = make(rng, 60, 4), make(rng, 60, 3)
    found = similarity(x, y, name, k=7)
    for _ in range(5):
        order = rng.permutation(60)
        assert similarity(x[order], y[order], name, k=7) == pytest.approx(found, abs=1e-12)
    if name != "cycle_knn":
        assert similarity(x, x.copy(), name, k=7) == pytest.approx(1.0, abs=1e-12)
        assert similarity(x, x.copy(), name, k=7) <= 1.0
    if name == "mutual_knn":
        assert found == pytest.approx(reference.mutual_knn(x, y, 7), abs=1e-12)
        assert similarity(x, x.copy(), name, k=7) == 1.0


def test_mutual_knn__labels_by_hand():
    """Two classes of 3 and 2, k = 1: each stimulus gives its whole place to its own class."""
    x = np.eye(2)[[0, 0, 0, 1, 1]]
    y = np.eye(2)[[0, 0, 1, 1, 0]]
    a = np.array([[0, 1, 1, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0] * 5, [0] * 5]) / 2
    a[3, 4] = a[4, 3] = 1
    b = np.array([[0, 1, 0, 0, 1], [1, 0, 0, 0, 1], [0] * 5, [0] * 5, [1, 1, 0, 0, 0]]) / 2
    b[2, 3] = b[3, 2] = 1
    expected = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    assert similarity(x, y, "mutual_knn", k=1) == pytest.approx(expected, rel=1e-15)


def test_compare__ties_beside_none_change_no_score_without():
    rng = np.random.default_rng(0)
    plain = [rng.normal(size=(70, d)) for d in (3, 8, 20)]
    tied = [rectified(rng, 70, 6), levels(rng, 70, 2), one_hot(rng, 70, 5)]
    for name in ("mutual_knn", "jaccard_knn"):
        alone, together = compare(plain, name, k=6), compare([*plain, *tied], name, k=6)
        np.testing.assert_array_equal(together[:3, :3], alone)
        np.testing.assert_array_equal(together, together.T)
        np.testing.assert_array_equal(np.diag(together), 1.0)
    counted = alone * 0
    for i, x in enumerate(plain):
        for j, y in enumerate(plain):
            shared = zip(reference.nearest(x, 6), reference.nearest(y, 6), strict=True)
            counted[i, j] = sum(len(a & b) for a, b in shared)
    np.testing.assert_array_equal(compare(plain, "mutual_knn", k=6), counted / (70 * 6))


@pytest.mark.parametrize("preset", ["", "prh"])
def test_score_permuted__ties_on_either_side(preset):
    options = {"preset": preset} if preset else {}
    specs = {"knn": measure_spec("mutual_knn", k=5, **options)}
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(41, 6)), rectified(rng, 41, 6), levels(rng, 41, 2)]
    orders = np.stack([rng.permutation(41) for _ in range(4)] + [np.arange(41)])
    xs = [prepare(a, specs) for a in arrays]
    found = score_permuted(xs, xs, specs, orders)["knn"]
    for order, scores in zip(orders, found, strict=True):
        anew = [prepare(a[order], specs) for a in arrays]  # not the lists carried along
        slow = score_pairs(xs, anew, specs)["knn"].values
        np.testing.assert_allclose(scores, slow, atol=1e-14)
    mask = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]], dtype=bool)
    some = score_permuted(xs, xs, specs, orders, wanted=mask)["knn"]
    np.testing.assert_allclose(some, np.where(mask, found, np.nan), atol=1e-14)


def test_preset__ties_by_index_are_counted_and_permuted_anew():
    rng = np.random.default_rng(0)
    x, y = (dead_rows(rng, 100, 16, 0.4) for _ in range(2))
    spec = measure_spec("mutual_knn", preset="prh")
    assert prepare(x, [spec]).ties(spec) == (~x.any(axis=1)).sum()
    assert spec.conventions()["ties"] == "lowest index"
    rates = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = (dead_rows(rng, 100, 16, 0.4) for _ in range(2))
        found = calibrate(x, y, spec, method="analytic", n_permutations=39)
        assert (found.method, found.flagged) == ("permutation", True)
        rates.append(found.p)
    assert sum(p <= 0.05 for p in rates) <= 4
    assert 0.3 < np.mean(rates) < 0.7
    # where one side alone has ties, both may be carried along, and moments say what chance gives
    plain = rng.normal(size=(100, 8))
    assert not calibrate(x, plain, spec, method="analytic").flagged


@pytest.mark.parametrize("name", ORDERED)
def test_ordered_lists__stimuli_that_tie_are_left_out(name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50, 6))
    x[:10] = 0.0
    order = np.concatenate([np.arange(10, 50), np.arange(10)])
    found = similarity(x, y, name, k=4)
    assert found == pytest.approx(similarity(x[order], y[order], name, k=4), abs=1e-15)
    assert similarity(x, x, name, k=4) == 1.0
    x[:25] = 0.0
    with pytest.raises(InputError, match=r"^x has the same distance .* in 25 of 50 stimuli"):
        similarity(x, y, name, k=4)


@pytest.mark.parametrize("name", [*SHARED, *ORDERED])
def test_ties__are_counted_for_every_measure_of_neighbours(name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6))
    x[:7] = 0.0
    spec = measure_spec(name, k=4)
    assert prepare(x, [spec]).ties(spec) == 7
    assert prepare(x[7:], [spec]).ties(spec) == 0
    assert prepare(x, [measure_spec("cka")]).ties(measure_spec("cka")) == 0


@pytest.mark.parametrize("method", ["permutation", "analytic"])
def test_calibrate_layers__ties_in_some_layers(method):
    rates = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        xs, ys = (
            [rng.normal(size=(80, 6)), rectified(rng, 80, 6), dead_rows(rng, 80, 6, 0.3)]
            for _ in range(2)
        )
        found = calibrate_layers(xs, ys, "mutual_knn", k=6, method=method, n_permutations=199)
        rates.append(found.p)
    assert sum(p <= 0.05 for p in rates) <= 6  # 2 are expected; more than 6 in 0.3%
    assert 0.35 < np.mean(rates) < 0.65
