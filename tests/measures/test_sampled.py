import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.measures import similarity
from pipeline.measures.pairwise.sampled import (
    CKA_MINIBATCH,
    batches,
    compare_cka_minibatch,
    prepare_cka_minibatch,
)


def score(x, y, **parameters):
    assert set(parameters) <= set(CKA_MINIBATCH.prepares)
    states = [CKA_MINIBATCH.prepare(z, **parameters) for z in (x, y)]
    return CKA_MINIBATCH.compare(*states)


def naive(x, y, batch_size, n_passes, seed):
    """Nguyen et al. 2021, eq. 2 to 4, from plain Gram matrices."""
    sums = np.zeros(3)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    for batch in batches(len(x), batch_size, n_passes, seed):
        k, l = x[batch] @ x[batch].T, y[batch] @ y[batch].T  # noqa: E741
        sums += [reference.hsic_unbiased(*pair) for pair in [(k, l), (k, k), (l, l)]]
    return sums[0] / math.sqrt(sums[1] * sums[2])


def pair(seed, n=40, d=5, e=30, shift=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = np.tanh(x @ rng.normal(size=(d, e))) + rng.normal(size=(n, e))
    return x + shift, y + shift


CASES = {
    "ordinary": pair(0),
    "n much above d": pair(1, n=150, d=2, e=3),
    "d much above n": pair(2, n=14, d=60, e=300),
    "offset": pair(3, n=32, shift=30.0),
    "duplicated rows": tuple(np.repeat(z, 3, axis=0) for z in pair(4, n=9)),
    "one constant feature": tuple(np.column_stack([z, np.full(len(z), 3.0)]) for z in pair(5)),
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("batch_size", [4, 7, 10, 1000])
def test_cka_minibatch__naive(case, batch_size):
    x, y = CASES[case]
    for n_passes, seed in [(1, 0), (3, 5)]:
        found = score(x, y, batch_size=batch_size, n_passes=n_passes, seed=seed)
        expected = naive(x, y, batch_size, n_passes, seed)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("case", list(CASES))
def test_cka_minibatch__one_batch_is_cka_debiased(case):
    x, y = CASES[case]
    expected = similarity(x, y, "cka_debiased")
    assert score(x, y, batch_size=len(x), n_passes=2) == pytest.approx(expected, rel=1e-9)


def test_cka_minibatch__depends_little_on_the_size_of_batches():
    x, y = pair(0, n=600)
    whole = score(x, y, batch_size=600, n_passes=1)
    assert score(x, y, batch_size=30) == pytest.approx(whole, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(8, 40),
    d=st.integers(1, 12),
    batch_size=st.integers(4, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_properties(n, d, batch_size, seed):
    rng = np.random.default_rng(seed)
    x, y = pair(seed, n=n, d=d, e=6)
    draw = {"batch_size": batch_size, "n_passes": 2, "seed": seed % 3}
    found = score(x, y, **draw)
    moved = 4.2 * x @ np.linalg.qr(rng.normal(size=(d, d)))[0] + 5.0
    assert score(moved, 0.1 * y - 2.0, **draw) == pytest.approx(found, rel=1e-9, abs=1e-9)
    assert score(y, x, **draw) == pytest.approx(found, rel=1e-12, abs=1e-15)
    assert score(x, x, **draw) == pytest.approx(1.0, abs=1e-12)
    assert -1 - 1e-12 <= found <= 1 + 1e-12
    assert score(1e200 * x, 1e-200 * y, **draw) == pytest.approx(found, rel=1e-9, abs=1e-9)


def test_batches__cover_all_but_a_small_rest():
    found = batches(23, 5, 2, 0)
    assert [len(batch) for batch in found] == [5, 5, 5, 5] * 2  # 3 are left over
    assert [len(batch) for batch in batches(24, 5, 1, 0)] == [5, 5, 5, 5, 4]
    for half in (found[:4], found[4:]):
        assert len(set(np.concatenate(half).tolist())) == 20
    assert not np.array_equal(found[0], found[4])
    again = batches(23, 5, 2, 0)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert not np.array_equal(found[0], batches(23, 5, 2, 1)[0])


@pytest.mark.parametrize(("n", "batch_size"), [(3, 10), (10, 3)])
def test_batches__too_small(n, batch_size):
    with pytest.raises(InputError, match="at least 4"):
        prepare_cka_minibatch(np.random.default_rng(0).normal(size=(n, 2)), batch_size=batch_size)


def test_constant_layer():
    x, _ = pair(0)
    alone = np.zeros_like(x)
    alone[0] = 1.0  # all the others are equally far from each other: U-centred, nothing is left
    for constant in (np.zeros_like(x), np.full_like(x, 0.1), np.tile(x[0], (len(x), 1)), alone):
        state = prepare_cka_minibatch(constant, batch_size=10)
        assert not state.defined
        assert math.isnan(compare_cka_minibatch(state, state))
        assert math.isnan(score(x, constant, batch_size=10))
        assert math.isnan(score(constant, x, batch_size=10))
    simplex = np.eye(20)
    assert not prepare_cka_minibatch(simplex, batch_size=7).defined
