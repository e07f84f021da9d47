"""The conventions of the code of Huh et al. 2024, written out as loops and full sorts."""

from functools import partial

import numpy as np
import pytest
import reference

from pipeline import calibrate_layers, compare, similarity
from pipeline.errors import InputError
from pipeline.measures import measure_spec, prepare, presets, score_pairs


def encoder(seed, n=40, widths=(12, 7, 20), dtype=np.float64):
    """Layers with heavy tails and an offset, so that clipping and scaling both matter."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(99).normal(size=(n, 4))
    return [
        (common @ rng.normal(size=(4, d)) + rng.standard_t(3, size=(n, d)) + 0.5).astype(dtype)
        for d in widths
    ]


def threshold(layers, preset):
    flat = np.abs(np.concatenate(layers, axis=1))
    if preset == "prh":
        return np.sort(flat.ravel())[int(0.95 * flat.size)]
    return np.mean([np.quantile(row, 0.95) for row in flat])


def features(layers, preset):
    """Clip all layers at one threshold, then scale rows."""
    tau = threshold(layers, preset)
    clipped = [np.clip(x, -tau, tau) for x in layers]
    return [z / np.linalg.norm(z, axis=1, keepdims=True) for z in clipped]


def hsic(k, m, *, biased):
    n = len(k)
    if biased:
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ m @ h)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    inner = (k * m.T).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
    return inner / (n * (n - 3))


def cka(x, y, *, biased):
    k, m = x @ x.T, y @ y.T
    kk, mm = (hsic(a, a, biased=biased) for a in (k, m))
    return hsic(k, m, biased=biased) / (np.sqrt(kk * mm) + 1e-6)


def nearest(x, k):
    near = x @ x.T
    np.fill_diagonal(near, -1e8)
    return np.argsort(-near, axis=1, kind="stable")[:, :k]


def mutual_knn(x, y, k=10):
    return np.mean(
        [len({*a} & {*b}) / k for a, b in zip(nearest(x, k), nearest(y, k), strict=True)]
    )


def cknna(x, y, k=10):
    def masked(a, b):
        grams = [a @ a.T, b @ b.T]
        mask = np.ones_like(grams[0])
        for gram in grams:
            own = np.zeros_like(gram)
            without = gram - np.diag(np.full(len(gram), np.inf))
            np.put_along_axis(own, np.argsort(-without, axis=1)[:, :k], 1.0, axis=1)
            mask = mask * own
        return hsic(mask * grams[0], mask * grams[1], biased=False)

    return masked(x, y) / (np.sqrt(masked(x, x) * masked(y, y)) + 1e-6)


CODE = {
    "cka": partial(cka, biased=True),
    "cka_debiased": partial(cka, biased=False),
    "mutual_knn": mutual_knn,
    "cknna": cknna,
}


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("name", CODE)
def test_compare__as_the_code_computes_it(name, preset):
    layers = [encoder(0), encoder(1, widths=(9, 30))]
    expected = [[CODE[name](b, a) for a in features(layers[0], preset)]
                for b in features(layers[1], preset)]  # fmt: skip
    of = ["a"] * 3 + ["b"] * 2
    found = compare([*layers[0], *layers[1]], name, encoders=of, preset=preset)
    np.testing.assert_allclose(found[3:, :3], expected, rtol=1e-9, atol=1e-12)


def test_compare__what_is_added_to_the_denominator_tells():
    """Of debiased CKA a millionth is no rounding error, so the test above would notice."""
    x, y = (features(encoder(seed), "prh")[0] for seed in (0, 1))
    with_it, without = cka(x, y, biased=False), similarity(x, y, "cka_debiased")
    assert 1e-6 < abs(with_it / without - 1) < 1e-2


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("name", CODE)
def test_compare__the_preset_in_single_precision(name, preset):
    layers = encoder(0, dtype=np.float32)
    found = compare(layers, name, encoders=[0, 0, 0], preset=preset)
    expected = [[CODE[name](b, a) for a in features(layers, preset)]
                for b in features(layers, preset)]  # fmt: skip
    atol = 1e-12 if name == "mutual_knn" else 1e-4
    np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
@pytest.mark.parametrize("seed", range(5))
def test_clip_threshold__is_the_sorted_magnitude(dtype, seed):
    rng = np.random.default_rng(seed)
    layers = [
        (rng.normal(size=(rng.integers(1, 30), 7)) * 10.0 ** rng.integers(-3, 3)).astype(dtype)
        for _ in range(rng.integers(1, 4))
    ]
    expected = np.sort(np.abs(np.concatenate([x.ravel() for x in layers])))
    found = presets.clip_threshold(lambda: layers, "prh")
    assert found == expected[int(0.95 * expected.size)]


def test_clip_threshold__rowwise_over_blocks_of_rows(monkeypatch):
    layers = encoder(3)
    monkeypatch.setattr(presets, "ROWS_BYTES", 8 * 39 * 7)
    found = presets.clip_threshold(lambda: layers, "prh_rowwise")
    assert found == pytest.approx(threshold(layers, "prh_rowwise"), rel=1e-12)


def test_clip_threshold__asks_for_one_layer_at_a_time():
    held = []

    def layers():
        for x in encoder(0):
            held.append(len(held))
            yield x

    presets.clip_threshold(layers, "prh")
    assert len(held) == 1 + 3 * 4  # to learn the dtype, then sixteen bits at a time


def test_prepare__without_a_threshold_takes_its_own():
    x, y = encoder(0)[0], encoder(1)[0]
    spec = measure_spec("cka", preset="prh")
    own = [prepare(z, [spec], dtype=float, clip={"prh": threshold([z], "prh")}) for z in (x, y)]
    expected = score_pairs(own[:1], own[1:], {"": spec})[""].values[0, 0]
    assert similarity(x, y, "cka", preset="prh") == expected


def test_calibrate_layers__clips_each_encoder_at_its_own_threshold():
    xs, ys = encoder(0), encoder(1, widths=(9, 30))
    expected = max(
        cka(a, b, biased=False) for a in features(xs, "prh") for b in features(ys, "prh")
    )
    for method in ("permutation", "analytic"):
        found = calibrate_layers(xs, ys, "cka_debiased", preset="prh", method=method)
        assert found.score == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["mutual_knn", "cka", "cycle_knn", "procrustes", "rsa"])
def test_permuted__keeps_the_preset(name):
    x, y = encoder(0)[2], encoder(1)[2]
    order = np.random.default_rng(0).permutation(40)
    specs = {"plain": measure_spec(name), "prh": measure_spec(name, preset="prh")}
    first, second = (prepare(z, specs, dtype=float) for z in (x, y))
    found = score_pairs([first], [second.permuted(order)], specs)
    for label, spec in specs.items():
        expected = similarity(x, y[order], spec)
        assert found[label].values[0, 0] == pytest.approx(expected, abs=1e-12)
    assert found["plain"].values[0, 0] != found["prh"].values[0, 0]


def test_measure_spec__a_preset_is_stated():
    spec = measure_spec("cknna", preset="prh")
    assert spec["form"] == "unbiased"
    assert measure_spec("cknna", preset="prh", form="paper")["form"] == "paper"
    conventions = spec.conventions()
    assert conventions["preset"] == "prh"
    assert conventions["added_to_denominator"] == 1e-6
    assert "0.95" in conventions["clipping"]
    assert measure_spec("rsa", preset="prh").conventions()["added_to_denominator"] == 0.0
    assert "preset" not in measure_spec("cka").conventions()


def test_measure_spec__refuses_an_unknown_preset():
    with pytest.raises(InputError, match=r"'preset' of the measure 'cka' .* 'prh_rowwise'"):
        measure_spec("cka", preset="aristotle")


def test_compare__refuses_names_that_do_not_fit():
    with pytest.raises(InputError, match="3 arrays and 2 names of encoders"):
        compare(encoder(0), "cka", encoders=["a", "b"], preset="prh")


def test_preset__equals_the_naive_measure_on_the_features():
    x, y = encoder(0), encoder(1)
    a, b = features(x, "prh")[0], features(y, "prh")[0]
    found = compare([*x, *y], "distance_correlation", encoders=[0] * 3 + [1] * 3, preset="prh")
    expected = reference.MEASURES["distance_correlation"](a, b, estimator="debiased")
    assert found[0, 3] == pytest.approx(expected, rel=1e-9)
