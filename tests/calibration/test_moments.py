import itertools
import math
from dataclasses import fields

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.calibration import moments
from pipeline.calibration import neighbour_moments as of_neighbours
from pipeline.calibration.coupling import LinearMoments
from pipeline.calibration.moments import (
    CouplingScalars,
    UCentredScalars,
    coupling_moments,
    relation_scalars,
    u_centred_moments,
)
from pipeline.calibration.neighbour_moments import (
    NeighbourScalars,
    combined_neighbour_scalars,
    neighbour_coupling_moments,
    neighbour_grams,
    neighbour_moments,
    neighbour_scalars,
    neighbour_weights,
)
from pipeline.errors import InputError
from pipeline.measures.neighbours.lists import Neighbours

KINDS = ("random", "clustered", "low rank", "rare cluster", "heavy tails")


def features(kind, n, seed):
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    noise = rng.normal(size=(n, 4))
    match kind:
        case "clustered":
            return noise * 0.1 + rng.normal(size=(3, 4))[np.arange(n) % 3]
        case "low rank":
            return noise[:, :1] ** 3
        case "rare cluster":
            return noise * 0.01 + (np.arange(n) < 2)[:, None]
        case "heavy tails":
            return rng.standard_t(1.5, size=(n, 4))
    return noise


def doubly_centred(x):
    centred = x - x.mean(axis=0)
    gram = centred @ centred.T
    return gram / np.abs(gram).max()


def u_centred(x):
    """Centre the off-diagonal products by the textbook formula."""
    n = len(x)
    relation = x @ x.T
    np.fill_diagonal(relation, 0.0)
    rows = relation.sum(axis=1)
    relation += rows.sum() / ((n - 1) * (n - 2)) - (rows[:, None] + rows) / (n - 2)
    np.fill_diagonal(relation, 0.0)
    return relation / np.abs(relation).max()


def u_centred_scalars(relation):
    return relation_scalars(relation, np.zeros(len(relation)))[0]


def parts(w):
    """Split a doubly centred relation into the U-centred one, row effects and a number."""
    n, d, t = len(w), np.diag(w), np.trace(w)
    u = w + (d[:, None] + d) / (n - 2) - t / ((n - 1) * (n - 2))
    np.fill_diagonal(u, 0.0)
    return u, np.sqrt(n / (n - 2)) * (d - t / n), t / np.sqrt(n - 1)


def biased_moments(n, xs, ys):
    """Mean, variance and third moment of Σ w_ij w'_π(i)π(j), from the moments of the parts."""
    split = [[parts(w) for w in side] for side in (xs, ys)]
    scalars = [[relation_scalars(u, effects) for u, effects, _ in side] for side in split]
    alone = (UCentredScalars.stack([one for one, _ in side]) for side in scalars)
    coupling = (CouplingScalars.stack([both for _, both in side]) for side in scalars)
    effects = LinearMoments.of(*(np.stack([part for _, part, _ in side]) for side in split))
    variance, third, _ = u_centred_moments(n, *alone)
    third = third + effects.third + 3 * sum(coupling_moments(n, *coupling))
    mean = np.outer(*([constant for _, _, constant in side] for side in split))
    return mean, variance + effects.variance, third


def neighbours(n, k, kind, seed):
    rng = np.random.default_rng([seed, n, k])
    near = rng.random((n, n))
    if kind == "hubs":
        near += np.arange(n) < k + 1
    elif kind == "cliques":
        near += np.arange(n)[:, None] // (k + 1) == np.arange(n) // (k + 1)
    elif kind == "ring":
        near = -((np.arange(n) - np.arange(n)[:, None]) % n).astype(float)
    np.fill_diagonal(near, -np.inf)
    return np.argsort(-near, axis=1)[:, :k]


def indicator(indices):
    matrix = np.zeros((len(indices), len(indices)))
    np.put_along_axis(matrix, np.asarray(indices), 1.0, axis=1)
    return matrix


def relation(indices):
    return scipy.sparse.csr_array(indicator(indices))


def tied(n, k, seed):
    """Shares of places: all or nothing for some stimuli, equal shares in classes for others."""
    rng = np.random.default_rng([seed, n, k])
    near = rng.integers(0, 3, size=(n, n)).astype(float)
    near[: n // 2] = rng.random((n // 2, n))
    np.fill_diagonal(near, -np.inf)
    last = np.sort(near, axis=1)[:, -k, None]
    above, level = near > last, near == last
    return above + level * (k - above.sum(1, keepdims=True)) / level.sum(1, keepdims=True)


def enumerated(xs, ys):
    """S under every permutation, `(n!, Mx, My)`."""
    n = len(xs[0])
    orders = np.array(list(itertools.permutations(range(n))))
    places = (orders[:, :, None] * n + orders[:, None, :]).reshape(len(orders), -1)
    flat = np.stack([x.ravel() for x in xs], axis=1)
    return np.stack([y.ravel()[places] @ flat for y in ys], axis=2)


def central(values, order, weights=None):
    mean = np.average(values, axis=0, weights=weights)
    return np.average((values - mean) ** order, axis=0, weights=weights)


def assert_moments(found, expected, variance, rtol=1e-9):
    """Compare a list of moments from the second on; one near zero, on the scale of the variance."""
    for order, (one, other) in enumerate(zip(found, expected, strict=True), start=2):
        scale = np.maximum(np.abs(other), 1e-2 * variance ** (order / 2))
        assert np.abs((one - other) / scale).max() < rtol


# Against all permutations


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8])
def test_u_centred_moments__all_permutations(n):
    xs = [u_centred(features(kind, n, 0)) for kind in KINDS]
    ys = [u_centred(features(kind, n, 1)) for kind in KINDS]
    sx, sy = (UCentredScalars.stack([u_centred_scalars(r) for r in side]) for side in (xs, ys))
    values = enumerated(xs, ys)
    np.testing.assert_allclose(values.mean(axis=0), 0.0, atol=1e-12)
    expected = [central(values, order) for order in (2, 3, 4)]
    assert_moments(u_centred_moments(n, sx, sy), expected, expected[0])


@pytest.mark.parametrize("n", [4, 7, 8])
def test_biased_moments__all_permutations(n):
    xs = [doubly_centred(features(kind, n, 0)) for kind in KINDS]
    ys = [doubly_centred(features(kind, n, 1)) for kind in KINDS]
    values = enumerated(xs, ys)
    mean, variance, third = biased_moments(n, xs, ys)
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-9)
    expected = [central(values, order) for order in (2, 3)]
    assert_moments([variance, third], expected, expected[0])


@pytest.mark.parametrize("n", [4, 5, 7, 8])
def test_neighbour_moments__all_permutations(n):
    xs = [neighbours(n, k, kind, 0) for k in (1, 3) for kind in ("random", "hubs", "cliques")]
    ys = [neighbours(n, 2, kind, 1) for kind in ("random", "hubs", "ring")]
    xs = [*map(indicator, xs), tied(n, 2, 0), tied(n, n - 2, 0)]
    ys = [*map(indicator, ys), tied(n, 2, 1)]
    assert any((each < 1).any() and (each[each < 1] > 0).any() for each in (xs[-2], ys[-1]))
    sx, sy = (
        NeighbourScalars.stack([neighbour_scalars(scipy.sparse.csr_array(a)) for a in side])
        for side in (xs, ys)
    )
    values = enumerated(xs, ys)
    mean, variance, third = neighbour_moments(n, sx, sy)
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-12)
    expected = [central(values, order) for order in (2, 3)]
    moving = expected[0] > 1e-12  # n − 1 neighbours are the same under every permutation
    assert moving.any()
    np.testing.assert_allclose(variance[~moving], 0.0, atol=1e-12)
    assert_moments([variance[moving], third[moving]], [e[moving] for e in expected], 1.0)


def test_neighbour_moments__weighted_sums_over_all_permutations():
    n, weights = 7, np.array([0.7, -0.2, 1.3])
    kinds = ("random", "hubs", "cliques")
    xs, ys = ([relation(neighbours(n, 2, kind, seed)) for kind in kinds] for seed in (0, 1))
    xs[1] = scipy.sparse.csr_array(tied(n, 2, 0))
    values = enumerated(*([each.toarray() for each in side] for side in (xs, ys)))
    values = np.einsum("a,pab,b->p", weights, values, weights[::-1])[:, None, None]
    found = neighbour_moments(
        n, combined_neighbour_scalars(xs, weights), combined_neighbour_scalars(ys, weights[::-1])
    )
    np.testing.assert_allclose(found[0], values.mean(axis=0), rtol=1e-12)
    expected = [central(values, order) for order in (2, 3)]
    assert_moments(found[1:], expected, expected[0])


@pytest.mark.parametrize("n", [5, 7])
def test_neighbour_meetings__over_all_permutations(n):
    weights = np.array([0.7, -0.2, 1.3])
    sides, scalars = [], []
    for seed, w in ((0, weights), (1, weights[::-1])):
        lists = [relation(neighbours(n, 2, kind, seed)) for kind in ("random", "hubs", "cliques")]
        lists[2] = scipy.sparse.csr_array(tied(n, 2, seed))
        sides.append([each.toarray() for each in lists])
        sides[-1].append(np.tensordot(w, sides[-1], 1))
        scalars.append(
            NeighbourScalars.stack(
                [
                    *(neighbour_scalars(i) for i in lists),
                    combined_neighbour_scalars(lists, w),
                ]
            )
        )
    counts = enumerated(*sides)
    degrees = [np.array([a.sum(axis=0) - a.sum() / n for a in side]) for side in sides]
    orders = np.array(list(itertools.permutations(range(n))))
    linear = np.einsum("ai,bpi->pab", degrees[0], degrees[1][:, orders]) * (n - 1) / (n * (n - 2))
    rest = counts - counts.mean(axis=0) - linear
    np.testing.assert_allclose((linear * rest).mean(axis=0), 0.0, atol=1e-9)
    found = neighbour_coupling_moments(n, *scalars)
    for one, other in zip(found, (linear**2 * rest, linear * rest**2), strict=True):
        np.testing.assert_allclose(one, other.mean(axis=0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "k"), [(6, 2), (7, 3)])
def test_neighbour_grams__covariance_over_all_permutations(n, k):
    xs, ys = (
        [indicator(neighbours(n, k, kind, seed)) for kind in ("random", "hubs", "ring")]
        for seed in (0, 1)
    )
    values = enumerated(xs, ys).reshape(-1, 9)
    covariance = np.zeros((9, 9))
    grams = []
    for side in (xs, ys):
        same = np.array([[(a * c).sum() for c in side] for a in side])
        swapped = np.array([[(a * c.T).sum() for c in side] for a in side])
        degrees = np.array([a.sum(axis=0) - k for a in side])
        grams.append(neighbour_grams(n, k, same, swapped, degrees @ degrees.T))
    for weight, x, y in zip(neighbour_weights(n), *grams, strict=True):
        covariance += weight * np.kron(x, y)
    np.testing.assert_allclose(covariance, np.cov(values.T, bias=True), atol=1e-9)


# Against relations of many stimuli that know but a few classes: S depends on how many stimuli of
# each class meet each class, and all such tables can be listed.


def contingency_tables(rows, columns):
    if len(rows) == 1:
        yield (tuple(columns),)
        return
    ranges = [range(min(rows[0], c) + 1) for c in columns]
    for first in itertools.product(*ranges):
        if sum(first) == rows[0]:
            left = [c - f for c, f in zip(columns, first, strict=True)]
            for rest in contingency_tables(rows[1:], left):
                yield (first, *rest)


def by_tables(x, x_sizes, y, y_sizes):
    """Values of S and their probabilities; stimuli are in the order of their classes."""
    n = len(x)
    values, weights = [], []
    for table in contingency_tables(x_sizes, y_sizes):
        pools = [list(range(s - c, s)) for s, c in zip(np.cumsum(y_sizes), y_sizes, strict=True)]
        order = [pools[j].pop() for row in table for j, c in enumerate(row) for _ in range(c)]
        values.append((x * y[np.ix_(order, order)]).sum())
        ways = math.prod(math.factorial(s) for s in (*x_sizes, *y_sizes))
        over = math.factorial(n) * math.prod(math.factorial(c) for row in table for c in row)
        weights.append(ways / over)
    assert sum(weights) == pytest.approx(1.0, abs=1e-12)
    return np.array(values), np.array(weights)


def class_relation(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = np.array([[0.3, 1.0], [-1.1, 0.2], [0.5, -0.7]])
    return u_centred(centres[labels])


@pytest.mark.parametrize("x_sizes", [(2, 18), (3, 17), (9, 11), (2, 5, 13), (6, 7, 7)])
@pytest.mark.parametrize("y_sizes", [(2, 18), (10, 10), (1, 4, 15)])
def test_u_centred_moments__few_classes(x_sizes, y_sizes):
    x, y = class_relation(x_sizes), class_relation(y_sizes)
    values, weights = by_tables(x, x_sizes, y, y_sizes)
    expected = [central(values, order, weights) for order in (2, 3, 4)]
    found = u_centred_moments(20, u_centred_scalars(x), u_centred_scalars(y))
    assert_moments(found, expected, expected[0])


def hub_lists(n, k):
    """One stimulus and k others are each other's neighbours, and those k everyone's."""
    lists = np.tile(np.arange(k), (n, 1))
    for i in range(k):
        lists[i, i] = k
    return lists, (k, 1, n - k - 1)


@pytest.mark.parametrize(("k", "other"), [(1, 1), (2, 2), (3, 2), (6, 3)])
def test_neighbour_moments__few_classes(k, other):
    n = 17
    (x, x_sizes), (y, y_sizes) = hub_lists(n, k), hub_lists(n, other)
    values, weights = by_tables(indicator(x), x_sizes, indicator(y), y_sizes)
    mean, variance, third = neighbour_moments(
        n, neighbour_scalars(relation(x)), neighbour_scalars(relation(y))
    )
    assert mean == pytest.approx(np.average(values, weights=weights), rel=1e-12)
    expected = [central(values, order, weights) for order in (2, 3)]
    assert_moments([variance, third], expected, expected[0])


# Against published and naive formulas


@pytest.mark.parametrize("n", [6, 10, 1000])
def test_u_centred_moments__published_coefficients(n):
    one, nothing = np.eye(2), np.zeros(2)
    scalars = UCentredScalars(nothing, one[0], one[1], *[nothing] * 4)
    _, third, _ = u_centred_moments(n, scalars, scalars)
    triangles = 8 * (n**3 - 9 * n**2 + 26 * n - 22)
    both = -8 * (3 * n**2 - 15 * n + 16)
    cubes = 4 * (n**4 - 8 * n**3 + 19 * n**2 - 4 * n - 16)
    expected = np.array([[triangles, both], [both, cubes]]) / math.perm(n, 6)
    np.testing.assert_allclose(third, expected, rtol=1e-14)


@pytest.mark.parametrize("n", [5, 11, 300])
def test_coupling_moments__documented_coefficients(n):
    one = np.ones(1)
    quadratic, linear = coupling_moments(n, *[CouplingScalars(energies=one, forms=one)] * 2)
    np.testing.assert_allclose(quadratic, 2 / (n * (n - 3)), rtol=1e-14)
    np.testing.assert_allclose(linear, 4 * (n - 2) / ((n - 1) * (n - 3) * (n - 4)), rtol=1e-14)
    effects = np.random.default_rng(0).normal(size=(1, n))
    effects -= effects.mean()
    third = LinearMoments.of(effects, effects).third / (effects**3).sum() ** 2
    np.testing.assert_allclose(third, n / ((n - 1) * (n - 2)), rtol=1e-12)


def test_biased_moments__kazi_aoual_variance():
    n = 15
    w = doubly_centred(features("heavy tails", n, 3))
    t, t2, s2 = np.trace(w), (w * w).sum(), (np.diag(w) ** 2).sum()
    first = 2 * ((n - 1) * t2 - t**2) ** 2 / ((n - 1) ** 2 * (n + 1) * (n - 2))
    second = (n * (n + 1) * s2 - (n - 1) * (t**2 + 2 * t2)) ** 2
    second /= (n + 1) * n * (n - 1) * (n - 2) * (n - 3)
    mean, variance, _ = biased_moments(n, [w], [w])
    assert mean.item() == pytest.approx(t**2 / (n - 1), rel=1e-12)
    assert variance.item() == pytest.approx(first + second, rel=1e-12)


def test_u_centred_scalars__naive_sums_over_blocks(monkeypatch):
    monkeypatch.setattr(moments, "ROWS", 7)
    a = u_centred(features("heavy tails", 30, 0))
    squared = a @ a
    naive = {
        "squares": (a**2).sum(),
        "triangles": np.trace(squared @ a),
        "cubes": (a**3).sum(),
        "cycles": np.trace(squared @ squared),
        "energies": ((a**2).sum(axis=1) ** 2).sum(),
        "chords": (a**2 * squared).sum(),
        "fourths": (a**4).sum(),
    }
    naive = UCentredScalars(**{name: np.array([value]) for name, value in naive.items()})
    assert_same(u_centred_scalars(a), naive)


@pytest.mark.parametrize("full", [0.0, 1.0])
@pytest.mark.parametrize("weights", [[1.0], [0.7, -0.2, 1.3]])
def test_combined_neighbour_scalars__naive_sums_over_blocks(weights, full, monkeypatch):
    monkeypatch.setattr(of_neighbours, "PATHS", 60)
    monkeypatch.setattr(of_neighbours, "FULL", full)
    n, k = 30, 4
    lists = [neighbours(n, k, kind, 0) for kind in ("hubs", "random", "ring")][: len(weights)]
    a = sum(w * (indicator(each) - k / (n - 1)) for w, each in zip(weights, lists, strict=True))
    np.fill_diagonal(a, 0.0)
    e = a.sum(axis=0)
    naive = {
        "neighbours": k * sum(weights),
        "squares": (a * a).sum(),
        "mutual": (a * a.T).sum(),
        "degree_squares": e @ e,
        "cycles": np.trace(a @ a @ a),
        "transitive": (a @ a * a).sum(),
        "cubes": (a**3).sum(),
        "mutual_cubes": (a**2 * a.T).sum(),
        "degree_cubes": (e**3).sum(),
        "degree_form": e @ a @ e,
        "degree_mutual": e @ (a * a.T).sum(axis=1),
        "degree_entries": (a**2).sum(axis=0) @ e,
        "degree_rows": (a**2).sum(axis=1) @ e,
    }
    naive = NeighbourScalars(**{name: np.array([value]) for name, value in naive.items()})
    found = combined_neighbour_scalars([relation(each) for each in lists], weights)
    assert_same(found, naive, atol=1e-10)


def test_relation_scalars__naive_sums_of_row_effects():
    n = 12
    w = doubly_centred(features("heavy tails", n, 5))
    u, effects, constant = parts(w)
    alone, coupling = relation_scalars(u, effects)
    assert_same(alone, u_centred_scalars(u))
    naive = CouplingScalars(np.array([effects @ (u**2).sum(1)]), np.array([effects @ u @ effects]))
    assert_same(coupling, naive)
    assert (w * w).sum() == pytest.approx((u * u).sum() + effects @ effects + constant**2)


def assert_same(one, other, rtol=1e-10, atol=0.0):
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=field.name)


# Precision


@pytest.mark.parametrize("kind", ["random", "clustered", "low rank", "heavy tails"])
def test_u_centred_scalars__single_precision(kind):
    a = u_centred(features(kind, 400, 0))
    double = u_centred_scalars(a)
    assert_same(u_centred_scalars(a.astype(np.float32)), double, rtol=1e-5)
    u, effects, _ = parts(doubly_centred(features(kind, 400, 0)))
    single, double = (relation_scalars(u.astype(t), effects)[1] for t in (np.float32, np.float64))
    assert_same(single, double, rtol=1e-4)


def test_neighbour_moments__many_stimuli():
    n, k = 20_000, 5
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, n // k - 1, size=(n, k)), axis=1)
    scalars = neighbour_scalars(Neighbours((np.arange(n)[:, None] + steps) % n).relation())
    mean, variance, third = neighbour_moments(n, scalars, scalars)
    # A random directed graph shares Poisson many edges with another.
    np.testing.assert_allclose([mean, variance, third], k**2, rtol=0.05)


# Properties


@st.composite
def two_sides(draw, low=6, high=14):
    n = draw(st.integers(low, high))
    seed = draw(st.integers(0, 10**6))
    kinds = [draw(st.sampled_from(KINDS)) for _ in "xy"]
    return n, seed, kinds, np.random.default_rng(seed).permutation(n)


@settings(max_examples=30, deadline=None)
@given(two_sides(), st.floats(1e-3, 1e3), st.sampled_from([-1.0, 1.0]))
def test_moments__names_of_stimuli_and_scale(sides, scale, sign):
    n, seed, kinds, order = sides
    for make, scalars, pair_moments in (
        (u_centred, u_centred_scalars, u_centred_moments),
        (doubly_centred, lambda w: [w], biased_moments),
    ):
        x, y = (make(features(kind, n, seed + i)) for i, kind in enumerate(kinds))
        sx, sy = scalars(x), scalars(y)
        found = pair_moments(n, sx, sy)
        variance = found[0] if make is u_centred else found[1]
        powers = (2, 3, 4) if make is u_centred else (1, 2, 3)
        renamed = pair_moments(n, scalars(x[np.ix_(order, order)]), sy)
        mirrored = pair_moments(n, sy, sx)
        scaled = pair_moments(n, sx, scalars(sign * scale * y))
        for power, one, two, three, four in zip(
            powers, found, renamed, mirrored, scaled, strict=True
        ):
            close = 1e-8 * variance ** (power / 2)
            assert np.abs(one - two) <= close
            assert np.abs(one - three.T) <= close
            assert np.abs((sign * scale) ** power * one - four) <= close * scale**power
        assert variance > 0


@settings(max_examples=30, deadline=None)
@given(two_sides(), st.integers(1, 4), st.sampled_from(["random", "hubs", "cliques", "ring"]))
def test_neighbour_scalars__names_of_stimuli(sides, k, kind):
    n, seed, _, order = sides
    indices = neighbours(n, k, kind, seed)
    place = np.argsort(order)
    renamed = place[indices[order]]
    np.random.default_rng(seed).permuted(renamed, axis=1, out=renamed)
    one, other = neighbour_scalars(relation(indices)), neighbour_scalars(relation(renamed))
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(two_sides())
def test_u_centred_moments__possible(sides):
    """No distribution has a kurtosis below 1 + skewness²."""
    n, seed, kinds, _ = sides
    xs = UCentredScalars.stack([u_centred_scalars(u_centred(features(k, n, seed))) for k in kinds])
    variance, third, fourth = u_centred_moments(n, xs, xs)
    assert (fourth * variance >= (variance**3 + third**2) * (1 - 1e-8)).all()


def test_moments__nothing_varies():
    nothing = u_centred_scalars(np.zeros((9, 9)))
    something = u_centred_scalars(u_centred(features("random", 9, 0)))
    for moment in u_centred_moments(9, nothing, something):
        np.testing.assert_array_equal(moment, [[0.0]])


def test_stack__all_pairs_at_once():
    relations = [u_centred(features(kind, 10, 0)) for kind in KINDS]
    single = [u_centred_scalars(r) for r in relations]
    stacked = UCentredScalars.stack(single)
    together = u_centred_moments(10, stacked, UCentredScalars.stack(single[:2]))
    for order, moment in enumerate(together):
        assert moment.shape == (5, 2)
        alone = u_centred_moments(10, single[4], single[1])[order]
        np.testing.assert_allclose(moment[4, 1], alone[0, 0], rtol=1e-10)


# What is refused


def test_stack__nothing():
    with pytest.raises(InputError, match="no scalars to join"):
        UCentredScalars.stack([])


def test_scalars__wrong_relations():
    good = u_centred(features("random", 8, 0))
    with pytest.raises(InputError, match=r"has shape \(8, 7\); it must be \(n, n\)"):
        u_centred_scalars(good[:, :7])
    with pytest.raises(InputError, match="diagonal of a U-centred relation is zero"):
        u_centred_scalars(good + np.eye(8))
    for value, dtype in ((np.nan, np.float64), (1e100, np.float64), (1e30, np.float32)):
        broken = good.copy()
        broken[0, 1] = broken[1, 0] = value
        with np.errstate(all="ignore"), pytest.raises(InputError, match="not finite"):
            u_centred_scalars(broken.astype(dtype))
    with pytest.raises(InputError, match=r"row effects have shape \(7,\); .* needs \(8,\)"):
        relation_scalars(good, np.zeros(7))


@pytest.mark.parametrize(
    ("indices", "says"),
    [
        ([[1, 2], [0, 2], [0, 1], [0, 3]], "add up to 2 to 2, and 1 stimuli are their own"),
        ([[1, 2], [0, 2], [0, 1], [0, 0]], "add up to 1 to 2, and 0 stimuli are their own"),
    ],
)
def test_neighbour_scalars__no_relation_of_neighbours(indices, says):
    with pytest.raises(InputError, match=says):
        neighbour_scalars(relation(indices))


def test_neighbour_scalars__wrong_shapes():
    with pytest.raises(InputError, match=r"shape \(5, 6\); it must be \(n, n\)"):
        neighbour_scalars(scipy.sparse.csr_array(np.ones((5, 6))))


def test_moments__too_few_stimuli():
    u, coupling = relation_scalars(np.zeros((4, 4)), np.zeros(4))
    n = neighbour_scalars(relation(neighbours(4, 1, "random", 0)))
    for pair_moments, scalars in (
        (u_centred_moments, u),
        (coupling_moments, coupling),
        (neighbour_moments, n),
    ):
        with pytest.raises(InputError, match=r"3 stimuli; .* at least 4"):
            pair_moments(3, scalars, scalars)
    with pytest.raises(InputError, match="at least 4"):
        neighbour_grams(3, 1, 1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="at least 4"):
        neighbour_weights(3)
    with pytest.raises(InputError, match="3 stimuli"):
        neighbour_scalars(relation([[1], [2], [0]]))
