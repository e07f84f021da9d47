"""Upper tails of nulls, against permuting, loops over pairs of layers, and the null of a pair."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.calibration import (
    calibrate,
    calibrate_layers,
    calibrate_score,
    nulls_of,
    permutations,
    tail_bounds,
)
from pipeline.calibration.draws import pair_null
from pipeline.measures import measure_spec, prepare
from pipeline.measures.permuted import score_permuted

SPECS = {
    "cka": measure_spec("cka"),
    "cka_debiased": measure_spec("cka_debiased"),
    "rsa": measure_spec("rsa"),
    "knn": measure_spec("mutual_knn", k=5),
    "near": measure_spec("mutual_knn", k=5, neighbours="euclidean"),
}
N = 80


def gaussian(seed, d=20):
    return np.random.default_rng(seed).normal(size=(N, d))


def hubs(seed, d=20):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, d)) * np.exp(rng.normal(size=(N, 1)))


def dead(seed, d=20):
    """One row in five is zero, and its neighbours tie."""
    x = gaussian(seed, d)
    x[np.random.default_rng(seed + 50).random(N) < 0.2] = 0.0
    return x


def groups(size):
    return np.zeros(size, dtype=np.intp)


def null_of(xs, ys, name):
    return nulls_of(xs, ys, groups(len(xs)), groups(len(ys)), {"": SPECS[name]})[""]


def bound(null, score):
    x, y = null.scale.shape
    return tail_bounds(null, groups(x), groups(y), np.array([[score]]))[0, 0]


@pytest.fixture(scope="module", params=[gaussian, hubs, dead])
def pair(request):
    """A pair of representations with the scores of many permutations."""
    xs, ys = ([prepare(request.param(seed), SPECS, dtype=np.float64)] for seed in (0, 1))
    return xs, ys, score_permuted(xs, ys, SPECS, permutations(N, 30_000, seed=5))


@pytest.mark.parametrize("name", SPECS)
def test_tail_bounds__of_one_pair_of_layers_is_the_tail_of_permuting(pair, name):
    xs, ys, permuted = pair
    null, values = null_of(xs, ys, name), permuted[name][:, 0, 0]
    if null.flagged.any():
        pytest.skip("moments do not determine this null, and it is permuted")
    for share in (0.05, 0.01, 0.001):
        score = np.quantile(values, 1 - share)
        true = (values >= score - 1e-9).mean()
        # what a model of three moments is good for at one in a thousand
        assert true / 1.5 < bound(null, score) < 2.5 * true


def test_tail_bounds__without_a_linear_part_is_the_null_of_the_pair():
    xs, ys = ([prepare(gaussian(seed), SPECS)] for seed in (0, 1))
    null = null_of(xs, ys, "cka_debiased")
    exact = pair_null(null, 99, seed=0)
    for score in (-0.1, 0.0, 0.1, 0.3, 0.9):
        assert bound(null, score) == pytest.approx(exact.sf(score), rel=1e-9)
    assert bound(null, 0.9) < 1e-100


def test_tail_bounds__a_linear_part_goes_on_beyond_its_permutations():
    """Where nearly all that varies is the linear part, K of its values end at one in K."""
    xs, ys = ([prepare(hubs(seed), SPECS, dtype=np.float64)] for seed in (0, 1))
    null = null_of(xs, ys, "cka")
    assert null.coupling.linear_variance[0, 0] > 10 * null.variance[0, 0]
    cka = {"cka": SPECS["cka"]}
    values = np.sort(score_permuted(xs, ys, cka, permutations(N, 30_000, 8))["cka"][:, 0, 0])
    score = values[-3]  # one in ten thousand
    assert pair_null(null, 999, seed=0).sf(score) < 1e-5
    assert 1e-4 < bound(null, score) < 2e-3
    x, y = hubs(0), hubs(1)
    far = calibrate(x, x + 0.5 * y, "cka", method="analytic")
    assert pair_null(null, 999, seed=0).sf(far.score) < 1e-30
    assert far.p > 1e-8


@pytest.mark.parametrize("name", SPECS)
def test_tail_bounds__of_layers_is_the_sum_over_their_pairs(name):
    xs, ys = (
        [prepare(gaussian(seed + side, 4 + seed), SPECS) for seed in range(count)]
        for side, count in ((0, 3), (10, 2))
    )
    score = 0.2
    alone = [bound(null_of([x], [y], name), score) for x in xs for y in ys]
    together = bound(null_of(xs, ys, name), score)
    assert together == pytest.approx(min(1.0, sum(alone)), rel=1e-6)
    assert bound(null_of(xs, ys, name), -1.0) == 1.0  # a probability


@pytest.fixture(scope="module")
def networks():
    """Two networks of four layers, with the scores of many permutations."""
    rng = np.random.default_rng(3)
    sides = []
    for _ in range(2):
        h, layers = rng.normal(size=(N, 30)), []
        for _ in range(4):
            h = h + 0.5 * np.tanh(h @ rng.normal(size=(30, 30)) / 30**0.5)
            layers.append(prepare(h, SPECS, dtype=np.float64))
        sides.append(layers)
    return sides, score_permuted(*sides, SPECS, permutations(N, 20_000, 4))


@pytest.mark.parametrize("name", SPECS)
def test_tail_bounds__is_above_that_of_the_best_of_layers(networks, name):
    sides, permuted = networks
    values, null = permuted[name].max(axis=(1, 2)), null_of(*sides, name)
    for share in (0.05, 0.01, 0.001):
        score = np.quantile(values, 1 - share)
        true = (values >= score - 1e-9).mean()
        assert bound(null, score) > true - 4 * (true / 20_000) ** 0.5
        assert bound(null, score) < 16 * 1.6 * true


def test_tail_bounds__company_changes_nothing():
    xs = [prepare(gaussian(seed), SPECS) for seed in range(4)]
    of = np.array([0, 0, 1, 1])
    best = np.array([[np.nan, 0.3], [0.2, np.nan]])
    for name in SPECS:
        whole = tail_bounds(nulls_of(xs, xs, of, of, {"": SPECS[name]})[""], of, of, best)
        alone = bound(null_of(xs[:2], xs[2:], name), 0.3)
        assert whole[0, 1] == pytest.approx(alone, rel=1e-6)
        np.testing.assert_array_equal(np.isnan(whole), np.isnan(best))


def test_tail_bounds__layers_that_are_constant_have_no_part():
    x, y = gaussian(0), gaussian(1)
    with_constant = [prepare(a, SPECS) for a in (x, np.ones((N, 3)))]
    for name in SPECS:
        found = bound(null_of(with_constant, [prepare(y, SPECS)], name), 0.3)
        alone = bound(null_of(with_constant[:1], [prepare(y, SPECS)], name), 0.3)
        assert found == pytest.approx(alone, rel=1e-6)


def test_calibrate_score__bound_below_what_draws_tell():
    null = np.linspace(0, 0.5, 19)
    tails = [1e-9, 0.2, np.nan, 1e-9]
    _, _, p = calibrate_score([0.9, 0.9, 0.9, 0.5], np.tile(null, (4, 1)), tail=tails)
    # not above 1/(K+1), not where there is none, and not where a draw reaches the score
    np.testing.assert_allclose(p, [1e-9, 1 / 20, 1 / 20, 2 / 20])


@pytest.mark.parametrize("measure", ["cka", "cka_debiased", "rsa", "mutual_knn"])
def test_calibrate_layers__p_goes_below_one_over_the_draws(measure):
    x = gaussian(0, 8)
    ys = [x + scale * gaussian(seed, 8) for seed, scale in enumerate((0.5, 0.7, 3.0), 1)]
    xs = [x, gaussian(5, 8)]
    found = calibrate_layers(xs, ys, measure, method="analytic")
    assert not found.flagged
    assert 0 <= found.p < 1e-8
    assert found.score > found.threshold
    mean = calibrate_layers(xs, ys, measure, method="analytic", aggregate="mean")
    assert mean.p >= 1 / 1000
    # encoders of one layer, as a pair of representations
    one = calibrate_layers([x], ys[:1], measure, method="analytic")
    pair = calibrate(x, ys[0], measure, method="analytic")
    assert (one.p, one.calibrated) == (pair.p, pair.calibrated)
    tail = bound(null_of_arrays([x], ys[:1], measure), pair.score)
    assert pair.p == pytest.approx(tail, rel=1e-3)  # in float32 there, in float64 here


def null_of_arrays(xs, ys, measure):
    spec = measure_spec(measure)
    of_x, of_y = groups(len(xs)), groups(len(ys))
    sides = ([prepare(a, [spec]) for a in side] for side in (xs, ys))
    return nulls_of(*sides, of_x, of_y, {"": spec})[""]


def test_calibrate_layers__above_the_threshold_only_if_p_is_at_most_alpha():
    rng = np.random.default_rng(0)
    for trial in range(30):
        x = rng.normal(size=(40, 6))
        ys = [x * rng.uniform(0, 0.3) + rng.normal(size=x.shape) for _ in range(2)]
        for alpha, draws in ((0.05, 19), (0.05, 199), (0.2, 9)):
            found = calibrate_layers(
                [x, x**2], ys, "mutual_knn", k=3, method="analytic", alpha=alpha, seed=trial,
                n_permutations=draws,
            )  # fmt: skip
            assert found.p <= alpha or found.calibrated == 0
