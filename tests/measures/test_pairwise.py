"""Measures that are compared pair by pair, by the ways in which all measures are used."""

import numpy as np
import pytest

from pipeline import calibrate
from pipeline.errors import InputError
from pipeline.measures import (
    compare,
    list_measures,
    measure_spec,
    prepare,
    score_pairs,
    score_permuted,
    similarity,
)

NAMES = [m.name for m in list_measures() if m.engine == "pairwise"]
FEW = {
    "svcca": {"dimension": 2},
    "cka_minibatch": {"batch_size": 8},
    **{n: {"k": 3} for n in NAMES if n.endswith("knn") or n in ("cknna", "second_order_cosine")},
}


def arrays():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(24, 3))
    return [common @ rng.normal(size=(3, d)) + rng.normal(size=(24, d)) for d in (4, 6, 5)]


@pytest.mark.parametrize("name", NAMES)
def test_compare__is_similarity_of_each_pair_in_both_directions(name):
    xs = arrays()
    found = compare(xs, name, **FEW.get(name, {}))
    for i, x in enumerate(xs):
        for j, y in enumerate(xs):
            expected = similarity(x, y, name, **FEW.get(name, {}))
            assert found[i, j] == pytest.approx(expected, abs=1e-9)
    record = measure_spec(name).measure
    assert (found >= record.range[0] - 1e-9).all()
    assert (found <= record.range[1] + 1e-9).all()
    if record.symmetric:
        np.testing.assert_allclose(found, found.T, atol=1e-9)


def test_records__asymmetric_ones_are():
    xs = arrays()
    for name in NAMES:
        found = compare(xs, name, **FEW.get(name, {}))
        if name in ("cycle_knn", "pwcca", "linear_regression"):
            assert not measure_spec(name).measure.symmetric
            assert np.abs(found - found.T).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_score_permuted__equals_the_loop(name):
    x, y, _ = arrays()
    specs = {"": measure_spec(name, **FEW.get(name, {}))}
    rng = np.random.default_rng(1)
    orders = np.stack([rng.permutation(24) for _ in range(3)])
    first, second = prepare(x, specs), prepare(y, specs)
    found = score_permuted([first], [second], specs, orders)[""][:, 0, 0]
    expected = [similarity(x, y[o], name, **FEW.get(name, {})) for o in orders]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    moved = score_pairs([first], [second.permuted(orders[0])], specs)[""].values[0, 0]
    assert moved == pytest.approx(expected[0], abs=1e-9)


def test_prepare__measures_of_the_same_lists_share_them():
    specs = [measure_spec(n, k=3) for n in ("jaccard_knn", "lcs_knn", "edit_knn", "cycle_knn")]
    prepared = prepare(arrays()[0], [*specs, measure_spec("cca"), measure_spec("gulp")])
    assert list(prepared.states) == [
        ("", "neighbours", 3, "cosine"),
        ("", "neighbour_lists", 3, "cosine"),
        ("", "subspace"),
    ]
    with pytest.raises(InputError, match="was not prepared for pwcca"):
        prepared.state_for(measure_spec("pwcca"))


def test_score_pairs__a_constant_layer_is_undefined_and_not_wanted_is_nan():
    x, y, _ = arrays()
    specs = {"": measure_spec("procrustes")}
    prepared = [prepare(a, specs) for a in (x, np.ones_like(x), y)]
    scores = score_pairs(prepared, prepared, specs, wanted=~np.eye(3, dtype=bool))[""]
    np.testing.assert_array_equal(np.isnan(scores.values), [[1, 1, 0], [1, 1, 1], [0, 1, 1]])
    np.testing.assert_array_equal(scores.undefined, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    with pytest.raises(InputError, match="y is constant as far as procrustes"):
        similarity(x, np.ones_like(y), "procrustes")


def test_calibrate__by_permutation_and_not_in_closed_form():
    x, y, _ = arrays()
    found = calibrate(x, y, "procrustes", n_permutations=19)
    assert found.p == 0.05
    with pytest.raises(InputError, match=r"null of procrustes.* Use method='permutation'"):
        calibrate(x, y, "procrustes", method="analytic")
