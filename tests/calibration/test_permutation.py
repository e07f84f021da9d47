import numpy as np
import pytest
import reference
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.calibration import (
    AGGREGATES,
    aggregate_layers,
    benjamini_hochberg,
    calibrate,
    calibrate_layers,
    calibrate_score,
    permutation_null,
    permutations,
)
from pipeline.errors import InputError
from pipeline.measures import measure_spec, prepare, score_pairs, similarity

SPECS = {
    "cka": measure_spec("cka"),
    "cka_debiased": measure_spec("cka_debiased"),
    "knn": measure_spec("mutual_knn", k=4),
}


def layers(seed, widths, n=30):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, d)) for d in widths]


def prepared(arrays, specs=SPECS):
    return [prepare(a, specs, dtype=np.float64) for a in arrays]


# permutations


def test_permutations__seeded_and_a_prefix():
    orders = permutations(20, 50, seed=3)
    assert orders.shape == (50, 20)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(20), (50, 1)))
    np.testing.assert_array_equal(permutations(20, 9, seed=3), orders[:9])
    assert (permutations(20, 50, seed=4) != orders).any()


@pytest.mark.parametrize(("n", "count"), [(1, 5), (5, 0)])
def test_permutations__too_few(n, count):
    with pytest.raises(
        InputError, match=rf"{count} permutations of {n} stimuli .* at least 1 perm"
    ):
        permutations(n, count, seed=0)


# aggregate_layers


def test_aggregate_layers__by_hand():
    scores = [[0.1, 0.5, -0.3], [0.2, 0.9, -0.1], [np.nan, 0.4, np.nan]]
    got = aggregate_layers(scores, [0, 0, 1], [0, 0, 1])
    np.testing.assert_allclose(got["max"], [[0.9, -0.1], [0.4, np.nan]])
    np.testing.assert_allclose(got["mean"], [[1.7 / 4, -0.2], [0.4, np.nan]])


def test_aggregate_layers__layers_need_not_be_in_order():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 6, 5))
    gx, gy = np.array([1, 0, 1, 2, 0, 0]), np.array([0, 1, 0, 1, 1])
    got = aggregate_layers(scores, gx, gy)
    for i in range(3):
        for j in range(2):
            block = scores[:, gx == i][:, :, gy == j]
            np.testing.assert_allclose(got["max"][:, i, j], block.max(axis=(1, 2)))
            np.testing.assert_allclose(got["mean"][:, i, j], block.mean(axis=(1, 2)))


def test_aggregate_layers__wrong_shape():
    with pytest.raises(InputError, match=r"Scores of shape \(2, 3\) do not go with 2 and 2 repres"):
        aggregate_layers(np.zeros((2, 3)), [0, 0], [0, 0])


# permutation_null


def slow_null(xs, ys, gx, gy, specs, orders):
    """Layer by layer, array by array, from the loops of the definition."""
    shape = (max(gx) + 1, max(gy) + 1, len(orders))
    out = {label: {"max": np.zeros(shape), "mean": np.zeros(shape)} for label in specs}
    for label, spec in specs.items():
        naive = reference.MEASURES[spec.name]
        for number, order in enumerate(orders):
            scores = np.array(
                [[naive(x, y[order], **dict(spec.parameters)) for y in ys] for x in xs]
            )
            for i in range(shape[0]):
                for j in range(shape[1]):
                    block = scores[np.ix_(np.equal(gx, i), np.equal(gy, j))]
                    out[label]["max"][i, j, number] = block.max()
                    out[label]["mean"][i, j, number] = block.mean()
    return out


def test_permutation_null__equals_the_slow_loop():
    xs, ys = layers(0, (3, 20, 5), n=12), layers(1, (4, 15, 2, 8), n=12)
    gx, gy = [0, 1, 0], [0, 0, 1, 1]
    orders = permutations(12, 4, seed=0)
    null = permutation_null(prepared(xs), prepared(ys), gx, gy, SPECS, orders)
    slow = slow_null(xs, ys, gx, gy, SPECS, orders)
    for label in SPECS:
        for how in ("max", "mean"):
            assert null[label][how].shape == (2, 2, 4)
            np.testing.assert_allclose(null[label][how], slow[label][how], atol=1e-10)


@pytest.mark.parametrize("memory", [1, 100_000, 2**28])
def test_permutation_null__neither_mask_nor_budget_changes_a_number(memory):
    xs, ys = prepared(layers(0, (3, 20, 5, 4))), prepared(layers(1, (4, 15, 2, 8, 6)))
    gx, gy = [0, 1, 0, 2], [0, 2, 1, 1, 0]
    orders = permutations(30, 5, seed=0)
    full = permutation_null(xs, ys, gx, gy, SPECS, orders)
    mask = np.array([[True, False, True], [True, False, True], [False, True, True]])
    some = permutation_null(xs, ys, gx, gy, SPECS, orders, wanted=mask, memory=memory)
    for label in SPECS:
        for how in ("max", "mean"):
            expected = np.where(mask[:, :, None], full[label][how], np.nan)
            np.testing.assert_allclose(some[label][how], expected, atol=1e-12)


def test_permutation_null__the_identity_gives_the_observed_scores():
    xs, ys = prepared(layers(0, (3, 20, 5))), prepared(layers(1, (4, 15)))
    null = permutation_null(xs, ys, [0, 0, 1], [0, 1], SPECS, np.arange(30)[None])
    scores = score_pairs(xs, ys, SPECS)
    for label in SPECS:
        observed = aggregate_layers(scores[label].values, [0, 0, 1], [0, 1])
        for how in ("max", "mean"):
            np.testing.assert_allclose(null[label][how][:, :, 0], observed[how], atol=1e-12)


def test_permutation_null__a_constant_layer_is_left_out():
    xs = prepared([*layers(0, (3, 20)), np.ones((30, 2))])
    ys = prepared(layers(1, (4,)))
    orders = permutations(30, 3, seed=0)
    with_it = permutation_null(xs, ys, [0, 0, 0], [0], SPECS, orders)
    without = permutation_null(xs[:2], ys, [0, 0], [0], SPECS, orders)
    alone = permutation_null(xs[2:], ys, [0], [0], SPECS, orders)
    for label in SPECS:
        for how in ("max", "mean"):
            np.testing.assert_allclose(with_it[label][how], without[label][how], atol=1e-12)
            assert np.isnan(alone[label][how]).all()


def test_permutation_null__wrong_groups_and_masks():
    xs = prepared(layers(0, (3, 4)))
    orders = permutations(30, 3, seed=0)
    with pytest.raises(InputError, match=r"x_groups has shape \(1,\) and there are 2 representat"):
        permutation_null(xs, xs, [0], [0, 0], SPECS, orders)
    with pytest.raises(InputError, match=r"y_groups must number the encoders .* it has \[0, 2\]"):
        permutation_null(xs, xs, [0, 0], [0, 2], SPECS, orders)
    with pytest.raises(InputError, match=r"has shape \(2, 2\); there are 1 and 2 enc.* \(1, 2\)"):
        permutation_null(xs, xs, [0, 0], [0, 1], SPECS, orders, wanted=np.ones((2, 2)))
    with pytest.raises(InputError, match=r"Orders have shape \(1, 3\)"):
        permutation_null(xs, xs, [0, 0], [0, 1], SPECS, [[0, 1, 2]])


# calibrate_score


def test_calibrate_score__by_hand():
    # K + 1 = 10 values and alpha = 0.2: tau is the eighth. Sorted, with the observed 0.75 among
    # them: .05 .1 .15 .2 .25 .3 .35 | .4 | .75 .8
    null = [0.1, 0.05, 0.2, 0.15, 0.3, 0.25, 0.4, 0.35, 0.8]
    calibrated, tau, p = calibrate_score(0.75, null, alpha=0.2)
    assert tau == 0.4
    assert p == pytest.approx(2 / 10)
    assert calibrated == pytest.approx((0.75 - 0.4) / (1 - 0.4))
    # Not above the threshold: .05 .1 .15 .2 .22 .25 .3 | .35 | .4 .8
    calibrated, tau, p = calibrate_score(0.22, null, alpha=0.2)
    assert (calibrated, tau, p) == (0.0, 0.35, pytest.approx(6 / 10))


def test_calibrate_score__equal_values_count_against_it():
    _, _, p = calibrate_score(0.5, [0.5, 0.5, 0.4], alpha=0.25)
    assert p == pytest.approx(3 / 4)


def test_calibrate_score__is_vectorised():
    rng = np.random.default_rng(0)
    observed, null = rng.normal(size=(3, 4)), rng.normal(size=(3, 4, 19))
    together = calibrate_score(observed, null, alpha=0.1, maximum=5.0)
    for i in range(3):
        for j in range(4):
            alone = calibrate_score(observed[i, j], null[i, j], alpha=0.1, maximum=5.0)
            for a, b in zip(together, alone, strict=True):
                assert a[i, j] == b


@pytest.mark.parametrize(("alpha", "rank"), [(0.44, 14), (0.05, 24), (0.5, 13), (0.04, 24)])
def test_calibrate_score__rank_is_exact(alpha, rank):
    null = np.arange(1, 25) / 100
    assert calibrate_score(1.0, null, alpha=alpha)[1] == rank / 100


@given(
    values=st.lists(st.integers(0, 6), min_size=2, max_size=40),
    alpha=st.floats(0.01, 0.99),
)
def test_calibrate_score__above_the_threshold_only_if_p_is_at_most_alpha(values, alpha):
    assume(alpha * len(values) >= 1)
    scores = np.array(values) / 7
    calibrated, tau, p = calibrate_score(scores[0], scores[1:], alpha=alpha)
    if scores[0] > tau:
        assert p <= alpha + 1e-9
        assert calibrated > 0
    else:
        assert calibrated == 0


def test_calibrate_score__nan_is_passed_on_and_a_full_score_is_no_division_by_zero():
    calibrated, tau, p = calibrate_score(
        [np.nan, 0.5, 1.0], [[0.1] * 3, [0.1, np.nan, 0.2], [1.0] * 3], alpha=0.25
    )
    for each in (calibrated, tau, p):
        assert np.isnan(each[:2]).all()
    assert (calibrated[2], tau[2], p[2]) == (0.0, 1.0, 1.0)


def test_calibrate_score__wrong_input():
    with pytest.raises(InputError, match=r"null of shape \(2,\) does not go with .* shape \(3,\)"):
        calibrate_score([1, 2, 3], [1, 2])
    with pytest.raises(InputError, match=r"alpha is 5; it is a probability"):
        calibrate_score(0.5, [0.1], alpha=5)


def test_calibrate_score__level_that_no_p_reaches():
    null = np.linspace(0, 0.5, 199)
    with pytest.raises(
        InputError,
        match=r"^With n_permutations=199 the smallest possible p is 1/200, above alpha=0.001: "
        r"no score could be significant. Use at least 999 permutations.$",
    ):
        calibrate_score(0.9, null, alpha=0.001)
    assert calibrate_score(0.9, null, alpha=0.005)[0] > 0


# benjamini_hochberg


def test_benjamini_hochberg__by_hand():
    q = benjamini_hochberg([[0.01, 0.02, np.nan], [0.03, 0.5, np.nan]])
    np.testing.assert_allclose(q, [[0.04, 0.04, np.nan], [0.04, 0.5, np.nan]])


def test_benjamini_hochberg__equals_scipy():
    rng = np.random.default_rng(0)
    for size in (1, 2, 50):
        p = np.round(rng.random(size) ** 2, 2)
        expected = scipy.stats.false_discovery_control(p)
        np.testing.assert_allclose(benjamini_hochberg(p), expected, rtol=1e-14)


def test_benjamini_hochberg__nothing_to_adjust():
    assert np.isnan(benjamini_hochberg([np.nan, np.nan])).all()
    assert benjamini_hochberg([]).shape == (0,)


def test_benjamini_hochberg__not_probabilities():
    with pytest.raises(InputError, match=r"p-values must be between 0 and 1"):
        benjamini_hochberg([0.1, 1.2])


# calibrate, calibrate_layers


@pytest.mark.parametrize("name", ["cka", "cka_debiased", "mutual_knn"])
def test_calibrate__tells_kinship_from_chance(name):
    rng = np.random.default_rng(0)
    common = rng.normal(size=(60, 3))
    x, y = (common @ rng.normal(size=(3, 20)) + rng.normal(size=(60, 20)) for _ in range(2))
    kin = calibrate(x, y, name)
    assert kin.score == similarity(x, y, name)
    assert kin.p == 1 / 200
    assert 0 < kin.calibrated < kin.score
    assert kin.calibrated == pytest.approx((kin.score - kin.threshold) / (1 - kin.threshold))
    assert kin.null.shape == (199,)
    assert (kin.method, kin.best_layers) == ("permutation", (0, 0))
    strangers = calibrate(x, rng.normal(size=(60, 20)), name)
    assert strangers.calibrated < 0.05
    assert strangers.p > 0.01


def test_calibrate__is_seeded():
    x, y = layers(0, (5, 6))
    one, same, other = (calibrate(x, y, n_permutations=19, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.null, same.null)
    assert (one.null != other.null).any()


def test_calibrate__parameters_reach_the_measure():
    x, y = layers(0, (5, 6))
    assert calibrate(x, y, "mutual_knn", k=3).score == similarity(x, y, "mutual_knn", k=3)


def test_calibrate__too_few_permutations():
    x, y = layers(0, (5, 6))
    with pytest.raises(
        InputError, match=r"smallest possible p is 1/19, above alpha=0.05.* 19 perm"
    ):
        calibrate(x, y, n_permutations=18)
    with pytest.raises(InputError, match=r"least 99 permutations"):
        calibrate(x, y, n_permutations=19, alpha=0.01)
    assert calibrate(x, y, n_permutations=19).p >= 0.05


def test_calibrate__unknown_method():
    x, y = layers(0, (5, 6))
    with pytest.raises(
        InputError, match=r"no method of calibration 'exact'; there is 'permutation"
    ):
        calibrate(x, y, method="exact")


def test_calibrate__errors_name_the_array():
    x, y = layers(0, (5, 6))
    with pytest.raises(InputError, match=r"y is constant"):
        calibrate(x, np.ones_like(y))
    with pytest.raises(InputError, match=r"xs\[0\] has 30 stimuli \(rows\) and ys\[1\] has 29"):
        calibrate_layers([x], [y, y[:29]])


def test_calibrate_layers__max_is_the_best_pair_and_mean_the_mean():
    xs, ys = layers(0, (3, 20, 5), n=14), layers(1, (4, 15), n=14)
    ys.append(xs[1] + 0.1)
    scores = np.array([[similarity(x, y) for y in ys] for x in xs])
    best = calibrate_layers(xs, ys, "cka", n_permutations=19)
    assert best.score == pytest.approx(scores.max(), abs=1e-12)
    assert best.best_layers == (1, 2)
    mean = calibrate_layers(xs, ys, "cka", aggregate="mean", n_permutations=19)
    assert mean.score == pytest.approx(scores.mean(), abs=1e-12)
    assert mean.aggregate == "mean"
    orders = permutations(14, 19, seed=0)
    slow = slow_null(xs, ys, [0] * 3, [0] * 3, {"": SPECS["cka"]}, orders)[""]
    np.testing.assert_allclose(best.null, slow["max"][0, 0], atol=1e-10)
    np.testing.assert_allclose(mean.null, slow["mean"][0, 0], atol=1e-10)


def test_calibrate_layers__wrong_input():
    xs = layers(0, (3, 20))
    with pytest.raises(InputError, match=r"no aggregate 'median'; there is 'max' or 'mean'"):
        calibrate_layers(xs, xs, aggregate="median")
    with pytest.raises(InputError, match=r"a list of layers is empty"):
        calibrate_layers(xs, [])


# The null under H0: what is not alike must not be called so.


@pytest.mark.parametrize("widths", [(3, 4), (20, 60, 200)], ids=["d<n", "d>=n"])
def test_permutation_null__false_positives_stay_at_alpha(widths):
    trials, n, alpha = 300, 16, 0.1
    specs = {**SPECS, "knn": measure_spec("mutual_knn", k=3)}
    rng = np.random.default_rng(7)
    rejected = {(label, how): 0 for label in specs for how in AGGREGATES}
    gx = [0] * len(widths)
    for trial in range(trials):
        # Layers of one network resemble each other; the two networks share nothing.
        roots = rng.normal(size=(2, n, 3))
        xs, ys = (
            prepared([np.tanh(root @ rng.normal(size=(3, d))) for d in widths], specs)
            for root in roots
        )
        scores = score_pairs(xs, ys, specs)
        null = permutation_null(xs, ys, gx, gx, specs, permutations(n, 39, seed=trial))
        for label, how in rejected:
            observed = aggregate_layers(scores[label].values, gx, gx)[how]
            p = calibrate_score(observed, null[label][how], alpha=alpha)[2]
            rejected[label, how] += int(p[0, 0] <= alpha)
    highest = scipy.stats.binom.ppf(0.999, trials, alpha)
    lowest = scipy.stats.binom.ppf(0.001, trials, alpha)
    assert max(rejected.values()) <= highest
    # CKA is continuous, so its test is exact; shared neighbours are counts, and may say less.
    assert min(count for (label, _), count in rejected.items() if label != "knn") >= lowest
