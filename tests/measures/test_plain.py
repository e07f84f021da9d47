import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from pipeline.errors import InputError
from pipeline.measures import compare, get_measure, list_measures, measure_spec, similarity

RELATED = [m for m in list_measures() if m.engine != "pairwise"]  # these have tests of their own
NAMES = [measure.name for measure in RELATED]
SHAPES = [(24, 5, 9), (16, 200, 3), (16, 300, 400), (60, 2, 2), (32, 31, 33)]


def pair(n, d1, d2, seed=0, offset=0.0):
    """Two representations that have something in common."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 2))
    x = common @ rng.normal(size=(2, d1)) + rng.normal(size=(n, d1))
    y = common @ rng.normal(size=(2, d2)) + rng.normal(size=(n, d2))
    return x + offset, y + offset


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_similarity__equals_the_loops(name, shape):
    x, y = pair(*shape)
    expected = reference.MEASURES[name](x, y)
    assert similarity(x, y, name) == pytest.approx(expected, abs=1e-10)
    single = x.astype(np.float32), y.astype(np.float32)
    assert similarity(*single, name) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_similarity__equals_the_loops_on_digits(name):
    x, y = reference.digits_layers()
    expected = reference.MEASURES[name](x, y)
    assert 0.1 < expected < 0.999
    assert similarity(x, y, name) == pytest.approx(expected, abs=1e-10)
    single = x.astype(np.float32), y.astype(np.float32)
    assert similarity(*single, name) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_similarity__keeps_its_digits_under_an_offset(name):
    x, y = pair(32, 100, 50, offset=30.0)
    x, y = x.astype(np.float32), y.astype(np.float32)
    expected = reference.MEASURES[name](x, y)
    assert similarity(x, y, name) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("neighbours", ["cosine", "inner", "euclidean"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_similarity__every_ranking_equals_the_loops(neighbours, offset):
    x, y = pair(32, 6, 40, offset=offset)
    x, y = x.astype(np.float32), y.astype(np.float32)
    expected = reference.mutual_knn(x, y, 5, neighbours)
    assert similarity(x, y, "mutual_knn", k=5, neighbours=neighbours) == expected


def test_similarity__cka_debiased_can_be_negative_and_has_no_bias():
    rng = np.random.default_rng(0)
    scores = [
        similarity(rng.normal(size=(20, 200)), rng.normal(size=(20, 200)), "cka_debiased")
        for _ in range(50)
    ]
    assert min(scores) < 0
    assert abs(np.mean(scores)) < 4 * np.std(scores) / 50**0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_similarity__with_itself_is_one(name, dtype):
    for shape in SHAPES:
        x = pair(*shape, offset=3.0)[0].astype(dtype)
        tolerance = 1e-6 if dtype == np.float32 else 1e-12
        assert similarity(x, x, name) == pytest.approx(1.0, abs=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_similarity__does_not_overflow(name, scale):
    x, y = pair(20, 4, 6)
    assert similarity(scale * x, y, name) == pytest.approx(similarity(x, y, name), abs=1e-10)


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8, bool])
def test_similarity__takes_any_real_dtype(dtype):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 2, size=(20, 12)).astype(dtype) for _ in range(2))
    assert similarity(x, y) == pytest.approx(reference.cka(x, y), abs=1e-5)


def test_similarity__takes_a_spec():
    x, y = pair(20, 4, 6)
    spec = measure_spec("mutual_knn", k=3)
    assert similarity(x, y, spec) == similarity(x, y, "mutual_knn", k=3)
    with pytest.raises(InputError, match=r"is a spec with its parameters resolved; k cannot be"):
        similarity(x, y, spec, k=4)


def test_compare__is_similarity_of_each_pair():
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(25, d)) for d in (3, 10, 40, 3)]
    for name in NAMES:
        table = compare(xs, name)
        assert table.shape == (4, 4)
        assert table.dtype == np.float64
        expected = [[similarity(x, y, name) for y in xs] for x in xs]
        np.testing.assert_allclose(table, expected, atol=1e-12)
        np.testing.assert_array_equal(table, table.T)


# Wrong input.


def test_similarity__different_numbers_of_stimuli():
    with pytest.raises(InputError, match=r"x has 20 stimuli \(rows\) and y has 21; row i of every"):
        similarity(np.eye(20), np.eye(21))


@pytest.mark.parametrize("shape", [(20,), (5, 4, 3)])
def test_similarity__not_a_matrix(shape):
    with pytest.raises(InputError, match=r"y has shape \(.*\); a representation is a matrix"):
        similarity(np.ones((20, 3)), np.ones(shape))


def test_similarity__no_features():
    with pytest.raises(InputError, match=r"x has shape \(20, 0\): there are no features"):
        similarity(np.ones((20, 0)), np.ones((20, 2)))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_similarity__not_finite_names_array_and_row(wrong):
    x, y = pair(20, 4, 6)
    y[[7, 11], 2] = wrong
    with pytest.raises(
        InputError, match=r"y holds NaN or infinity in 2 of 20 rows, first in row 7"
    ):
        similarity(x, y)


@pytest.mark.parametrize("array", [np.ones((20, 2), complex), np.full((20, 2), "a")])
def test_similarity__not_real(array):
    with pytest.raises(InputError, match=r"x has dtype .*; a representation holds real numbers"):
        similarity(array, np.ones((20, 2)))


@pytest.mark.parametrize(
    ("name", "n", "needs"), [("cka", 2, 3), ("cka_debiased", 3, 4), ("mutual_knn", 11, 12)]
)
def test_similarity__too_few_stimuli(name, n, needs):
    x, y = pair(n, 4, 6)
    with pytest.raises(InputError, match=rf"x has {n} stimuli \(rows\); {name}.* at least {needs}"):
        similarity(x, y, name)
    assert np.isfinite(similarity(*pair(needs, 4, 6), name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e30, 1e-30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_similarity__constant_representation(name, value, dtype):
    x, y = pair(20, 4, 6)
    with pytest.raises(InputError, match=r"y is constant as far as .* so the score is undefined"):
        similarity(x, np.full_like(y, value, dtype=dtype), name)


@pytest.mark.parametrize("name", NAMES)
def test_similarity__constant_up_to_rounding(name):
    x, _ = pair(20, 4, 6)
    rng = np.random.default_rng(0)
    row = rng.normal(size=6).astype(np.float32)
    noisy = np.where(rng.random((20, 6)) < 0.5, row, np.nextafter(row, np.float32(9)))
    with pytest.raises(InputError, match=r"y is constant"):
        similarity(x, noisy, name)


def test_similarity__one_huge_constant_feature_is_not_constant():
    x, y = pair(20, 4, 6)
    x = x.astype(np.float32)
    massive = np.column_stack([x, np.full(20, 1e8, np.float32)])
    assert similarity(massive, y) == pytest.approx(similarity(x, y), abs=1e-6)


@pytest.mark.parametrize("dissimilarity", ["correlation", "cosine"])
@pytest.mark.parametrize("offset", [1e3, 1e4, 1e5])
@pytest.mark.parametrize("column", [slice(2, 3), slice(None)], ids=["one feature", "all"])
def test_similarity__directions_that_a_large_offset_draws_together(dissimilarity, offset, column):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 24))
    y = (x + rng.normal(size=(64, 24))).astype(np.float32)
    x[:, column] += offset
    x = x.astype(np.float32)
    between = [pdist(each.astype(np.float64), dissimilarity) for each in (x, y)]
    expected = np.corrcoef(*between)[0, 1]
    found = similarity(x, y, "rsa", dissimilarity=dissimilarity)
    # scipy takes 1 − u·v, of which an offset of 1e5 leaves six digits
    assert found == pytest.approx(expected, abs=1e-6)


def test_similarity__directions_that_differ_by_rounding_are_constant():
    x = np.outer(np.linspace(1, 2, 20), np.linspace(3, 7, 6)).astype(np.float32)
    with pytest.raises(InputError, match="x is constant as far as rsa"):
        similarity(x, pair(20, 4, 6)[1].astype(np.float32), "rsa", dissimilarity="cosine")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_similarity__equidistant_stimuli_have_no_debiased_score(dtype):
    x = np.eye(20, dtype=dtype)
    with pytest.raises(InputError, match=r"x is constant as far as cka_debiased can see.*equally"):
        similarity(x, pair(20, 4, 6)[1], "cka_debiased")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_similarity__a_single_outlier_has_no_debiased_score(dtype):
    # All others are at one point: U-centring leaves nothing.
    _, y = pair(20, 4, 6)
    outlier = np.full((20, 2), 0.3, dtype)
    outlier[7] = 2.1
    with pytest.raises(InputError, match=r"x is constant as far as cka_debiased can see"):
        similarity(outlier, y, "cka_debiased")
    assert similarity(outlier, y, "cka") == pytest.approx(reference.cka(outlier, y), abs=1e-6)


@pytest.mark.parametrize(
    "x",
    [
        [[1.0, 2.0], [3.0]],
        torch.zeros((20, 3), requires_grad=True),
        torch.zeros((20, 3), dtype=torch.bfloat16),
    ],
    ids=["ragged", "with a gradient", "bfloat16"],
)
def test_similarity__what_is_no_array(x):
    with pytest.raises(InputError, match=r"^x cannot be read as an array: .*x\.detach"):
        similarity(x, pair(20, 4, 6)[1])


def test_measure_spec__numbers_of_numpy_are_numbers():
    spec = measure_spec("mutual_knn", k=np.int64(5))
    assert spec == measure_spec("mutual_knn", k=5)
    assert type(spec["k"]) is int
    assert type(measure_spec("cka_rbf", bandwidth=np.float32(0.5))["bandwidth"]) is float
    with pytest.raises(InputError, match=r"'ridge' .* is inf; it must be a number of at least"):
        measure_spec("gulp", ridge=float("inf"))
    with pytest.raises(InputError, match=r"There is no measure \['cka'\]"):
        measure_spec(["cka"])


def test_compare__names_the_array():
    x, y = pair(20, 4, 6)
    with pytest.raises(InputError, match=r"xs\[2\] is constant"):
        compare([x, y, np.ones((20, 3))])
    with pytest.raises(InputError, match=r"xs\[0\] has 20 stimuli \(rows\) and xs\[1\] has 19"):
        compare([x, y[:19]])
    with pytest.raises(InputError, match=r"the list of representations is empty"):
        compare([])


# Properties.

# From two features on: with one, cosines are ±1, all tied, and ties depend on the order of rows.
sizes = st.tuples(st.integers(13, 30), st.integers(2, 40), st.integers(2, 40))
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(size=sizes, seed=seeds, offset=st.sampled_from([0.0, 5.0]))
def test_similarity__symmetric_in_range_and_blind_to_joint_order(name, size, seed, offset):
    x, y = pair(*size, seed=seed, offset=offset)
    score = similarity(x, y, name)
    assert similarity(y, x, name) == pytest.approx(score, abs=1e-12)
    low, high = get_measure(name).range
    assert low - 1e-12 <= score <= high + 1e-12
    order = np.random.default_rng(seed).permutation(len(x))
    assert similarity(x[order], y[order], name) == pytest.approx(score, abs=1e-10)


def changed(x, invariance, rng):
    if invariance == "translation":
        return x + rng.normal(size=x.shape[1])
    if invariance == "isotropic scaling":
        return x * rng.uniform(0.1, 10)
    if invariance == "row scaling":
        return x * rng.uniform(0.1, 10, size=(len(x), 1))
    return x @ np.linalg.qr(rng.normal(size=(x.shape[1], x.shape[1])))[0]


CASES = [(m.name, {}, i) for m in RELATED for i in m.invariances]
CASES += [("mutual_knn", {"neighbours": "cosine"}, "row scaling")]
CASES += [
    ("mutual_knn", {"neighbours": "euclidean"}, i) for i in ("translation", "isotropic scaling")
]
CASES += [("mutual_knn", {"neighbours": "inner"}, "orthogonal transformation")]


@pytest.mark.parametrize(("name", "parameters", "invariance"), CASES)
@settings(max_examples=25, deadline=None)
@given(size=sizes, seed=seeds)
def test_similarity__invariances(name, parameters, invariance, size, seed):
    x, y = pair(*size, seed=seed)
    other = changed(x, invariance, np.random.default_rng(seed))
    score = similarity(x, y, name, **parameters)
    assert similarity(other, y, name, **parameters) == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_similarity__many_equal_numbers_are_constant(name):
    x = np.random.default_rng(0).normal(size=(3001, 2))
    with pytest.raises(InputError, match=r"y is constant"):
        similarity(x, np.full((3001, 2), 0.1), name)
