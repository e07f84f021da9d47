"""The panels of torch against those of numpy. On this machine's CPU; with a GPU, on that too."""

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.measures import measure_spec, prepare, score_pairs
from pipeline.measures.dense import panels

SPECS = {
    "biased": measure_spec("cka"),
    "debiased": measure_spec("cka_debiased"),
    "rbf": measure_spec("cka_rbf"),
    "ranks": measure_spec("rsa", comparison="spearman"),
}
DEVICES = ["cpu:0", pytest.param("cuda", marks=pytest.mark.gpu)]


def prepared(dtype, n=150):
    """Features kept, relations laid out, and those that are formed in float64."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(n, 3))
    return [
        prepare(common @ rng.normal(size=(3, d)) + rng.normal(size=(n, d)), SPECS, dtype=dtype)
        for d in (5, 20, 300)
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tile", [None, 37, 150])
@pytest.mark.parametrize("symmetric", [True, False])
def test_score_pairs__on_a_device_equals_numpy(device, dtype, tile, symmetric):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    xs = prepared(dtype)
    ys = xs if symmetric else xs[::-1]
    expected = score_pairs(xs, ys, SPECS, tile=tile)
    norms = [r.self_product.value for x in xs for r in x.relations.values()]
    found = score_pairs(xs, ys, SPECS, tile=tile, device=device)
    atol = 1e-6 if dtype == np.float32 else 1e-12
    for label in SPECS:
        np.testing.assert_allclose(found[label].values, expected[label].values, atol=atol)
    there = [r.self_product.value for x in xs for r in x.relations.values()]
    np.testing.assert_allclose(there, norms, rtol=atol)


def test_score_pairs__on_a_device_with_a_ragged_mask():
    xs = prepared(np.float64)
    mask = np.array([[True, False, True], [False, False, False], [True, False, False]])
    expected = score_pairs(xs, xs, SPECS, wanted=mask)
    found = score_pairs(xs, xs, SPECS, wanted=mask, device="cpu:0")
    for label in SPECS:
        np.testing.assert_allclose(found[label].values, expected[label].values, atol=1e-12)


def test_torch_panel__forms_products_of_features_itself(monkeypatch):
    """Two of three have few features, which are moved; the third is laid out, and copied."""
    formed = []
    upper = panels.Relation.upper
    monkeypatch.setattr(
        panels.Relation, "upper", lambda self, *a: formed.append(self) or upper(self, *a)
    )
    xs = prepared(np.float32)
    one = {"": SPECS["biased"]}
    score_pairs(xs, xs, one, device="cpu:0")
    assert set(map(id, formed)) == {id(xs[2].relations["", "linear"])}


def test_resolve_device__without_a_gpu(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert panels.resolve_device("auto") == "cpu"
    assert panels.resolve_device("cpu") == "cpu"
    with pytest.raises(InputError, match=r"torch finds no GPU on this worker\. Use"):
        panels.resolve_device("cuda")
    monkeypatch.setattr(panels.Path, "exists", lambda _: True)
    assert panels.resolve_device("auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert panels.resolve_device("auto") == "cuda"
