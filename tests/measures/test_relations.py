"""Relations: the measures that share their machinery, against loops and other people's code."""

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dcor
from rsatoolbox.data import Dataset
from rsatoolbox.rdm import calc_rdm
from rsatoolbox.rdm import compare as rsa_compare
from scipy.spatial.distance import pdist, squareform

from pipeline.errors import InputError
from pipeline.measures import (
    compare,
    measure_spec,
    prepare,
    score_pairs,
    similarity,
)
from pipeline.measures.dense import cka, rsa

CHOICES = [
    ("cka_rbf", {"estimator": "biased"}),
    ("cka_rbf", {"estimator": "debiased", "bandwidth": 0.4}),
    ("cka_rbf", {"bandwidth": 2.5}),
    ("distance_correlation", {"estimator": "biased"}),
    ("distance_correlation", {"estimator": "debiased"}),
    *(
        ("rsa", {"dissimilarity": d, "comparison": c})
        for d in ("correlation", "cosine", "euclidean")
        for c in ("pearson", "spearman")
    ),
]
IDS = [f"{name}-{'-'.join(map(str, p.values()))}" for name, p in CHOICES]


def cases():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 6)), rng.normal(size=(24, 9))
    y[:, :3] += x[:, :3]
    repeated = y.copy()
    repeated[12:] = repeated[:12]
    yield "ordinary", x, y
    yield "offset", x + 30.0, y - 30.0
    yield "wide", rng.normal(size=(16, 300)), rng.normal(size=(16, 40))
    yield "tall", rng.normal(size=(60, 2)), rng.normal(size=(60, 3))
    yield "duplicated rows", x, repeated
    yield "ties", rng.integers(0, 2, (24, 4)) + 0.0, rng.integers(0, 3, (24, 3)) + 0.0
    yield "heavy tails", rng.standard_t(2.5, (24, 5)), rng.standard_t(2.5, (24, 8))
    yield "large and small", 1e150 * x, 1e-150 * y
    yield "digits", *reference.digits_layers(40)


CASES = list(cases())


@pytest.mark.parametrize(("name", "parameters"), CHOICES, ids=IDS)
@pytest.mark.parametrize("case", CASES, ids=[c[0] for c in CASES])
def test_similarity__equals_loops(name, parameters, case):
    what, x, y = case
    plain = (x, y)
    if what == "large and small":  # squares of these overflow in loops
        plain = (x / 1e150, y / 1e-150)
    expected = reference.MEASURES[name](*plain, **parameters)
    assert similarity(x, y, name, **parameters) == pytest.approx(expected, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize(("name", "parameters"), CHOICES, ids=IDS)
@pytest.mark.parametrize("case", CASES[:5], ids=[c[0] for c in CASES[:5]])
def test_similarity__single_precision(name, parameters, case):
    """To 1e-5 of the value and a thousandth of what chance varies by."""
    _, x, y = case
    x, y = x.astype(np.float32), y.astype(np.float32)
    exact = similarity(x.astype(float), y.astype(float), name, **parameters)
    rng = np.random.default_rng(1)
    null = [similarity(x, y[rng.permutation(len(y))], name, **parameters) for _ in range(50)]
    error = abs(similarity(x, y, name, **parameters) - exact)
    assert error <= 1e-5 * abs(exact) + 1e-3 * np.std(null)


@pytest.mark.parametrize(("name", "parameters"), CHOICES, ids=IDS)
def test_compare__tiles_equal_the_whole(name, parameters):
    rng = np.random.default_rng(2)
    xs = [rng.normal(size=(37, d)) for d in (3, 8, 50)]
    specs = {"": measure_spec(name, **parameters)}
    prepared = [prepare(x, specs, dtype=np.float64) for x in xs]
    whole = compare(xs, name, **parameters)
    for tile in (5, 16, 37):
        tiled = score_pairs(prepared, prepared, specs, tile=tile)[""].values
        np.testing.assert_allclose(tiled, whole, atol=1e-12)
    np.testing.assert_allclose(whole, whole.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(whole), 1.0, atol=1e-12)


@pytest.mark.parametrize(("name", "parameters"), CHOICES, ids=IDS)
def test_permuted__equals_preparing_again(name, parameters):
    rng = np.random.default_rng(3)
    x, y, order = rng.normal(size=(20, 4)), rng.normal(size=(20, 5)), rng.permutation(20)
    specs = {"": measure_spec(name, **parameters)}
    first, second = (prepare(z, specs, dtype=np.float64) for z in (x, y))
    found = score_pairs([first], [second.permuted(order)], specs)[""].values[0, 0]
    assert found == pytest.approx(similarity(x, y[order], name, **parameters), abs=1e-12)


def test_rsa__equals_rsatoolbox():
    x, y = reference.digits_layers()
    # ranks of distances are ranks of their squares, which rsatoolbox takes
    for method, ours, theirs in (
        ("correlation", "pearson", "corr"),
        ("correlation", "spearman", "spearman"),
        ("euclidean", "spearman", "spearman"),
    ):
        rdms = [calc_rdm(Dataset(z), method=method) for z in (x, y)]
        expected = rsa_compare(*rdms, method=theirs)[0, 0]
        found = similarity(x, y, "rsa", dissimilarity=method, comparison=ours)
        assert found == pytest.approx(expected, abs=1e-9)


def test_rsa__euclidean_equals_the_correlation_of_scipys_distances():
    x, y = reference.digits_layers()
    expected = np.corrcoef(pdist(x), pdist(y))[0, 1]
    assert similarity(x, y, "rsa", dissimilarity="euclidean") == pytest.approx(expected, abs=1e-10)


def test_distance_correlation__equals_dcor():
    x, y = reference.digits_layers()
    found = similarity(x, y, "distance_correlation", estimator="biased")
    assert found == pytest.approx(dcor.distance_correlation_sqr(x, y), abs=1e-10)
    found = similarity(x, y, "distance_correlation")
    assert found == pytest.approx(dcor.u_distance_correlation_sqr(x, y), abs=1e-10)


def test_cka_rbf__equals_dcor_of_the_kernel():
    x, y = reference.digits_layers()
    kernels = []
    for z in (x, y):
        d = squareform(pdist(z))
        kernel = np.exp(-(d**2) / (2 * (0.7 * np.median(pdist(z))) ** 2))
        kernels.append(kernel - np.eye(len(z)))  # of a matrix with zero diagonal
    a, b = (dcor.u_centered(k) for k in kernels)
    expected = dcor.u_product(a, b) / np.sqrt(dcor.u_product(a, a) * dcor.u_product(b, b))
    found = similarity(x, y, "cka_rbf", bandwidth=0.7, estimator="debiased")
    assert found == pytest.approx(expected, abs=1e-10)


def test_cka_rbf__wide_kernel_is_linear_cka():
    x, y = reference.digits_layers()
    for estimator, linear in (("biased", "cka"), ("debiased", "cka_debiased")):
        found = similarity(x, y, "cka_rbf", bandwidth=100, estimator=estimator)
        assert found == pytest.approx(similarity(x, y, linear), abs=1e-4)


def test_cka_rbf__median_of_more_stimuli_than_are_paired(monkeypatch):
    x = np.random.default_rng(0).normal(size=(300, 4))
    y = x[:, :2]
    exact = similarity(x, y, "cka_rbf")
    monkeypatch.setattr(cka, "MEDIAN_ROWS", 100)
    assert similarity(x, y, "cka_rbf") == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(("name", "parameters"), CHOICES, ids=IDS)
def test_similarity__constant_layer_is_refused(name, parameters):
    x = np.random.default_rng(0).normal(size=(20, 4))
    with pytest.raises(InputError, match=r"^y is constant as far as "):
        similarity(x, np.full((20, 3), 7.1), name, **parameters)


@pytest.mark.parametrize("dissimilarity", ["correlation", "cosine", "euclidean"])
def test_rsa__all_equally_far_apart_is_refused(dissimilarity):
    x = np.random.default_rng(0).normal(size=(8, 4))
    with pytest.raises(InputError, match=r"all equally far apart"):
        similarity(x, np.eye(8), "rsa", dissimilarity=dissimilarity)


@pytest.mark.parametrize(("name", "parameters"), CHOICES, ids=IDS)
def test_similarity__too_few_stimuli(name, parameters):
    x = np.random.default_rng(0).normal(size=(3, 4))
    with pytest.raises(InputError, match=r"x has 3 stimuli \(rows\); .* needs at least 4"):
        similarity(x, x, name, **parameters)


def test_rsa__too_many_to_rank(monkeypatch):
    monkeypatch.setattr(rsa, "MAX_RANKED", 10)
    x = np.random.default_rng(0).normal(size=(11, 4))
    with pytest.raises(InputError, match=r"11 stimuli have too many\. Compare a subset of at most"):
        similarity(x, x, "rsa", comparison="spearman")


def test_measure_spec__one_and_one_point_zero_are_one_measure():
    assert measure_spec("cka_rbf", bandwidth=1) == measure_spec("cka_rbf", bandwidth=1.0)
    with pytest.raises(InputError, match=r"must be a number from 0\.01 to 100"):
        measure_spec("cka_rbf", bandwidth=0)


def test_rsa__row_that_is_constant_has_no_direction():
    x, y = np.random.default_rng(0).normal(size=(2, 12, 5))
    x[3] = 4.2
    expected = reference.rsa(x, y)
    assert np.isfinite(expected)
    assert similarity(x, y, "rsa") == pytest.approx(expected, abs=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from(CHOICES), st.integers(4, 20),
    st.integers(3, 12), st.integers(3, 12), st.floats(0.01, 100), st.floats(-50, 50),
)  # fmt: skip
def test_similarity__invariances_symmetry_and_range(seed, choice, n, d, e, scale, offset):
    name, parameters = choice
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, e))
    record = measure_spec(name, **parameters).measure
    score = similarity(x, y, name, **parameters)
    assert record.range[0] - 1e-9 <= score <= record.range[1] + 1e-9
    assert similarity(y, x, name, **parameters) == pytest.approx(score, abs=1e-9)
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    changes = {
        "translation": x + offset * rng.normal(size=d),
        "isotropic scaling": scale * x,
        "orthogonal transformation": x @ rotation,
    }
    kind = parameters.get("dissimilarity")
    holds = {
        **dict.fromkeys(record.invariances, True),
        **({"translation": True, "orthogonal transformation": True} if kind == "euclidean" else {}),
        **({"orthogonal transformation": True} if kind == "cosine" else {}),
    }
    for change in holds:
        found = similarity(changes[change], y, name, **parameters)
        assert found == pytest.approx(score, abs=1e-7), change
    if kind in ("cosine", "correlation"):
        rows = x * rng.uniform(0.1, 10, size=(n, 1))
        rows = rows + (rng.normal(size=(n, 1)) if kind == "correlation" else 0)
        assert similarity(rows, y, name, **parameters) == pytest.approx(score, abs=1e-7)


@pytest.mark.parametrize(
    ("kind", "digits"), [(np.float64, 1e-12), (np.float32, 1e-7), (np.float16, 1e-4)]
)
def test_rsa__ranks_of_what_storage_rounded_are_ties(kind, digits):
    """Rows of one direction are equally far from any other, but for the rounding of features."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=95)
    x = np.outer(rng.uniform(0.5, 2, 25), direction) + rng.normal(size=(25, 1))
    x = np.concatenate([x, rng.normal(size=(5, 95))])
    same = x * rng.uniform(0.5, 2, (30, 1)) + rng.normal(size=(30, 1))  # nothing, to correlations
    y = rng.normal(size=(30, 40))
    spec = measure_spec("rsa", comparison="spearman")
    x, same, other = (z.astype(kind) for z in (x, same, y))
    assert similarity(x, same, spec) == 1.0
    assert similarity(x, other, spec) == pytest.approx(0.0579258, abs=max(digits, 1e-6))


@pytest.mark.parametrize("dissimilarity", ["correlation", "cosine", "euclidean"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_rsa__ranks_in_float32_are_those_of_float64(dissimilarity, offset):
    """Data without ties gain none that count."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 20))
    y = x[:, :10] + rng.normal(size=(300, 10))
    x, y = ((z + offset).astype(np.float32) for z in (x, y))
    spec = measure_spec("rsa", comparison="spearman", dissimilarity=dissimilarity)
    exact = similarity(x.astype(float), y.astype(float), spec)
    assert similarity(x, y, spec) == pytest.approx(exact, abs=1e-5)


def test_ranked__runs_of_close_values_keep_their_order():
    entries = squareform(np.arange(1, 46) * 1e-3)  # each within noise of the next
    found = rsa.ranked(entries, 1e-3 * 1.01)[np.triu_indices(10, k=1)]
    assert (np.diff(found) >= 0).all()
    assert len(np.unique(found)) == 6  # pieces of eight or nine
    apart = rsa.ranked(entries, 0.9e-3)[np.triu_indices(10, k=1)]
    assert len(np.unique(apart)) == 45
