import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orth, subspace_angles
from scipy.optimize import linear_sum_assignment, linprog
from scipy.spatial import procrustes
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from pipeline.errors import InputError
from pipeline.measures import (
    compare,
    measure_spec,
    pairwise,
    prepare,
    score_pairs,
    similarity,
)
from pipeline.measures.pairwise import matching, subspace

RECORDS = {measure.name: measure for measure in pairwise.MEASURES}
MEASURES = {
    name: RECORDS[name]
    for name in (
        "procrustes",
        "cca",
        "svcca",
        "pwcca",
        "linear_regression",
        "soft_matching",
        "gulp",
    )
}

CORRELATIONS = ["cca", "svcca", "pwcca"]


def score(name, x, y, **parameters):
    measure = MEASURES[name]
    first = {key: value for key, value in parameters.items() if key in measure.prepares}
    rest = {key: value for key, value in parameters.items() if key not in measure.prepares}
    return measure.compare(measure.prepare(x, **first), measure.prepare(y, **first), **rest)


def pair(seed, n=60, d=5, e=9, shift=0.0):
    """Two representations that share some structure."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.2, 3, size=d)
    y = np.tanh(x @ rng.normal(size=(d, e))) + 0.5 * rng.normal(size=(n, e))
    return x + shift, y + shift


def low_rank(seed, n, d, rank, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)) + shift


def centred(z):
    return z - z.mean(axis=0)


CASES = {
    "ordinary": pair(0),
    "n much above d": pair(1, n=400, d=2, e=3),
    "d much above n": (low_rank(2, 40, 300, 6), low_rank(2, 40, 150, 9)),
    "offset": pair(3, n=32, d=6, e=8, shift=30.0),
    "duplicated rows": tuple(np.repeat(z, 3, axis=0) for z in pair(4, n=20)),
    "duplicated features": tuple(np.repeat(z, 2, axis=1) for z in pair(5)),
    "one constant feature": tuple(np.column_stack([z, np.full(len(z), 1e3)]) for z in pair(6)),
}
cases = pytest.mark.parametrize("case", list(CASES))
FULL = {"d much above n, of full rank": pair(7, n=20, d=100, e=150)}


# Procrustes


@pytest.mark.parametrize("case", [*CASES, *FULL])
def test_procrustes__nuclear_norm(case):
    x, y = (CASES | FULL)[case]
    a, b = centred(x), centred(y)
    expected = np.linalg.norm(a.T @ b, "nuc") / (np.linalg.norm(a) * np.linalg.norm(b))
    assert score("procrustes", x, y, form="nuclear") == pytest.approx(expected, rel=1e-10)
    angle = math.acos(expected)
    assert score("procrustes", x, y) == pytest.approx(1 - 2 * angle / math.pi, rel=1e-9)


def test_procrustes__scipy():
    x, y = pair(0, e=5)
    # SciPy's disparity is 1 − c², because it also scales the second.
    expected = math.sqrt(1 - procrustes(x, y)[2])
    assert score("procrustes", x, y, form="nuclear") == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_procrustes__small_angles_keep_their_digits(size):
    rng = np.random.default_rng(0)
    x = centred(rng.normal(size=(50, 4)))
    x /= np.linalg.norm(x)
    # At right angles to what x and rotations of x span, so that no rotation helps.
    more = centred(rng.normal(size=(50, 1)))
    more -= x @ np.linalg.lstsq(x, more, rcond=None)[0]
    more *= size / np.linalg.norm(more)
    y = np.column_stack([x, more])
    expected = 1 - 2 / math.pi * math.atan(size)
    assert 1 - score("procrustes", x, y) == pytest.approx(1 - expected, rel=1e-5)
    assert score("procrustes", x, y) == pytest.approx(expected, abs=1e-14)
    assert score("procrustes", y, x) == pytest.approx(expected, abs=1e-14)


# Canonical correlations


@cases
def test_cca__scipy_angles(case):
    x, y = CASES[case]
    # `orth` knows the rank from singular values too; the angles come from another algorithm.
    correlations = np.cos(subspace_angles(*[orth(centred(z), rcond=1e-9) for z in (x, y)]))
    assert score("cca", x, y) == pytest.approx(correlations.mean(), rel=1e-9)
    squared = score("cca", x, y, statistic="mean_squared")
    assert squared == pytest.approx((correlations**2).mean(), rel=1e-9)


def test_cca__scikit_learn():
    x, y = pair(0)
    first, second = CCA(n_components=5, max_iter=10_000, tol=1e-13).fit_transform(x, y)
    found = [np.corrcoef(first[:, i], second[:, i])[0, 1] for i in range(5)]
    assert score("cca", x, y) == pytest.approx(np.mean(found), rel=1e-6)


def test_cca__tolerance():
    x, y = pair(0)
    rng = np.random.default_rng(0)
    faint = np.column_stack([x, 1e-7 * rng.normal(size=(60, 3))])
    assert score("cca", faint, y) == pytest.approx(score("cca", x, y), abs=1e-6)
    assert abs(score("cca", faint, y, tolerance=0.0) - score("cca", x, y)) > 0.01


def test_cca__rank_from_what_float32_rounded():
    x = low_rank(0, 60, 12, 4, shift=5.0).astype(np.float32).astype(np.float64)
    eps = float(np.finfo(np.float32).eps)
    assert len(subspace.prepare_subspace(x, eps=eps).singular) == 4
    assert len(subspace.prepare_subspace(x).singular) == 12


def test_svcca__is_cca_of_principal_components():
    x, y = pair(0, n=100, d=12, e=20)
    for variance in (0.5, 0.9, 0.99):
        kept = [PCA(n_components=variance, svd_solver="full").fit_transform(z) for z in (x, y)]
        expected = score("cca", *kept)
        assert score("svcca", x, y, variance=variance) == pytest.approx(expected, rel=1e-9)
    for dimension in (1, 4, 100):
        kept = [
            PCA(n_components=min(dimension, z.shape[1]), svd_solver="full").fit_transform(z)
            for z in (x, y)
        ]
        expected = score("cca", *kept, tolerance=0.0)
        assert score("svcca", x, y, dimension=dimension) == pytest.approx(expected, rel=1e-9)


def test_svcca__as_few_components_as_reach_the_variance():
    x = np.kron(np.eye(2), np.array([[1.0], [-1.0]]))  # two components of equal variance
    x = np.vstack([x, np.zeros((4, 2))])
    state = subspace.prepare_subspace(x)
    assert [subspace._kept(state, v, 0) for v in (0.3, 0.5, 0.51, 1.0)] == [1, 1, 2, 2]


def pwcca(x, y):
    """From the eigenvectors of the covariances, feature by feature."""
    x, y = centred(x), centred(y)
    inverse_x, inverse_y = np.linalg.inv(x.T @ x), np.linalg.inv(y.T @ y)
    squares, directions = np.linalg.eig(inverse_x @ x.T @ y @ inverse_y @ y.T @ x)
    best = np.argsort(-squares.real)[: min(x.shape[1], y.shape[1])]
    total = weights = 0.0
    for which in best:
        variate = x @ directions[:, which].real
        variate /= np.linalg.norm(variate)
        weight = sum(abs(float(variate @ feature)) for feature in x.T)
        total += weight * math.sqrt(squares.real[which])
        weights += weight
    return total / weights


@pytest.mark.parametrize("case", ["ordinary", "n much above d", "offset", "duplicated rows"])
def test_pwcca__naive(case):
    x, y = CASES[case]
    assert score("pwcca", x, y) == pytest.approx(pwcca(x, y), rel=1e-9)
    assert score("pwcca", y, x) == pytest.approx(pwcca(y, x), rel=1e-9)


@pytest.mark.parametrize("name", CORRELATIONS)
def test_correlations__trivial(name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 40)), rng.normal(size=(20, 3))
    settings = {"variance": 1.0} if name == "svcca" else {}
    for args in [(x, y), (y, x), (x, x), (rng.normal(size=(20, 19)), y)]:
        with pytest.raises(
            InputError, match=r"^[xy] has rank 19 over 20 stimuli.* all 1"
        ) as caught:
            similarity(*args, name, **settings)
        assert "Use more stimuli" in str(caught.value)
    assert similarity(rng.normal(size=(20, 18)), y, name, **settings) < 1
    assert similarity(x, y, "svcca", dimension=5) < 1


@pytest.mark.parametrize("name", CORRELATIONS)
def test_correlations__one_wide_layer_leaves_the_others_theirs(name):
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(20, d)) for d in (5, 40, 6)]
    spec = measure_spec(name, **({"variance": 1.0} if name == "svcca" else {}))
    with pytest.raises(InputError, match=r"^xs\[1\] has rank 19"):
        compare(layers, spec)
    prepared = [prepare(x, [spec], dtype=np.float64) for x in layers]
    found = score_pairs(prepared, prepared, {"": spec})[""]
    wide = np.zeros((3, 3), bool)
    wide[1] = wide[:, 1] = True
    assert np.array_equal(found.undefined, wide)
    expected = compare([layers[0], layers[2]], spec)
    assert np.array_equal(found.values[np.ix_([0, 2], [0, 2])], expected)


def test_correlations__ranks_that_force_some_to_one():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 12)), rng.normal(size=(20, 11))
    a, b = (subspace.prepare_subspace(z).left for z in (x, y))
    correlations = np.linalg.svd(a.T @ b, compute_uv=False)
    assert (correlations > 1 - 1e-12).sum() == 12 + 11 - 19
    assert 4 / 11 < score("cca", x, y) < 1


# GULP


@pytest.mark.parametrize("case", [*CASES, *FULL])
@pytest.mark.parametrize("ridge", [1e-4, 0.01, 10.0])
def test_gulp__covariances(case, ridge):
    x, y = (CASES | FULL)[case]
    n = len(x)
    x, y = (centred(z) / np.linalg.norm(centred(z)) * math.sqrt(n) for z in (x, y))
    inverse_x, inverse_y = (np.linalg.inv(z.T @ z / n + ridge * np.eye(z.shape[1])) for z in (x, y))
    across = x.T @ y / n
    cross = np.trace(inverse_x @ across @ inverse_y @ across.T)
    own_x = np.trace(inverse_x @ (x.T @ x / n) @ inverse_x @ (x.T @ x / n))
    own_y = np.trace(inverse_y @ (y.T @ y / n) @ inverse_y @ (y.T @ y / n))
    expected = cross / math.sqrt(own_x * own_y)
    assert score("gulp", x, y, ridge=ridge) == pytest.approx(expected, rel=1e-9)


def test_gulp__a_large_ridge_gives_cka():
    x, y = CASES["ordinary"]
    assert score("gulp", x, y, ridge=1e9) == pytest.approx(similarity(x, y, "cka"), rel=1e-8)


def test_gulp__is_the_cosine_of_hat_matrices():
    x, y = CASES["ordinary"]
    hats = []
    for z in (x, y):
        z = centred(z) / np.linalg.norm(centred(z))
        hats.append(z @ np.linalg.inv(z.T @ z + 0.1 * np.eye(z.shape[1])) @ z.T)
    expected = (hats[0] * hats[1]).sum() / (np.linalg.norm(hats[0]) * np.linalg.norm(hats[1]))
    assert score("gulp", x, y, ridge=0.1) == pytest.approx(expected, rel=1e-10)


# Linear regression


def regression(x, y, folds, alpha, seed):
    """scikit-learn's Ridge and KFold."""
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    errors = total = 0.0
    for train, held_out in KFold(folds).split(x):
        eigenvalues = np.linalg.eigvalsh(centred(x[train]).T @ centred(x[train]))
        ridge = Ridge(alpha=alpha * eigenvalues.mean(), solver="svd").fit(x[train], y[train])
        errors += ((y[held_out] - ridge.predict(x[held_out])) ** 2).sum()
        total += ((y[held_out] - y[train].mean(axis=0)) ** 2).sum()
    return 1 - errors / total


@pytest.mark.parametrize("case", [*CASES, *FULL])
def test_linear_regression__scikit_learn(case):
    x, y = (CASES | FULL)[case]
    for folds, alpha, seed in [(5, 0.1, 0), (7, 1e-3, 3)]:
        found = score("linear_regression", x, y, folds=folds, alpha=alpha, seed=seed)
        assert found == pytest.approx(regression(x, y, folds, alpha, seed), rel=1e-9, abs=1e-10)
        found = score("linear_regression", y, x, folds=folds, alpha=alpha, seed=seed)
        assert found == pytest.approx(regression(y, x, folds, alpha, seed), rel=1e-9, abs=1e-10)


def test_linear_regression__without_penalty():
    x, y = CASES["duplicated features"]  # least squares of least norm
    plain = score("linear_regression", x[:, ::2], y, alpha=0.0)
    assert score("linear_regression", x, y, alpha=0.0) == pytest.approx(plain, rel=1e-9)
    exact = score("linear_regression", x, x @ np.ones((10, 3)), alpha=0.0)
    assert exact == pytest.approx(1.0, abs=1e-12)


def test_linear_regression__one_stimulus_unlike_the_others():
    x, y = np.zeros((12, 2)), pair(0, n=12)[1]
    x[4] = 1.0  # constant where it is held out
    assert math.isfinite(score("linear_regression", x, y))
    assert math.isfinite(score("linear_regression", x, y, alpha=0.0))
    assert math.isfinite(score("linear_regression", y, x))


def test_linear_regression__too_few_stimuli():
    with pytest.raises(InputError, match="fewer folds"):
        score("linear_regression", *pair(0, n=4))


def test_linear_regression__nothing_to_predict_is_about_zero():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 4)), rng.normal(size=(500, 6))
    assert -0.05 < score("linear_regression", x, y) < 0.01


# Soft matching


def correlations(x, y):
    return np.array([[np.corrcoef(a, b)[0, 1] for b in y.T] for a in x.T])


def transport(gains):
    """The linear programme as the paper has it, by the simplex method."""
    of_x, of_y = gains.shape
    rows = np.kron(np.eye(of_x), np.ones(of_y))
    columns = np.kron(np.ones(of_x), np.eye(of_y))
    solved = linprog(
        -gains.ravel(),
        A_eq=np.vstack([rows, columns]),
        b_eq=np.concatenate([np.full(of_x, 1 / of_x), np.full(of_y, 1 / of_y)]),
        method="highs-ds",
    )
    return -solved.fun


@pytest.mark.parametrize(("d", "e"), [(1, 1), (6, 6), (4, 8), (9, 6), (7, 11), (1, 5), (30, 23)])
def test_soft_matching__linear_programme(d, e):
    x, y = pair(0, d=d, e=e)
    gains = correlations(x, y)
    found = score("soft_matching", x, y)
    assert found == pytest.approx(transport(gains), rel=1e-9)
    if d == e:
        matched = linear_sum_assignment(gains, maximize=True)
        assert found == pytest.approx(gains[matched].mean(), rel=1e-12)
    if math.factorial(d) < 1000 and d == e:
        every = itertools.permutations(range(d))
        assert found == pytest.approx(max(gains[range(d), p].mean() for p in every), rel=1e-12)


def test_soft_matching__assignment_and_programme_agree(monkeypatch):
    x, y = pair(0, d=12, e=18)
    assigned = score("soft_matching", x, y)
    monkeypatch.setattr(matching, "MAX_ASSIGNMENT", 0)
    assert score("soft_matching", x, y) == pytest.approx(assigned, rel=1e-9)


def test_soft_matching__constant_features_are_left_out():
    x, y = pair(0)
    wider = np.column_stack([np.full(60, 7.0), x, np.zeros(60)])
    assert score("soft_matching", wider, y) == pytest.approx(score("soft_matching", x, y))


def test_soft_matching__sign_and_offset():
    x = np.random.default_rng(0).normal(size=(32, 1))
    assert score("soft_matching", x, -2.0 * x + 30.0) == pytest.approx(-1.0, abs=1e-12)
    assert score("soft_matching", x, 1e-200 * x) == pytest.approx(1.0, abs=1e-12)


def test_soft_matching__too_many_features(monkeypatch):
    monkeypatch.setattr(matching, "MAX_PROGRAM", 100)
    x, y = pair(0, d=17, e=31)
    with pytest.raises(InputError, match="17 features with 31"):
        score("soft_matching", x, y)


# All of them


def variants():
    for name in MEASURES:
        yield name, {}
    yield "procrustes", {"form": "nuclear"}
    yield "cca", {"statistic": "mean_squared"}
    yield "svcca", {"dimension": 3}


measures = pytest.mark.parametrize(("name", "parameters"), list(variants()), ids=str)


@measures
@settings(max_examples=20, deadline=None)
@given(d=st.integers(1, 8), e=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_properties(name, parameters, d, e, seed):
    rng = np.random.default_rng(seed)
    x, y = pair(seed, n=20, d=d, e=e)
    found = score(name, x, y, **parameters)
    same = pytest.approx(found, rel=1e-8, abs=1e-9)
    assert found <= 1
    if name != "linear_regression":
        assert found >= (-1 if name == "soft_matching" else 0)
        assert score(name, x, x, **parameters) == pytest.approx(1.0, abs=1e-9)
    if name not in ("linear_regression", "pwcca"):
        assert score(name, y, x, **parameters) == same

    assert score(name, 4.1 * x + 5.0, 0.03 * y - 2.0, **parameters) == same
    shuffled = x[:, rng.permutation(d)], y[:, rng.permutation(e)]
    assert score(name, *shuffled, **parameters) == same
    if name != "linear_regression":  # whose folds are drawn by place
        order = rng.permutation(20)
        assert score(name, x[order], y[order], **parameters) == same
    turns = [np.linalg.qr(rng.normal(size=(k, k)))[0] for k in (d, e)]
    if name not in ("soft_matching", "pwcca"):
        assert score(name, x @ turns[0], y @ turns[1], **parameters) == same
    if name in ("cca", "pwcca"):
        bent = turns[1] * rng.uniform(0.5, 2, size=e)
        assert score(name, x, y @ bent, **parameters) == same
    if name == "cca":
        bent = turns[0] * rng.uniform(0.5, 2, size=d)
        assert score(name, x @ bent, y, **parameters) == same
    if name == "soft_matching":
        stretched = x * rng.uniform(0.1, 10, size=d)
        assert score(name, stretched, y, **parameters) == same


@measures
def test_scale_of_numbers_is_nothing(name, parameters):
    x, y = pair(0)
    found = score(name, x, y, **parameters)
    for scale in (1e-200, 1e200):
        assert score(name, scale * x, y, **parameters) == pytest.approx(found, rel=1e-9)
        assert score(name, x, scale * y, **parameters) == pytest.approx(found, rel=1e-9)


@measures
def test_constant_layer(name, parameters):
    x, _ = pair(0)
    for constant in (np.zeros_like(x), np.full_like(x, 0.1), np.tile(x[0], (len(x), 1))):
        first = {k: v for k, v in parameters.items() if k in MEASURES[name].prepares}
        state = MEASURES[name].prepare(constant, **first)
        assert not state.defined
        assert math.isnan(MEASURES[name].compare(state, state))
        assert math.isnan(score(name, x, constant, **parameters))
        assert math.isnan(score(name, constant, x, **parameters))


@measures
def test_unit__what_float32_rounded_is_constant(name, parameters):
    x = np.full((20, 3), 0.1) + np.random.default_rng(0).uniform(-3e-9, 3e-9, size=(20, 3))
    first = {k: v for k, v in parameters.items() if k in MEASURES[name].prepares}
    assert MEASURES[name].prepare(x, **first).defined
    assert not MEASURES[name].prepare(x, eps=float(np.finfo(np.float32).eps), **first).defined
