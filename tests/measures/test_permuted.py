import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.measures import measure_spec, permuted, prepare, score_pairs, score_permuted

SPECS = {
    "cka": measure_spec("cka"),
    "cka_debiased": measure_spec("cka_debiased"),
    "knn": measure_spec("mutual_knn", k=4),
}


def prepared(seed, widths, n=41, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [prepare(rng.normal(size=(n, d)), SPECS, dtype=dtype) for d in widths]


@pytest.mark.parametrize("chunk", [1, 50, 8192])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_score_permuted__equals_scoring_each_permutation(chunk, dtype, monkeypatch):
    monkeypatch.setattr(permuted, "CHUNK_PAIRS", chunk)
    xs, ys = prepared(0, (3, 60), dtype=dtype), prepared(1, (5, 9, 80), dtype=dtype)
    ys.append(prepare(np.ones((41, 2)), SPECS, dtype=dtype))
    rng = np.random.default_rng(2)
    orders = np.stack([rng.permutation(41) for _ in range(6)] + [np.arange(41)])
    scores = score_permuted(xs, ys, SPECS, orders)
    for label in SPECS:
        assert scores[label].shape == (7, 2, 4)
        for each, order in zip(scores[label], orders, strict=True):
            slow = score_pairs(xs, [y.permuted(order) for y in ys], SPECS)[label].values
            np.testing.assert_allclose(each, slow, atol=2e-6 if dtype == np.float32 else 1e-12)


def test_score_permuted__a_mask_changes_no_wanted_score():
    xs, ys = prepared(0, (3, 60, 7)), prepared(1, (5, 9, 80, 2))
    orders = np.stack([np.random.default_rng(s).permutation(41) for s in range(3)])
    full = score_permuted(xs, ys, SPECS, orders)
    for mask in (np.eye(3, 4, dtype=bool), np.zeros((3, 4), bool), np.arange(4) > [[2], [0], [1]]):
        some = score_permuted(xs, ys, SPECS, orders, wanted=mask)
        for label in SPECS:
            expected = np.where(mask, full[label], np.nan)
            np.testing.assert_allclose(some[label], expected, atol=1e-12)


def test_score_permuted__neighbours_are_equal_to_the_last_bit():
    xs, ys = prepared(0, (3, 60)), prepared(1, (5,))
    order = np.random.default_rng(0).permutation(41)
    specs = {"knn": SPECS["knn"]}
    fast = score_permuted(xs, ys, specs, order[None])["knn"][0]
    slow = score_pairs(xs, [y.permuted(order) for y in ys], specs)["knn"].values
    np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize("orders", [np.arange(41), np.zeros((2, 41), int), np.ones((2, 3), int)])
def test_score_permuted__refuses_what_is_not_a_permutation(orders):
    xs = prepared(0, (3,))
    with pytest.raises(InputError, match=r"Orders have shape .* permutation of the 41 row numbers"):
        score_permuted(xs, xs, SPECS, orders)
