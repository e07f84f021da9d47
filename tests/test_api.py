"""What a notebook asks of a store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from zoo import MEASURES, Zoo, flip_byte

import pipeline
from pipeline.analysis.competence import COMPETENCE
from pipeline.errors import InputError, StoreError
from pipeline.schema import ALIGNMENT, ENCODER, STIMULI, validate
from pipeline.store import Store

VIT = "timm/vit-a@step10#image"


@contextmanager
def raise_if_dask_computes() -> Iterator[None]:
    def scheduler(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed early")

    with dask.config.set(scheduler=scheduler):
        yield


def in_a_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = ("torch", "timm", "open_clip", "distributed", "sklearn", "matplotlib")
LOADED = f"print([m for m in {HEAVY} if m in sys.modules])"


def test_import__is_light() -> None:
    assert in_a_process(f"import sys, pipeline; dir(pipeline); {LOADED}") == "[]"


def test_open_store__and_read_without_torch(zoo: Zoo) -> None:
    code = (
        f"import sys, pipeline; s = pipeline.open_store({str(zoo.path)!r}); s.catalog();"
        f"s.stimuli(); s.similarity('cka'); s.alignment('cka'); s.activations('{VIT}/blocks.0');"
        f"{LOADED}"
    )
    assert in_a_process(code) == "[]"


def test_open_store__without_what_reads_yaml(zoo: Zoo) -> None:
    read = f"import sys, pipeline; s = pipeline.open_store({str(zoo.path)!r}); s.catalog()"
    loaded = "[m for m in ('pydantic', 'ruamel.yaml', 'PIL') if m in sys.modules]"
    assert in_a_process(f"{read}; s.stimuli(); print({loaded})") == "[]"


def test_public_names__all_there() -> None:
    for name in pipeline.__all__:
        assert getattr(pipeline, name) is not None
        assert name in dir(pipeline)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.nothing  # type: ignore[attr-defined]


def test_repr__names_the_sets(zoo_store: Store) -> None:
    assert "sets digits-test-" in repr(zoo_store)


def test_catalog__one_row_per_representation(zoo_store: Store) -> None:
    catalog = zoo_store.catalog()
    assert catalog.index.name == "representation"
    assert catalog.index.is_unique
    assert len(catalog) == 24
    row = catalog.loc["timm/conv@end#image/stages.2"]
    assert (row.model, row.checkpoint, row.tower, row.layer) == (
        "timm/conv",
        "end",
        "image",
        "stages.2",
    )
    assert (row.layer_index, row.n_features, row.step, row.final) == (2, 8, 10, True)
    assert (row.family, row.objective, row.samples_seen) == ("conv", "none", 640)
    assert row.n_parameters > 100
    assert row.flops > 1000


def test_catalog__agrees_with_the_arrays(zoo_store: Store) -> None:
    for representation, row in zoo_store.catalog().iterrows():
        array = zoo_store.activations(str(representation))
        assert array.sizes["feature"] == row.n_features


def test_activations__lazy(zoo_store: Store) -> None:
    with raise_if_dask_computes():
        array = zoo_store.activations("timm/vit-a", layer="blocks.1", checkpoint="step10")
        assert array.dims == ("stimulus", "feature")
        assert array.shape == (597, 12)
        assert array.dtype == np.float32
        assert array.chunks is not None
        later = (array - array.mean("stimulus")).isel(stimulus=slice(10))
        with pytest.raises(AssertionError, match="early"):
            later.compute()
    assert np.isfinite(later.compute()).all()
    assert array.attrs["representation"] == f"{VIT}/blocks.1"


def test_activations__complete_id(zoo_store: Store) -> None:
    by_id = zoo_store.activations(f"{VIT}/blocks.1")
    by_words = zoo_store.activations(
        "timm/vit-a", layer="blocks.1", checkpoint="step10", tower="image"
    )
    xr.testing.assert_identical(by_id.compute(), by_words.compute())
    assert zoo_store.activations(VIT, layer="blocks.1").identical(by_id)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"model": "timm/vit-a", "layer": "blocks.1"},
         r"which checkpoint of timm/vit-a is meant\? Pass checkpoint= one of: step0, step10\."),
        ({"model": "timm/vit-a", "checkpoint": "step0"},
         r"which layer of timm/vit-a@step0#image is meant\? Pass layer= one of: blocks.0, bl"),
        ({"model": "open_clip/clip"},
         r"which tower of open_clip/clip is meant\? Pass tower= one of: image, text\."),
        ({"model": "timm/vit-a", "checkpoint": "step1"},
         r"no checkpoint of timm/vit-a 'step1'\. Did you mean 'step10' .*There are: step0, step10"),
        ({"model": f"{VIT}/blocks.7"},
         r"no layer of .* 'blocks.7'.* There are: blocks.0, blocks.1"),
        ({"model": "timm/vit-a@step10#text/blocks.0"},
         r"no tower of timm/vit-a 'text'.*There are: image"),
        ({"model": "timm/vitt-a"},
         r"no model 'timm/vitt-a' in .*Did you mean 'timm/vit-a'.*catalog\(\)"),
        ({"model": "timm/vit-a", "set": "cifar"}, r"no set 'cifar'.*There are: digits-test-"),
    ],
)  # fmt: skip
def test_activations__ambiguous_or_unknown(
    zoo_store: Store, arguments: dict[str, str], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        zoo_store.activations(**arguments)


def test_stimuli__what_ones_own_model_needs(zoo_store: Store) -> None:
    stimuli = zoo_store.stimuli()
    validate(stimuli, STIMULI, ("stimulus", "caption_id", "caption", "label", "label_name"))
    assert stimuli["image"].shape == (597, 8, 8, 1)
    assert stimuli.indexes["stimulus"].is_unique
    assert stimuli["label_name"].values[0] in str(stimuli["caption"].values[0])


@pytest.mark.parametrize("label", MEASURES)
def test_similarity__labelled_and_symmetric(zoo_store: Store, label: str) -> None:
    found = zoo_store.similarity(label)
    assert found.dims == ("representation_x", "representation_y")
    assert found.name == label
    assert found.shape == (24, 24)
    np.testing.assert_array_equal(found.values, found.values.T)
    assert (found["representation_x"].values == found["representation_y"].values).all()
    assert found.attrs["measure"] == zoo_store.measure(label).name
    compared = np.isfinite(found.values)
    assert ((found["n_stimuli"].values > 0) == compared).all()


def test_similarity__unknown_label(zoo_store: Store) -> None:
    with pytest.raises(InputError, match=r"no measure 'knn10'.*There are: cka, cka_debiased, knn"):
        zoo_store.similarity("knn10")
    with pytest.raises(InputError, match="no subset 'other'"):
        zoo_store.similarity("knn", subset="other")


@pytest.mark.parametrize("label", MEASURES)
def test_alignment__validates(zoo_store: Store, label: str) -> None:
    found = zoo_store.alignment(label)
    validate(found, ALIGNMENT, ALIGNMENT)
    for name in ENCODER:
        for side in "xy":
            assert found[f"{name}_{side}"].dims == (f"encoder_{side}",)
    assert not found["family_x"].isnull().any()
    frame = found["calibrated"].to_dataframe()
    assert len(frame) == 100


def test_alignment__unknown(zoo_store: Store) -> None:
    with pytest.raises(
        InputError, match=r"no alignment 'knn10'.*There are: cka, cka_debiased, knn"
    ):
        zoo_store.alignment("knn10")


def test_convergence__of_a_stored_alignment(zoo_store: Store) -> None:
    """What is stored can be worked out anew from what the store returns."""
    from pipeline.analysis.convergence import convergence_dataset

    stored = zoo_store.convergence("cka")
    assert stored.sizes
    again = convergence_dataset(zoo_store.alignment("cka"))
    assert set(again.data_vars) == set(stored.data_vars)
    for name in again.data_vars:
        if again[name].dtype.kind == "f":
            np.testing.assert_allclose(again[name].values, stored[name].values)


def test_text__is_text_for_numpy(zoo_store: Store) -> None:
    """`.astype(str)` is what everybody does next."""
    for array in (zoo_store.stimuli()["caption"], zoo_store.alignment("cka")["family_x"]):
        assert array.values.astype(str).dtype.kind == "U"


def test_competence__validates(zoo_store: Store) -> None:
    validate(zoo_store.competence(), dict(COMPETENCE.variables), COMPETENCE.variables)


def test_dataset__stage_that_was_not_run(copied: Zoo) -> None:
    import shutil

    shutil.rmtree(copied.path / "competence")
    with pytest.raises(StoreError, match=r"has no competence/.*that stage has not been run"):
        copied.store().competence()


def own_layers(store: Store, encoder: str = VIT) -> dict[str, np.ndarray]:
    return {b: store.activations(f"{encoder}/{b}").values for b in ("blocks.0", "blocks.1")}


@pytest.mark.parametrize("label", MEASURES)
def test_score__stored_layers_give_stored_scores(zoo_store: Store, label: str) -> None:
    ids = zoo_store.stimuli()["stimulus"].values
    found = zoo_store.score(own_layers(zoo_store), stimulus=ids, measure=label)
    stored = zoo_store.similarity(label)
    finals = ["open_clip/clip@step10#image", "timm/conv@end#image", VIT, "timm/vit-b@step10#image"]
    assert found["encoder"].values.tolist() == finals
    assert found.attrs["n_stimuli"] == 64
    for layer in ("blocks.0", "blocks.1"):
        for name in found["representation"].values.tolist():
            expected = float(stored.sel(representation_x=f"{VIT}/{layer}", representation_y=name))
            assert float(found["score"].sel(layer=layer, representation=name)) == pytest.approx(
                expected, abs=1e-6
            )
    aligned = zoo_store.alignment(label)["score"].sel(encoder_x=VIT, encoder_y=finals)
    np.testing.assert_allclose(found["alignment"].values, aligned.values, atol=1e-6)
    at = finals.index("timm/conv@end#image")
    assert str(found["own_layer"].values[at]) in own_layers(zoo_store)
    assert str(found["best_layer"].values[at]).startswith("stages.")


def test_score__rows_in_any_order(zoo_store: Store) -> None:
    ids = zoo_store.stimuli()["stimulus"].values
    order = np.random.default_rng(0).permutation(len(ids))
    layers = own_layers(zoo_store)
    straight = zoo_store.score(layers, ids, "knn")
    shuffled = zoo_store.score({n: x[order] for n, x in layers.items()}, list(ids[order]), "knn")
    xr.testing.assert_identical(straight, shuffled)


def test_score__only_the_subsets_rows_are_needed(zoo_store: Store) -> None:
    ids = zoo_store.stimuli()["stimulus"].values
    rows = zoo_store.rows(zoo_store.subsets[0])
    layers = own_layers(zoo_store)
    some = zoo_store.score({n: x[rows] for n, x in layers.items()}, ids[rows], "cka")
    xr.testing.assert_identical(some, zoo_store.score(layers, ids, "cka"))


def test_score__chosen_encoders(zoo_store: Store) -> None:
    ids, layers = zoo_store.stimuli()["stimulus"].values, own_layers(zoo_store)
    assert zoo_store.score(layers, ids, "cka", encoders="all").sizes["encoder"] == 8
    one = zoo_store.score(layers, ids, "cka", encoders="timm/conv@init#image")
    assert one["encoder"].values.tolist() == ["timm/conv@init#image"]
    assert one.sizes["representation"] == 4
    with pytest.raises(InputError, match=r"no image encoder 'timm/conv@int#image'.*Did you mean"):
        zoo_store.score(layers, ids, "cka", encoders=["timm/conv@int#image"])


def test_score__faults(zoo_store: Store) -> None:
    ids, layers = zoo_store.stimuli()["stimulus"].values, own_layers(zoo_store)
    x = layers["blocks.0"]
    with pytest.raises(InputError, match="of the 64 stimuli that the store compares are not among"):
        zoo_store.score({"a": x[:100]}, ids[:100], "cka")
    with pytest.raises(InputError, match=rf"stimulus id {ids[3]} is given more than once"):
        zoo_store.score({"a": np.vstack([x, x[3:4]])}, [*ids, ids[3]], "cka")
    for wrong in (x[:-1], x[:, 0], x[None]):
        with pytest.raises(
            InputError, match=r"layer 'a': expected shape \(597, features\), one row"
        ):
            zoo_store.score({"a": wrong}, ids, "cka")
    with pytest.raises(InputError, match="no layer was given"):
        zoo_store.score({}, ids, "cka")
    with pytest.raises(InputError, match="no measure 'rsa'"):
        zoo_store.score({"a": x}, ids, "rsa")
    with pytest.raises(InputError, match="a"):
        zoo_store.score({"a": np.full_like(x, np.nan)}, ids, "cka")


def test_open_store__finds_a_flipped_bit(copied: Zoo) -> None:
    (key,) = copied.store().subsets
    for file in sorted((copied.path / "measures" / key / "cka" / "score" / "c").rglob("*")):
        if file.is_file():
            flip_byte(file)
    with pytest.raises((StoreError, ValueError), match=r"checksum|damaged"):
        copied.store().similarity("cka")


def test_open_store__while_nothing_is_there_yet(tmp_path: Any) -> None:
    from pipeline.store.layout import open_root

    open_root(tmp_path / "new.zarr", "a")
    store = pipeline.open_store(tmp_path / "new.zarr")
    assert "none" in repr(store)
    with pytest.raises(InputError, match="there is no set in this store yet"):
        store.catalog()
    with pytest.raises(InputError, match="there is no subset in this store yet"):
        store.similarity("cka")
