import functools
import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from sklearn.neighbors import NearestNeighbors

from pipeline.measures import pairwise, similarity
from pipeline.measures.neighbours.lists import Neighbours
from pipeline.measures.pairwise import neighbourhood

RANKINGS = ["cosine", "inner", "euclidean"]
LISTS = ["cycle_knn", "jaccard_knn", "lcs_knn", "edit_knn"]
RECORDS = {measure.name: measure for measure in pairwise.MEASURES}
MEASURES = {name: RECORDS[name] for name in (*LISTS, "cknna", "second_order_cosine")}
FORMS = ["unbiased", "biased", "paper"]


def score(name, x, y, **parameters):
    measure = MEASURES[name]
    first = {key: value for key, value in parameters.items() if key in measure.prepares}
    rest = {key: value for key, value in parameters.items() if key not in measure.prepares}
    return measure.compare(measure.prepare(x, **first), measure.prepare(y, **first), **rest)


def ordered(x, k, ranking="cosine", decimals=9):
    """Lists of nearest, nearest first; what is equal to `decimals` digits goes by lowest index."""
    lists = []
    for i, near in enumerate(reference.nearness(x, ranking, decimals)):
        ranked = sorted((-value, j) for j, value in near.items() if j != i)
        lists.append([j for _, j in ranked[:k]])
    return lists


def determined(x, k, ranking="cosine"):
    """Which stimuli's k nearest are in an order without ties, and apart from all others."""
    found = []
    for i, near in enumerate(reference.nearness(x, ranking)):
        values = sorted((value for j, value in near.items() if j != i), reverse=True)[: k + 1]
        found.append(len(set(values)) == len(values))
    return np.array(found)


def cycle_knn(x, y, k, ranking):
    a, b = (reference.neighbour_shares(z, k, ranking) for z in (x, y))
    found = []
    for i in range(len(x)):
        missed = 1.0
        for j in range(len(x)):
            missed *= 1 - b[i, j] * a[j, i]
        found.append(1 - missed)
    return sum(found) / len(found)


def jaccard_knn(x, y, k, ranking):
    a, b = (reference.neighbour_shares(z, k, ranking) for z in (x, y))
    return np.mean(np.minimum(a, b).sum(axis=1) / np.maximum(a, b).sum(axis=1))


def lcs(p, q):
    @functools.cache
    def longest(i, j):
        if i == 0 or j == 0:
            return 0
        if p[i - 1] == q[j - 1]:
            return longest(i - 1, j - 1) + 1
        return max(longest(i - 1, j), longest(i, j - 1))

    return longest(len(p), len(q))


def levenshtein(p, q):
    @functools.cache
    def least(i, j):
        if i == 0 or j == 0:
            return i + j
        swapped = least(i - 1, j - 1) + (p[i - 1] != q[j - 1])
        return min(least(i - 1, j) + 1, least(i, j - 1) + 1, swapped)

    return least(len(p), len(q))


def both_lists(x, y, k, ranking):
    some = determined(x, k, ranking) & determined(y, k, ranking)
    lists = zip(ordered(x, k, ranking), ordered(y, k, ranking), some, strict=True)
    return [(p, q) for p, q, known in lists if known]


def lcs_knn(x, y, k, ranking):
    found = [lcs(p, q) / k for p, q in both_lists(x, y, k, ranking)]
    return np.mean(found) if found else math.nan


def edit_knn(x, y, k, ranking):
    found = [1 - levenshtein(p, q) / k for p, q in both_lists(x, y, k, ranking)]
    return np.mean(found) if found else math.nan


ORACLES = {
    "cycle_knn": cycle_knn,
    "jaccard_knn": jaccard_knn,
    "lcs_knn": lcs_knn,
    "edit_knn": edit_knn,
}


def cknna(x, y, k, form="unbiased", ranking="cosine"):
    """With dense masks and matrices, after the paper's code, or eq. 16 to 18."""
    grams, shares = [], []
    for z in (x, y):
        if ranking == "cosine":
            z = z / np.linalg.norm(z, axis=1, keepdims=True)
        grams.append(z @ z.T)
        own = reference.neighbour_shares(z, k, "inner", include_self=form == "biased")
        shares.append(own)

    def alignment(a, b):
        mask = shares[a] * shares[b] > 0
        first, second = (mask * shares[c] * grams[c] for c in (a, b))
        if form == "paper":
            centred = [
                shares[c] * (grams[c] - grams[c].mean(axis=1, keepdims=True)) for c in (a, b)
            ]
            return (mask * centred[0] * centred[1]).sum()
        if form == "unbiased":
            return reference.hsic_unbiased(first, second)
        h = np.eye(len(x)) - 1 / len(x)
        return np.trace(first @ h @ second @ h)

    return alignment(0, 1) / math.sqrt(alignment(0, 0) * alignment(1, 1))


def second_order_cosine(x, y, k):
    total = 0.0
    shares = np.maximum(*(reference.neighbour_shares(z, k) for z in (x, y)))
    for i, row in enumerate(shares):
        union = np.flatnonzero(row)
        first, second = ([1 - cosine(z[i], z[j]) for j in union] for z in (x, y))
        total += 1 - cosine(first, second, w=row[union])
    return total / len(x)


def pair(seed, n=24, d=5, e=40, shift=0.0):
    """Two representations that share some structure."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = np.tanh(x @ rng.normal(size=(d, e))) + 0.3 * rng.normal(size=(n, e))
    return x + shift, y + shift


def rotation(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


CASES = {
    "ordinary": pair(0),
    "n much above d": pair(1, n=70, d=2, e=3),
    "d much above n": pair(2, n=14, d=60, e=300),
    "offset": pair(3, n=32, d=6, e=8, shift=30.0),
    "duplicated rows": tuple(np.repeat(z, 3, axis=0) for z in pair(4, n=9)),
    "one constant feature": tuple(np.column_stack([z, np.full(len(z), 3.0)]) for z in pair(5)),
}
cases = pytest.mark.parametrize("case", list(CASES))


@cases
@pytest.mark.parametrize("ranking", RANKINGS)
def test_lists__naive(case, ranking):
    x, y = CASES[case]
    for k in (1, 4, 7):
        for name, oracle in ORACLES.items():
            found, expected = (
                score(name, x, y, k=k, neighbours=ranking), oracle(x, y, k, ranking)
            )  # fmt: skip
            assert found == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True), (name, k)


@cases
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ranking", ["cosine", "inner"])
def test_cknna__dense(case, form, ranking):
    x, y = CASES[case]
    for k in (2, 5, len(x) // 2):
        found = score("cknna", x, y, k=k, form=form, neighbours=ranking)
        assert found == pytest.approx(cknna(x, y, k, form, ranking), rel=1e-9, abs=1e-11), k


@cases
def test_second_order_cosine__naive(case):
    x, y = CASES[case]
    for k in (1, 4, len(x) - 1):
        found = score("second_order_cosine", x, y, k=k)
        assert found == pytest.approx(second_order_cosine(x, y, k), rel=1e-9), k


def exact(x, k, ranking):
    """Lists of integers, in integers: ties are true ties."""
    lists = []
    for i, row in enumerate(x):
        near = {}
        for j, other in enumerate(x):
            if j == i:
                continue
            product = sum(int(a) * int(b) for a, b in zip(row, other, strict=True))
            apart = sum((int(a) - int(b)) ** 2 for a, b in zip(row, other, strict=True))
            near[j] = product if ranking == "inner" else -apart
        lists.append(sorted(near, key=lambda j: (-near[j], j))[:k])
    return lists


@pytest.mark.parametrize("ranking", RANKINGS)
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(8, 20),
    d=st.integers(1, 5),
    k=st.integers(1, 7),
    offset=st.sampled_from([0, 1000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_prepare_neighbour_lists__by_index_ties_go_to_the_lowest(ranking, n, d, k, offset, seed):
    x = np.random.default_rng(seed).integers(-2, 3, size=(n, d))
    x[0], x[-1] = 1, 0
    if ranking == "cosine":
        x[-1] = -1
        expected = ordered(x.astype(float), k, decimals=12)
    else:
        x += offset
        expected = exact(x, k, ranking)
    found = neighbourhood.prepare_neighbour_lists(
        x.astype(float), k=k, neighbours=ranking, by_index=True
    )
    assert found.indices.tolist() == expected
    assert found.ties == 0


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_prepare_neighbour_lists__order_of_scikit_learn(metric):
    x, _ = reference.digits_layers(150)
    near = NearestNeighbors(n_neighbors=10, metric=metric).fit(x)
    expected = near.kneighbors(return_distance=False)
    found = neighbourhood.prepare_neighbour_lists(x, neighbours=metric)
    np.testing.assert_array_equal(found.indices, expected)
    assert found.ties == 0


def test_prepare_neighbour_lists__which_ties_leave_open():
    x = np.array([[0.0], [1.0], [-1.0], [5.0], [7.0]])
    for k, known in ((2, [0, 1, 1, 1, 1]), (1, [0, 1, 1, 1, 1])):
        found = neighbourhood.prepare_neighbour_lists(x, k=k, neighbours="euclidean")
        assert found.determined.tolist() == [bool(each) for each in known]
        assert found.ties == 1


def test_prepare_neighbours__blocks_change_nothing(monkeypatch):
    x, y = CASES["ordinary"]
    whole = [score(name, x, y, k=4) for name in MEASURES]
    monkeypatch.setattr(neighbourhood, "BLOCK_BYTES", 1000)
    assert [score(name, x, y, k=4) for name in MEASURES] == whole


def test_cycle_knn__steps_in_y_and_then_in_x():
    x, y = (
        Neighbours(np.array(lists))
        for lists in ([[1, 2], [0, 2], [0, 1], [0, 1]], [[1, 3], [0, 2], [3, 1], [0, 1]])
    )
    # No one has 3 for a neighbour in x, so that no step in x ends there.
    assert neighbourhood.compare_cycle_knn(x, y) == 3 / 4
    assert neighbourhood.compare_cycle_knn(y, x) == 1.0


def test_cknna__of_all_pairs_is_cka():
    x, y = CASES["ordinary"]
    everything = {"k": len(x) - 1, "neighbours": "inner", "form": "unbiased"}
    found = score("cknna", x, y, **everything)
    assert found == pytest.approx(similarity(x, y, "cka_debiased"), rel=1e-9)


def test_lists__order_matters_to_lcs_and_edits_alone():
    x = np.array([[0.0], [1.0], [2.0], [4.0], [8.0]])
    a = neighbourhood.prepare_neighbour_lists(x, k=4, neighbours="euclidean", by_index=True)
    b = neighbourhood.NeighbourLists(a.indices[:, ::-1], a.determined)
    assert neighbourhood.compare_jaccard_knn(*(Neighbours(z.indices) for z in (a, b))) == 1.0
    assert neighbourhood.compare_lcs_knn(a, b) == 0.25
    assert neighbourhood.compare_edit_knn(a, b) == 0.0


def variants():
    for name in MEASURES:
        if name == "cknna":
            yield from ((name, {"form": form}) for form in FORMS)
        else:
            yield name, {}


measures = pytest.mark.parametrize(("name", "parameters"), list(variants()), ids=str)


@measures
@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(9, 25), d=st.integers(2, 12), k=st.integers(2, 6), seed=st.integers(0, 2**32 - 1)
)
def test_properties(name, parameters, n, d, k, seed):
    rng = np.random.default_rng(seed)
    x, y = pair(seed, n=n, d=d, e=7)
    found = score(name, x, y, k=k, **parameters)
    turned = 3.7 * x @ rotation(rng, d), 0.01 * y @ rotation(rng, 7)
    assert score(name, *turned, k=k, **parameters) == pytest.approx(found, rel=1e-9, abs=1e-9)
    stretched = x * rng.uniform(0.1, 10, size=(n, 1))
    assert score(name, stretched, y, k=k, **parameters) == pytest.approx(found, rel=1e-9, abs=1e-9)
    order = rng.permutation(n)
    permuted = score(name, x[order], y[order], k=k, **parameters)
    assert permuted == pytest.approx(found, rel=1e-9, abs=1e-9)
    if name != "cycle_knn":
        assert score(name, x, x, k=k, **parameters) == pytest.approx(1.0, abs=1e-12)
    if name == "second_order_cosine" or parameters.get("form") == "paper":
        assert -1 - 1e-12 <= found <= 1 + 1e-12
    elif name != "cknna":
        assert 0 <= found <= 1
    if name != "cycle_knn" and parameters.get("form") != "unbiased":
        assert score(name, y, x, k=k, **parameters) == pytest.approx(found, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", LISTS)
def test_lists__euclidean_neighbours_do_not_see_a_translation(name):
    x, y = CASES["ordinary"]
    moved = score(name, x + 1e6, y - 3.0, neighbours="euclidean", k=5)
    assert moved == score(name, x, y, neighbours="euclidean", k=5)


@measures
def test_constant_layer(name, parameters):
    x, _ = pair(0)
    for constant in (np.zeros_like(x), np.full_like(x, 0.1), np.tile(x[0], (len(x), 1))):
        state = MEASURES[name].prepare(constant, k=4, **parameters)
        assert not state.defined
        assert math.isnan(MEASURES[name].compare(state, state))
        assert math.isnan(score(name, x, constant, k=4, **parameters))
        assert math.isnan(score(name, constant, x, k=4, **parameters))


@measures
def test_rows_of_zeros(name, parameters):
    x, y = pair(0)
    x[[3, 7]] = y[[3, 7]] = 0
    assert math.isfinite(score(name, x, y, k=4, **parameters))
    if name != "cycle_knn":
        assert score(name, x, x, k=4, **parameters) == pytest.approx(1.0, abs=1e-12)


@measures
def test_scale_of_numbers_is_nothing(name, parameters):
    x, y = pair(0)
    found = score(name, x, y, k=4, **parameters)
    for scale in (1e-200, 1e200):
        assert score(name, scale * x, y, k=4, **parameters) == pytest.approx(found, rel=1e-12)


def test_cknna__no_shared_neighbours():
    angles = np.arange(12) * math.pi / 6
    x = np.column_stack([np.cos(angles), np.sin(angles)])
    assert score("cknna", x, x[np.arange(12) * 5 % 12], k=2) == 0.0


@pytest.mark.parametrize("name", LISTS)
def test_unit__what_float32_rounded_is_constant(name):
    x = np.full((20, 3), 0.1) + np.random.default_rng(0).uniform(-3e-9, 3e-9, size=(20, 3))
    measure, eps = MEASURES[name], float(np.finfo(np.float32).eps)
    assert measure.prepare(x, k=3, neighbours="euclidean").defined
    assert not measure.prepare(x, k=3, neighbours="euclidean", eps=eps).defined
