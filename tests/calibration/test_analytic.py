"""The null from moments, against permuting: distribution, false positives, fallback."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.calibration import (
    benjamini_hochberg,
    calibrate,
    calibrate_layers,
    draw,
    flagged_encoders,
    nulls_of,
    permutations,
)
from pipeline.calibration.draws import pair_null
from pipeline.calibration.leading import share_skewness
from pipeline.calibration.neighbour_moments import combined_neighbour_scalars, neighbour_moments
from pipeline.errors import InputError
from pipeline.measures import measure_spec, prepare
from pipeline.measures.permuted import score_permuted

SPECS = {
    "cka": measure_spec("cka"),
    "cka_debiased": measure_spec("cka_debiased"),
    "rbf": measure_spec("cka_rbf", bandwidth=0.5),
    "rsa": measure_spec("rsa"),
    "spearman": measure_spec("rsa", dissimilarity="euclidean", comparison="spearman"),
    "dcor": measure_spec("distance_correlation"),
    "dcor_biased": measure_spec("distance_correlation", estimator="biased"),
    "knn": measure_spec("mutual_knn", k=5),
}
N = 120
K = 6000


def gaussian(rng, d):
    return rng.normal(size=(N, d))


def clustered(rng, d):
    return 2 * rng.normal(size=(8, d))[rng.integers(0, 8, N)] + rng.normal(size=(N, d))


def low_rank(rng, d):
    return rng.normal(size=(N, 3)) @ rng.normal(size=(3, d)) + 0.1 * rng.normal(size=(N, d))


def hubs(rng, d):
    return rng.normal(size=(N, d)) * np.exp(rng.normal(size=(N, 1)))


def layers(kind, seed, count, d):
    """A network of random weights: layers that are alike among themselves."""
    rng = np.random.default_rng(seed)
    h = kind(rng, d)
    found = []
    for _ in range(count):
        h = h + 0.5 * h.std() * np.tanh(h @ rng.normal(size=(d, d)) / d**0.5)
        found.append(h)
    return found


def prepared(arrays):
    return [prepare(a, SPECS, dtype=np.float64) for a in arrays]


ONE = np.zeros(4, dtype=np.intp)


@pytest.fixture(scope="module",
                params=[(gaussian, 200), (clustered, 20), (low_rank, 20), (hubs, 20)],
                ids=["gaussian, d > n", "clustered", "low rank", "hubs"])  # fmt: skip
def case(request):
    """Four layers by four, with the scores of many permutations."""
    kind, d = request.param
    xs, ys = (prepared(layers(kind, seed, 4, d)) for seed in (0, 1))
    return xs, ys, score_permuted(xs, ys, SPECS, permutations(N, K, seed=7))


@pytest.mark.parametrize("name", SPECS)
def test_nulls_of__first_three_moments_are_those_of_permuting(case, name):
    xs, ys, truth = case
    null = nulls_of(xs, ys, ONE, ONE, {"": SPECS[name]})[""]
    values = truth[name] * null.scale
    linear = np.zeros((4, 4))
    third = null.skewness * null.own_variance**1.5
    if null.linear_x is not None:
        linear = np.outer((null.linear_x**2).sum(1), (null.linear_y**2).sum(1)) / (N - 1)
        cubes = np.outer((null.linear_x**3).sum(1), (null.linear_y**3).sum(1))
        third = third + N / ((N - 1) * (N - 2)) * cubes
        met = null.coupling
        twice = np.divide(
            met.explained_variance,
            met.quadratic_coef,
            out=np.zeros((4, 4)),
            where=met.quadratic_coef != 0,
        )
        third = third + 3 * (twice + met.variance_slope * linear * null.own_variance)
    spread = values.std(axis=0)
    assert (np.abs(values.mean(0) - null.mean) < 5 * spread / K**0.5).all()
    np.testing.assert_allclose((null.variance + linear) ** 0.5, spread, rtol=0.06)
    skewness = ((values - values.mean(0)) ** 3).mean(0) / spread**3
    np.testing.assert_allclose(third / spread**3, skewness, atol=0.3)


@pytest.mark.parametrize("name", SPECS)
def test_nulls_of__covariance_of_layers_is_that_of_permuting(case, name):
    xs, ys, truth = case
    null = nulls_of(xs, ys, ONE, ONE, {"": SPECS[name]})[""]
    found = sum(t.weight * np.kron(t.within_x, t.within_y) for t in null.terms)
    if null.linear_x is not None:
        found = found + np.kron(
            null.linear_x @ null.linear_x.T, null.linear_y @ null.linear_y.T
        ) / (N - 1)
    permuted = np.cov((truth[name] * null.scale).reshape(K, -1).T)
    deviation = np.sqrt(np.diag(found))
    np.testing.assert_allclose(
        found / np.outer(deviation, deviation), permuted / np.outer(deviation, deviation), atol=0.09
    )


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("how", ["max", "mean"])
def test_draw__false_positives_of_the_search_over_layers(case, name, how):
    """Thresholds from draws, met by permutations; four binomial errors of both allowed for."""
    xs, ys, truth = case
    null = nulls_of(xs, ys, ONE, ONE, {"": SPECS[name]})[""]
    if null.flagged.any():
        pytest.skip("moments do not determine this null, and it is permuted")
    drawn = draw(null, ONE, ONE, np.ones((1, 1), bool), 8000, seed=3)[how][0, 0]
    values = truth[name].reshape(K, -1)
    values = values.max(1) if how == "max" else values.mean(1)
    for alpha, bias in ((0.05, 0.01), (0.01, 0.005)):
        threshold = np.quantile(drawn, 1 - alpha)
        rate = (values > threshold + 1e-9).mean()
        noise = 4 * np.sqrt(alpha * (1 - alpha) * (1 / K + 1 / 8000))
        assert rate <= alpha + bias + noise
        if null.counts is not None and how == "max":  # a lattice attains but one lower level
            threshold -= 1 / null.scale[0, 0]
            rate = (values > threshold + 1e-9).mean()
        assert rate >= alpha - bias - noise


@pytest.mark.parametrize("name", SPECS)
def test_pair_null__tail_probabilities_are_those_of_permuting(case, name):
    xs, ys, truth = case
    null = nulls_of(xs[:1], ys[:1], ONE[:1], ONE[:1], {"": SPECS[name]})[""]
    if null.flagged.any():
        pytest.skip("moments do not determine this null, and it is permuted")
    exact, values = pair_null(null, 3000, seed=2), truth[name][:, 0, 0]
    for alpha, bias in ((0.5, 0.03), (0.05, 0.01), (0.01, 0.005)):
        threshold = exact.threshold(alpha)
        noise = 4 * np.sqrt(alpha * (1 - alpha) / K)
        rate = (values > threshold + 1e-9).mean()
        step = 1 / null.scale[0, 0] if exact.counts else 0.0
        assert rate <= alpha + bias + noise
        assert (values > threshold - step - 1e-9).mean() >= alpha - bias - noise
        assert exact.sf(threshold + step + 1e-9) <= alpha
        assert exact.sf(threshold - 1e-6) > alpha


@pytest.mark.parametrize("kind", [gaussian, clustered])
def test_draw__neighbours_shared_by_all_layers_are_as_skewed_as_permuting_makes_them(kind):
    """The third moment of the mean over layers is known: the mean is a sum of indicators too."""
    spec = measure_spec("mutual_knn", k=5, neighbours="euclidean")
    xs, ys = (
        [prepare(a, {"": spec}) for a in layers(kind, seed, count, 40)]
        for seed, count in ((0, 10), (1, 6))
    )
    gx, gy = np.zeros(10, np.intp), np.zeros(6, np.intp)
    null = nulls_of(xs, ys, gx, gy, {"": spec})[""]
    scalars = [
        combined_neighbour_scalars(
            [p.neighbours_for(spec).relation() for p in side], np.ones(len(side))
        )
        for side in (xs, ys)
    ]
    _, variance, third = (float(m[0, 0]) for m in neighbour_moments(N, *scalars))
    found = []
    for each in (null, replace(null, leading=None)):
        drawn = draw(each, gx, gy, np.ones((1, 1), bool), 40_000, seed=1)["mean"][0, 0]
        assert drawn.var() * (60 * null.scale[0, 0]) ** 2 == pytest.approx(variance, rel=0.05)
        found.append(((drawn - drawn.mean()) ** 3).mean() / drawn.std() ** 3)
    expected = third / variance**1.5
    assert found[0] == pytest.approx(expected, abs=0.05)  # its own error is 0.012
    assert abs(found[1] - expected) > 2 * abs(found[0] - expected)


def test_share_skewness__what_layers_leave_open():
    ones = np.ones((1, 1))
    # a single pair of layers is its own component
    own, rest = share_skewness(0.7, ones, ones, 0.7 * ones, ones, ones)
    assert own == 0.0
    np.testing.assert_array_equal(rest, 0.7 * ones)
    # two independent ones, weighed equally: a copula gives their sum of each g/√2 as much as it has
    w = np.full((1, 2), 0.5**0.5)
    skewness = np.array([[0.3, 0.3]])
    copula = 0.3 * 0.5**0.5
    own, rest = share_skewness(copula, w, np.ones((1, 2)), skewness, w, w)
    assert own == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(rest, skewness)
    own, rest = share_skewness(copula + 0.1, w, np.ones((1, 2)), skewness, w, w)
    assert own + 0.5**0.5 * rest.mean() == pytest.approx(copula + 0.1)
    np.testing.assert_allclose(rest, 0.3 - own * 0.5**1.5)
    # a pair that never varies takes nothing
    own, rest = share_skewness(
        0.2, np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]), np.zeros((1, 2)),
        np.array([[1.0, 0.0]]), np.array([[0.5, 0.0]]),
    )  # fmt: skip
    assert np.isfinite([own, *rest[0]]).all()
    assert rest[0, 1] == 0.0


def test_pair_null__neighbours_spread_more_where_hubs_meet():
    spec = measure_spec("mutual_knn", k=5, neighbours="euclidean")
    xs, ys = ([prepare(layers(hubs, seed, 1, 40)[0], {"": spec})] for seed in (0, 1))
    null = nulls_of(xs, ys, ONE[:1], ONE[:1], {"": spec})[""]
    assert null.coupling is not None
    orders = permutations(N, 40_000, seed=3)
    values = score_permuted(xs, ys, {"": spec}, orders)[""][:, 0, 0] * null.scale[0, 0]
    linear = null.linear_y[0][orders] @ null.linear_x[0]
    rest = values - null.mean[0, 0] - linear
    assert abs(np.corrcoef(linear, rest)[0, 1]) < 0.02
    high, low = rest[linear > np.quantile(linear, 0.9)], rest[linear < np.quantile(linear, 0.1)]
    assert high.var() > 1.5 * low.var()
    exact = pair_null(null, 20_000, seed=2)
    drawn = draw(null, ONE[:1], ONE[:1], np.ones((1, 1), bool), 40_000, seed=4)["max"][0, 0]
    for score in np.unique(np.round(np.quantile(values, [0.5, 0.9, 0.99, 0.999]))):
        reached = exact.sf(score / null.scale[0, 0])
        noise = 5 * (reached / 40_000) ** 0.5
        assert (values > score - 0.5).mean() == pytest.approx(reached, abs=noise + 0.1 * reached)
        assert (drawn * null.scale[0, 0] > score - 0.5).mean() == pytest.approx(reached, abs=noise)


def test_draw__neither_company_nor_mask_changes_a_pair(case):
    xs, ys, _ = case
    groups = np.array([0, 0, 1, 1])
    for name in ("cka", "knn"):
        null = nulls_of(xs, ys, groups, groups, {"": SPECS[name]})[""]
        whole = draw(null, groups, groups, np.ones((2, 2), bool), 150, seed=0)
        some = draw(null, groups, groups, np.array([[False, True], [False, False]]), 150, seed=0)
        alone = nulls_of(xs[:2], ys[2:], ONE[:2], ONE[:2], {"": SPECS[name]})[""]
        alone_drawn = draw(alone, ONE[:2], ONE[:2], np.ones((1, 1), bool), 150, seed=0)
        for how in ("max", "mean"):
            np.testing.assert_allclose(some[how][0, 1], whole[how][0, 1], atol=1e-12)
            np.testing.assert_allclose(alone_drawn[how][0, 0], whole[how][0, 1], atol=1e-9)
            assert np.isnan(some[how][1, 0]).all()


def test_draw__constant_and_repeated_layers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5))
    xs = prepared([x, np.ones((40, 3)), x])
    ys = prepared([rng.normal(size=(40, 4))])
    groups = np.zeros(3, dtype=np.intp)
    for name, spec in SPECS.items():
        null = nulls_of(xs, ys, groups, groups[:1], {"": spec})[""]
        drawn = draw(null, groups, groups[:1], np.ones((1, 1), bool), 200, seed=0)
        assert np.isfinite(drawn["max"]).all(), name
        alone = nulls_of(xs[:1], ys, groups[:1], groups[:1], {"": spec})[""]
        assert drawn["mean"].std() == pytest.approx(
            (alone.variance[0, 0] + _linear_variance(alone)) ** 0.5 / alone.scale[0, 0], rel=0.2
        )
    nothing = nulls_of(xs[1:2], ys, groups[:1], groups[:1], {"": SPECS["cka"]})[""]
    drawn = draw(nothing, groups[:1], groups[:1], np.ones((1, 1), bool), 20, seed=0)
    assert np.isnan(drawn["max"]).all()


def _linear_variance(null):
    if null.linear_x is None:
        return 0.0
    n = null.linear_x.shape[1]
    return (null.linear_x[0] ** 2).sum() * (null.linear_y[0] ** 2).sum() / (n - 1)


def test_calibrate__analytic_agrees_with_permutation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 8))
    y = 0.25 * x[:, :6] + rng.normal(size=(100, 6))
    for name in ("cka", "cka_debiased", "distance_correlation", "mutual_knn", "rsa", "cka_rbf"):
        exact = calibrate(x, y, name, method="analytic")
        permuted = calibrate(x, y, name, n_permutations=1999)
        assert exact.method == "analytic"
        assert not exact.flagged
        assert exact.score == permuted.score
        assert exact.threshold == pytest.approx(permuted.threshold, abs=0.15 * permuted.null.std())
        assert exact.calibrated == pytest.approx(permuted.calibrated, abs=0.02)
        assert exact.p <= permuted.p + 0.01
        assert exact.null.shape == (999,)


def test_calibrate__analytic_p_goes_below_one_over_the_draws():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 8))
    found = calibrate(x, x + 0.3 * rng.normal(size=x.shape), "cka_debiased", method="analytic")
    assert 0 <= found.p < 1e-12


def test_calibrate_layers__analytic_pays_for_the_search():
    rng = np.random.default_rng(0)
    xs, ys = rng.normal(size=(2, 6, 60, 30))  # layers that have nothing to do with each other
    for name in ("cka", "mutual_knn"):
        one = calibrate(xs[0], ys[0], name, method="analytic")
        many = calibrate_layers(xs, ys, name, method="analytic", n_permutations=4999)
        slow = calibrate_layers(xs, ys, name, n_permutations=4999)
        assert many.threshold > one.threshold
        assert many.threshold == pytest.approx(slow.threshold, abs=0.3 * slow.null.std())
        mean = calibrate_layers(xs, ys, name, method="analytic", aggregate="mean")
        assert mean.threshold < many.threshold


def test_calibrate__a_null_that_moments_do_not_determine_is_permuted():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 100, 30))
    x[:3] += 20 * rng.normal(size=30)
    y[:3] += 20 * rng.normal(size=30)
    found = calibrate(x, y, "cka_debiased", method="analytic", n_permutations=199)
    assert (found.method, found.flagged) == ("permutation", True)
    assert found.p == calibrate(x, y, "cka_debiased", n_permutations=199).p
    xs = prepared([x, rng.normal(size=(100, 5))])
    ys = prepared([y])
    null = nulls_of(xs, ys, np.array([0, 1]), ONE[:1], {"": SPECS["cka_debiased"]})[""]
    wanted = np.ones((2, 1), bool)
    flagged = flagged_encoders(null, np.array([0, 1]), ONE[:1], wanted)
    np.testing.assert_array_equal(flagged, [[True], [False]])


def test_calibrate__q_over_pairs_without_kinship_stays_high():
    rng = np.random.default_rng(4)
    xs = [rng.normal(size=(80, 12)) for _ in range(8)]
    p = [
        calibrate(a, b, "cka_debiased", method="analytic").p
        for i, a in enumerate(xs)
        for b in xs[:i]
    ]
    assert (benjamini_hochberg(p) > 0.01).all()
    assert 0.2 < np.mean(p) < 0.8


def test_calibrate__too_few_draws():
    x, y = np.random.default_rng(0).normal(size=(2, 30, 4))
    with pytest.raises(InputError, match=r"With n_permutations=9 the smallest possible p is 1/10"):
        calibrate(x, y, method="analytic", n_permutations=9)


@pytest.mark.parametrize("measure", ["cka", "cka_debiased", "mutual_knn"])
def test_calibrate__few_stimuli_are_permuted(measure):
    """Of four stimuli there are 24 permutations: no smaller p could be true than 1/24."""
    settings = {"k": 2} if measure == "mutual_knn" else {}
    for n in (4, 6, 9, 10):
        x, y = np.random.default_rng(n).normal(size=(2, n, 3))
        found = calibrate(x, x + 0.3 * y, measure, method="analytic", **settings)
        assert found.flagged == (n < 10)
        assert found.p >= 1 / 1000 or n == 10
        assert found.method == ("permutation" if n < 10 else "analytic")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_permutations": 19.5}, "n_permutations is 19.5; it must be an integer of at least 1."),
        ({"n_permutations": True}, "n_permutations is True; it must be an integer of at least 1."),
        ({"seed": -1}, "seed is -1; it must be an integer of at least 0."),
        ({"alpha": "x"}, "alpha is 'x'; it must be a number from 0 to 1."),
        ({"alpha": float("nan")}, "alpha is nan; it must be a number from 0 to 1."),
        ({"alpha": 1.0}, "alpha is 1.0; it is a probability, between 0 and 1."),
    ],
)
def test_calibrate__numbers_that_are_none(settings, says):
    x, y = np.random.default_rng(0).normal(size=(2, 30, 4))
    with pytest.raises(InputError, match=f"^{re.escape(says)}$"):
        calibrate(x, y, **settings)
