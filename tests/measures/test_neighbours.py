from fractions import Fraction

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.measures import measure_spec, prepare
from pipeline.measures.neighbours import lists

RANKINGS = ["cosine", "inner", "euclidean"]


def neighbour_sets(x, k, ranking):
    """The neighbour sets, and how many rows had a tie."""
    spec = measure_spec("mutual_knn", k=k, neighbours=ranking)
    prepared = prepare(x, [spec])
    return [set(row.tolist()) for row in prepared.neighbours_for(spec).indices], prepared.ties(spec)


def relation(x, k, ranking, **options):
    spec = measure_spec("mutual_knn", k=k, neighbours=ranking, **options)
    return prepare(x, [spec]).neighbours_for(spec)


def exact(x, k, ranking):
    """Neighbours of integers, in integers: ties are true ties. Cosine compares signed squares.

    The sets, of equals the lowest index first; how many rows had a tie; and the relation.
    """
    x = x.astype(object)
    sets, ties, shares = [], 0, np.zeros((len(x), len(x)))
    for i, row in enumerate(x):
        near = {}
        for j, other in enumerate(x):
            if j == i:
                continue
            product = sum(a * b for a, b in zip(row, other, strict=True))
            if ranking == "cosine":
                # cos² times |row|², with its sign, as a fraction over a common multiple of lengths.
                near[j] = product * abs(product) * (LENGTHS // max(1, sum(a * a for a in other)))
            elif ranking == "inner":
                near[j] = product
            else:
                near[j] = -sum((a - b) ** 2 for a, b in zip(row, other, strict=True))
        ranked = sorted(near, key=lambda j: (-near[j], j))
        sets.append(set(ranked[:k]))
        ties += near[ranked[k - 1]] == near[ranked[k]]
        above = [j for j in near if near[j] > near[ranked[k - 1]]]
        tied = [j for j in near if near[j] == near[ranked[k - 1]]]
        shares[i, above], shares[i, tied] = 1.0, float(Fraction(k - len(above), len(tied)))
    return sets, ties, shares


LENGTHS = int(np.lcm.reduce(np.arange(1, 41, dtype=object)))


@pytest.mark.parametrize("ranking", RANKINGS)
@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(8, 24),
    d=st.integers(1, 8),
    k=st.integers(1, 6),
    top=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.float32, np.int64]),
)
def test_find_neighbours__ties_share_the_last_places(ranking, n, d, k, top, seed, dtype):
    x = np.random.default_rng(seed).integers(-top, top + 1, size=(n, d))
    x[0], x[-1] = 1, 0  # never constant
    sets, ties, shares = exact(x, k, ranking)
    found = relation(x.astype(dtype), k, ranking)
    np.testing.assert_allclose(found.relation().toarray(), shares, rtol=1e-15, atol=0)
    assert found.ties == ties
    assert found.fractional == (ties > 0)
    assert found.squared_norm == pytest.approx((shares**2).sum(), rel=1e-14)
    assert [set(row.tolist()) for row in found.indices] == sets


@pytest.mark.parametrize("by_index", [False, True])
@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(8, 24), d=st.integers(1, 4), k=st.integers(1, 6), seed=st.integers(0, 2**32 - 1)
)
def test_permuted__is_preparing_in_another_order(by_index, n, d, k, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, size=(n, d)).astype(float)
    x[0], x[-1] = 1, 0
    order = rng.permutation(n)
    moved, anew = (
        lists.find_neighbours(each, 0.0, "euclidean", {k}, by_index=by_index)[k]
        for each in (x, x[order])
    )
    moved = moved.permuted(order)
    np.testing.assert_array_equal(moved.relation().toarray(), anew.relation().toarray())
    assert moved.ties == anew.ties
    if by_index:
        np.testing.assert_array_equal(np.sort(moved.indices), np.sort(anew.indices))


def test_find_neighbours__a_stimulus_as_its_own_neighbour():
    x = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    for ranking in RANKINGS:
        for k in (1, 2, 3):
            found = lists.find_neighbours(x, 0.0, ranking, {k}, include_self=True)[k]
            expected = reference.neighbour_shares(x, k, ranking, include_self=True)
            np.testing.assert_allclose(found.relation().toarray(), expected, rtol=1e-15)
    near = lists.find_neighbours(x, 0.0, "inner", {2}, include_self=True)[2]
    assert near.relation().toarray()[0].tolist() == [0, 1, 0, 1, 0]  # too small to be its own


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("n", [30, 67, 130])
def test_find_neighbours__duplicates_in_float32(ranking, n):
    rng = np.random.default_rng(n)
    x = np.repeat(rng.normal(size=(n // 5, 37)), 5, axis=0).astype(np.float32) + 7
    x = x[rng.permutation(len(x))]
    found, ties = neighbour_sets(x, 6, ranking)
    assert found == reference.nearest(x, 6, ranking)
    shares = reference.neighbour_shares(x, 6, ranking)
    np.testing.assert_allclose(relation(x, 6, ranking).relation().toarray(), shares, rtol=1e-15)
    if ranking != "inner":  # by inner product a row need not be its own twin's nearest
        assert ties == len(x)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_find_neighbours__differences_below_float32_are_seen(ranking):
    rng = np.random.default_rng(0)
    x = np.ones((40, 5)) + 1e-5 * rng.normal(size=(40, 5))
    found, ties = neighbour_sets(x, 5, ranking)
    assert found == reference.nearest(x, 5, ranking, decimals=14)
    assert ties == 0


@pytest.mark.parametrize("ranking", RANKINGS)
def test_find_neighbours__no_ties_in_ordinary_data(ranking):
    x = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
    assert neighbour_sets(x, 10, ranking)[1] == 0


@pytest.mark.parametrize("ranking", RANKINGS)
def test_find_neighbours__blocks_change_nothing(ranking, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, size=(101, 3))
    whole = neighbour_sets(x, 7, ranking)
    assert whole[1] > 0
    monkeypatch.setattr(lists, "BLOCK_BYTES", 13 * 8 * 101)
    assert neighbour_sets(x, 7, ranking) == whole


def test_find_neighbours__a_row_of_zeros_has_cosine_zero():
    x = np.array([[0, 0], [1, 0], [-1, 0.1], [0.5, 0.5], [-1, -1], [1, 2]])
    assert neighbour_sets(x, 2, "cosine") == (reference.nearest(x, 2), 1)


def test_find_neighbours__proportional_rows_have_no_direction_to_compare():
    x = np.outer(np.arange(1, 20), [1.0, 2.0])
    for ranking, defined in [("cosine", False), ("inner", True), ("euclidean", True)]:
        spec = measure_spec("mutual_knn", k=3, neighbours=ranking)
        assert prepare(x, [spec]).defined(spec) is defined


def test_find_neighbours__several_k_at_once():
    x = np.random.default_rng(0).normal(size=(50, 4))
    specs = [measure_spec("mutual_knn", k=k) for k in (1, 5, 20)]
    prepared = prepare(x, specs)
    for spec in specs:
        rows = prepared.neighbours_for(spec).indices
        assert rows.shape == (50, spec["k"])
        assert [set(row.tolist()) for row in rows] == reference.nearest(x, spec["k"])
        assert not (rows == np.arange(50)[:, None]).any()
