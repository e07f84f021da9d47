"""A score is the same to the last bit whatever is computed beside it, and always in its range."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.calibration import draw, nulls_of, permutation_null, permutations
from pipeline.measures import (
    compare,
    list_measures,
    measure_spec,
    prepare,
    score_pairs,
    score_permuted,
    similarity,
)
from pipeline.measures.dense import exact

SPECS = {
    "cka": measure_spec("cka"),
    "cka_debiased": measure_spec("cka_debiased"),
    "rbf": measure_spec("cka_rbf", bandwidth=0.5),
    "wide": measure_spec("cka_rbf", bandwidth=50, estimator="debiased"),
    "rsa": measure_spec("rsa"),
    "ranks": measure_spec("rsa", dissimilarity="euclidean", comparison="spearman"),
    "distance": measure_spec("distance_correlation"),
    "prh": measure_spec("cka_debiased", preset="prh"),
    "knn": measure_spec("mutual_knn", k=5),
}
TYPES = [np.float32, np.float64]


def layers(n, widths, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 4))
    found = [common @ rng.normal(size=(4, d)) + rng.normal(size=(n, d)) for d in widths]
    found[0][:20] = np.maximum(found[0][:20], 0) * (np.arange(20) % 2)[:, None]  # ties
    return found


def bits(values):
    return np.ascontiguousarray(values).tobytes()


@pytest.fixture(scope="module", params=[(150, 40), (300, 700), (131, 131)], ids=str)
def arrays(request):
    """Relations that are formed when asked for, and such as are laid out."""
    n, wide = request.param
    return layers(n, (3, wide, 8, 20, wide + 5, 2, 60))


@pytest.fixture(scope="module", params=TYPES, ids=["float32", "float64"])
def case(request, arrays):
    prepared = [prepare(a, SPECS, dtype=request.param) for a in arrays]
    return arrays, request.param, prepared, score_pairs(prepared, prepared, SPECS)


def test_score_pairs__alone_and_in_company(case):
    arrays, dtype, _, whole = case
    for label, spec in SPECS.items():
        for i, j in ((0, 1), (4, 2), (1, 4), (5, 0), (3, 3)):
            x, y = (prepare(arrays[k], [spec], dtype=dtype) for k in (i, j))
            expected = bits(whole[label].values[i, j])
            assert bits(score_pairs([x], [y], {"": spec})[""].values) == expected, label
            assert bits(score_pairs([y], [x], {"": spec})[""].values) == expected, label
            both = score_pairs([x, y], [x, y], {"": spec})[""].values
            assert bits(both[0, 1]) == bits(both[1, 0]) == expected, label


def test_score_pairs__in_other_blocks_and_orders(case):
    arrays, dtype, prepared, whole = case
    order = np.array([6, 2, 5, 0, 3, 1, 4])
    anew = [prepare(arrays[i], SPECS, dtype=dtype) for i in order]
    moved = score_pairs(anew, anew, SPECS)
    block = score_pairs(prepared[2:], prepared[:5], SPECS)
    mask = np.random.default_rng(0).random((7, 7)) < 0.4
    ragged = score_pairs(prepared, prepared, SPECS, wanted=mask)
    for label, scores in whole.items():
        assert bits(scores.values) == bits(scores.values.T)
        assert bits(moved[label].values) == bits(scores.values[np.ix_(order, order)]), label
        assert bits(block[label].values) == bits(scores.values[2:, :5]), label
        assert bits(ragged[label].values) == bits(np.where(mask, scores.values, np.nan)), label


@pytest.mark.parametrize("settings", [{"memory": 2**20}, {"tile": 128}, {"tile": 256}], ids=str)
def test_score_pairs__with_little_memory_and_from_files(case, settings, tmp_path):
    arrays, dtype, prepared, whole = case
    spilled = [p.spilled(tmp_path) for p in prepared]
    unknown = [prepare(a, SPECS, dtype=dtype).spilled(tmp_path) for a in arrays]
    for xs, ys in ((prepared, prepared), (spilled, spilled), (unknown, prepared)):
        found = score_pairs(xs, ys, SPECS, **settings)
        for label, scores in whole.items():
            assert bits(found[label].values) == bits(scores.values), label


def test_score_permuted__alone_and_in_company(case):
    arrays, dtype, prepared, _ = case
    orders = permutations(len(arrays[0]), 7, seed=0)
    whole = score_permuted(prepared[:3], prepared[3:], SPECS, orders)
    back = score_permuted(prepared[3:], prepared[:3], SPECS, np.argsort(orders, axis=1))
    for label, spec in SPECS.items():
        for i, j in ((0, 0), (2, 1), (1, 3)):
            x, y = (prepare(arrays[k], [spec], dtype=dtype) for k in (i, j + 3))
            alone = score_permuted([x], [y], {"": spec}, orders)[""]
            assert bits(alone[:, 0, 0]) == bits(whole[label][:, i, j]), label
        if label == "knn":  # sums over ties go over the entries of one side
            np.testing.assert_allclose(back[label].swapaxes(1, 2), whole[label], atol=1e-14)


def test_nulls__alone_and_in_company(case):
    arrays, dtype, prepared, _ = case
    groups = np.array([0, 0, 1, 2, 2, 3, 3])
    everyone = np.ones((4, 4), bool)
    orders = permutations(len(arrays[0]), 9, seed=0)
    permuted = permutation_null(prepared, prepared, groups, groups, SPECS, orders, memory=2**16)
    nulls = nulls_of(prepared, prepared, groups, groups, SPECS)
    for label, spec in SPECS.items():
        drawn = draw(nulls[label], groups, groups, everyone, 300, seed=0)
        for g, h in ((0, 2), (1, 3), (3, 0)):
            sides = [np.flatnonzero(groups == of) for of in (g, h)]
            xs, ys = ([prepare(arrays[i], [spec], dtype=dtype) for i in side] for side in sides)
            ones = [np.zeros(len(side), dtype=np.intp) for side in sides]
            alone = permutation_null(xs, ys, *ones, {"": spec}, orders)[""]
            null = nulls_of(xs, ys, *ones, {"": spec})[""]
            own = draw(null, *ones, np.ones((1, 1), bool), 300, seed=0)
            turned = nulls_of(ys, xs, *ones[::-1], {"": spec})[""].transposed()
            other = draw(turned, *ones, np.ones((1, 1), bool), 300, seed=0)
            for how in ("max", "mean"):
                assert bits(alone[how][0, 0]) == bits(permuted[label][how][g, h]), label
                assert bits(own[how][0, 0]) == bits(drawn[how][g, h]), label
                assert bits(other[how][0, 0]) == bits(own[how][0, 0]), label


SELF = {"cycle_knn": False, "linear_regression": False}
"""Measures that are not 1 for a representation with itself."""


@pytest.mark.parametrize("name", [m.name for m in list_measures()])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_similarity__with_itself_is_one_and_in_range(name, dtype):
    low, high = measure_spec(name).measure.range
    for n, d in ((40, 6), (131, 20), (60, 90)):
        if name in ("cca", "pwcca") and d > n / 2:
            continue
        for x in layers(n, (d, 3), seed=n):
            x = x.astype(dtype)
            found = similarity(x, x.copy(), name)
            assert low <= found <= high
            if SELF.get(name, True):
                assert found == 1.0
                assert math.isfinite(math.acos(found))


def test_compare__diagonal_is_one_in_float32():
    xs = [a.astype(np.float32) for a in layers(300, (3, 700, 8, 301))]
    for label, spec in SPECS.items():
        found = compare(xs, spec)
        if spec.added:  # to the denominator, as published code does
            assert (np.diag(found) < 1.0).all()
            continue
        assert (np.diag(found) == 1.0).all(), label
        assert np.isfinite(np.arccos(found)).all()


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(4, 100_000), count=st.integers(1, 2), size=st.integers(1, 5000),
    seed=st.integers(0, 2**32 - 1), spread=st.floats(1e-8, 1e8),
)  # fmt: skip
def test_exact__sums_are_those_of_integers(n, count, size, seed, spread):
    rng = np.random.default_rng(seed)
    size = min(size, n * n // 2)
    kind = np.float32 if count == 1 else np.float64
    values = (spread * rng.standard_t(2, size=(3, size))).astype(kind)
    steps = [exact.step_of(float(np.abs(v).max()), n) for v in values]
    whole = np.empty((3, count, size), dtype=np.float32)
    for v, step, out in zip(values, steps, whole, strict=True):
        exact.in_steps(v.copy(), step, n, out)
    assert np.abs(whole).max() <= 2 ** exact.bits(n)
    flat = whole.reshape(3 * count, size)
    sums = np.zeros((3 * count, 3 * count), dtype=np.int64)
    exact.add_products(flat, flat, sums)
    integers = [[int(v) for v in row] for row in flat]
    for a in range(3 * count):
        for b in range(a):
            assert sums[a, b] == sum(p * q for p, q in zip(integers[a], integers[b], strict=True))
    own = np.zeros((3, count, count), dtype=np.int64)
    exact.add_own(whole, own)
    blocks = sums.reshape(3, count, 3, count)
    np.testing.assert_array_equal(own, blocks[np.arange(3), :, np.arange(3)])
    products = exact.joined(blocks.swapaxes(1, 2), n) * np.outer(steps, steps)
    values = values.astype(np.float64)
    rounded = np.array(steps) * (0.5 if count == 1 else 0.5 * 2.0 ** -exact.bits(n))
    sizes = np.abs(values).sum(axis=1)
    bound = np.outer(rounded, sizes) + np.outer(sizes, rounded) + size * np.outer(rounded, rounded)
    assert (np.abs(products - values @ values.T) <= 1.001 * bound + 1e-12 * sizes.max() ** 2).all()


def test_exact__no_sum_over_all_pairs_overflows():
    for n in (4, 1024, 2048, 2049, 8192, 50_000, 1_000_000):
        largest = Fraction(2) ** (2 * exact.bits(n)) * n * (n - 1) / 2
        assert largest < 2**63
        assert 2 ** (2 * exact.bits(n)) * exact.MAX_TERMS <= 2**53


@pytest.mark.parametrize("name", [m.name for m in list_measures() if m.symmetric])
def test_score_pairs__does_not_depend_on_the_side(name):
    spec = {"": measure_spec(name)}
    arrays = layers(150, (3, 20, 40, 60))
    prepared = [prepare(a, spec) for a in arrays]
    whole = score_pairs(prepared, prepared, spec)[""].values
    back = score_pairs(prepared[::-1], prepared[::-1], spec)[""].values
    assert bits(back[::-1, ::-1]) == bits(whole) == bits(whole.T)
    for i, j in ((0, 1), (2, 0), (3, 2)):
        assert similarity(arrays[i], arrays[j], name) == similarity(arrays[j], arrays[i], name)
        alone = score_pairs([prepared[i]], [prepared[j]], spec)[""].values
        assert bits(alone) == bits(whole[i, j])
    orders = permutations(150, 3, seed=0)
    permuted = score_permuted(prepared[:2], prepared[2:], spec, orders)[""]
    alone = score_permuted(prepared[1:2], prepared[2:3], spec, orders)[""]
    assert bits(alone[:, 0, 0]) == bits(permuted[:, 1, 0])


FAR = {
    "cka": measure_spec("cka"),
    "cka_debiased": measure_spec("cka_debiased"),
    "distance": measure_spec("distance_correlation"),
    "euclidean": measure_spec("rsa", dissimilarity="euclidean", comparison="pearson"),
    "correlation": measure_spec("rsa", comparison="pearson"),
    "rbf": measure_spec("cka_rbf"),
}


@pytest.mark.parametrize("factor", [100.0, 1e3, 1e4])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("width", [24, 200])
def test_score_pairs__few_stimuli_far_from_all_others(factor, rows, width):
    """Steps follow the entries off the diagonal, not the square of the longest row."""
    x, y = (a.astype(np.float32) for a in layers(400, (width, width), seed=1))
    x[5 : 5 + rows] *= factor
    y[60 : 60 + rows] *= factor
    single, double = (
        score_pairs([prepare(x, FAR, dtype=kind)], [prepare(y, FAR, dtype=kind)], FAR)
        for kind in TYPES
    )
    for label in FAR:  # where a few entries are all there is, each is off by half a step of 21 bits
        assert single[label].values == pytest.approx(double[label].values, abs=2**-19), label
