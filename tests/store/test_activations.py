"""Towers: whole blocks, growth that never moves anything, and reads that notice damage."""

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from zoo import Zoo, build, chunk_files, digits_inputs, flip_byte

from pipeline.config.registry import load_registry
from pipeline.errors import StoreError
from pipeline.schema import groups, rows_per_chunk
from pipeline.store import Store
from pipeline.store.activations import TowerGroup
from pipeline.store.layout import open_root
from pipeline.types import Weights

PATH = "activations/set-0/timm/m/image"
LAYERS = {"stem": 2, "a": 3}


@pytest.fixture
def tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TowerGroup:
    """Ten stimuli in chunks of four rows: blocks of 4, 4 and 2."""
    monkeypatch.setattr(groups, "MAX_ROWS", 4)
    return make(open_root(tmp_path / "s.zarr", "a"))


def make(root: zarr.Group, n: int = 10) -> TowerGroup:
    return TowerGroup.create(
        root,
        PATH,
        stimulus_ids=[f"id{i}" for i in range(n)],
        layers=LAYERS,
        attributes={"recipe_digest": "r", "stimuli_fingerprint": "f"},
    )


def reopened(tower: TowerGroup) -> TowerGroup:
    group = zarr.open_group(tower.group.store, mode="r+", path=tower.group.path)
    return TowerGroup(group)


def add(tower: TowerGroup, *labels: str) -> None:
    tower.add_checkpoints({c: (i, Weights(f"w-{c}", 9, 99)) for i, c in enumerate(labels)})


def values(tower: TowerGroup, block: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, *block])
    return {
        n: rng.normal(size=(block[1] - block[0], w)).astype(np.float32) for n, w in LAYERS.items()
    }


def fill(tower: TowerGroup, checkpoint: str, seed: int = 0) -> None:
    for block in tower.blocks:
        tower.write_block(checkpoint, block, values(tower, block, seed))


def folder_of(tower: TowerGroup, tmp_path: Path, array: str) -> Path:
    return tmp_path / "s.zarr" / tower.group.path / array


def test_rows_per_chunk__one_for_all_layers() -> None:
    assert rows_per_chunk(10) == 10
    assert rows_per_chunk(8192) == rows_per_chunk(5000) == 1024


def test_create__blocks_cover_all_rows(tower: TowerGroup) -> None:
    assert tower.blocks == [(0, 4), (4, 8), (8, 10)]
    assert tower.layers == ["stem", "a"]
    assert tower.complete.shape == (0, 3)
    assert tower.checkpoints == []


def test_create__layer_may_not_hide_a_variable(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a layer may not be called complete"):
        TowerGroup.create(
            open_root(tmp_path / "s.zarr", "a"), PATH,
            stimulus_ids=["a"], layers={"complete": 3}, attributes={},
        )  # fmt: skip


def test_write_block__marks_after_the_last_block(tower: TowerGroup) -> None:
    add(tower, "one")
    for done, block in enumerate(tower.blocks):
        assert reopened(tower).complete.sum() == done
        assert not reopened(tower).is_complete("one")
        tower.write_block("one", block, values(tower, block))
    assert reopened(tower).is_complete("one")
    read = reopened(tower).read("one", "a")
    assert read.dtype == np.float32
    expected = np.concatenate([values(tower, b)["a"] for b in tower.blocks])
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_array_equal(
        reopened(tower).read("one", "a", np.array([9, 3])), expected[[9, 3]]
    )


@pytest.mark.parametrize("block", [(0, 3), (1, 5), (2, 4), (0, 8), (8, 12), (4, 4), (0, 10)])
def test_write_block__rows_that_are_not_one_chunk(
    tower: TowerGroup, block: tuple[int, int]
) -> None:
    add(tower, "one")
    with pytest.raises(
        StoreError, match=r"not one whole chunk of 4 rows; two writers .* overwrite"
    ):
        tower.write_block("one", block, values(tower, block))
    assert not reopened(tower).complete.any()


@pytest.mark.parametrize("layers", [["stem"], ["a", "stem"], ["stem", "a", "more"], []])
def test_write_block__other_layers(tower: TowerGroup, layers: list[str]) -> None:
    add(tower, "one")
    given = {n: np.zeros((4, 3), np.float32) for n in layers}
    with pytest.raises(StoreError, match=r"expected the layers \['stem', 'a'\], got"):
        tower.write_block("one", (0, 4), given)
    assert not reopened(tower).complete.any()


def test_add_checkpoints__appends_and_moves_nothing(tower: TowerGroup, tmp_path: Path) -> None:
    add(tower, "step5")
    fill(tower, "step5")
    before = {f: f.read_bytes() for f in chunk_files(tmp_path / "s.zarr" / PATH, "a")}
    tower.add_checkpoints({"step0": (0, Weights("w0")), "step5": (77, Weights("other"))})
    assert tower.checkpoints == ["step5", "step0"]
    assert tower.steps.tolist() == [0, 0]  # step5 kept what it had
    assert tower.weights("step5") == Weights("w-step5", 9, 99)
    assert tower.weights("step0") == Weights("w0", -1, -1)
    assert tower.is_complete("step5")
    assert not tower.is_complete("step0")
    assert {f: f.read_bytes() for f in before} == before
    fill(tower, "step0", seed=1)
    np.testing.assert_array_equal(
        reopened(tower).read("step5", "stem")[:4], values(tower, (0, 4))["stem"]
    )


def test_add_checkpoints__interrupted_growth_is_repaired(tower: TowerGroup) -> None:
    add(tower, "one")
    fill(tower, "one")
    for name in ("stem", "a", "step", "weights_digest", "complete", "checkpoint"):
        array = tower.array(name)
        array.resize((3, *array.shape[1:]))  # and then the driver is killed: no labels
    again = reopened(tower)
    assert again.checkpoints == ["one"]
    assert again.is_complete("one")
    add(again, "one", "two")
    assert again.checkpoints == ["one", "two"]
    shapes = {again.array(n).shape[0] for n in ("stem", "a", "step", "complete", "checkpoint")}
    assert shapes == {2}
    assert not again.is_complete("two")
    fill(again, "two", seed=2)
    np.testing.assert_array_equal(
        reopened(again).read("two", "a")[8:], values(again, (8, 10), 2)["a"]
    )


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=4, unique=True), max_size=5))
@settings(max_examples=15, deadline=None)
def test_add_checkpoints__any_sequence_keeps_rows(batches: list[list[str]]) -> None:
    tower = make(zarr.open_group(zarr.storage.MemoryStore(), mode="w", zarr_format=3), n=4)
    order: list[str] = []
    for batch in batches:
        add(tower, *batch)
        for label in batch:
            if label not in order:
                order.append(label)
                tower.write_block(label, (0, 4), values(tower, (0, 4), ord(label)))
    assert reopened(tower).checkpoints == order
    for label in order:
        np.testing.assert_array_equal(
            reopened(tower).read(label, "a"), values(tower, (0, 4), ord(label))["a"]
        )


def test_replace_weights__only_before_the_first_block(tower: TowerGroup) -> None:
    add(tower, "a", "b")
    before = tower.digest("b")
    tower.replace_weights("b", Weights("mended", 1, 2))
    assert tower.weights("b") == reopened(tower).weights("b") == Weights("mended", 1, 2)
    assert tower.weights("a") == Weights("w-a", 9, 99)
    assert tower.digest("b") != before
    tower.write_block("b", (0, 4), values(tower, (0, 4)))
    with pytest.raises(StoreError, match=r"image@b: activations were already extracted"):
        reopened(tower).replace_weights("b", Weights("other"))


def test_read__not_extracted(tower: TowerGroup) -> None:
    add(tower, "one")
    tower.write_block("one", (0, 4), values(tower, (0, 4)))
    with pytest.raises(
        StoreError, match=r"m/image@one/a: not all of these activations have been extracted"
    ):
        reopened(tower).read("one", "a")
    with pytest.raises(StoreError, match=r"not all of these activations"):
        tower.read("two", "a")


@pytest.mark.parametrize("at", [0, 7, -5, -1])
def test_read__flipped_bit(tower: TowerGroup, tmp_path: Path, at: int) -> None:
    add(tower, "one")
    fill(tower, "one")
    flip_byte(chunk_files(tmp_path / "s.zarr" / PATH, "a")[1], at)
    with pytest.raises(StoreError, match=r"m/image@one/a: stored data are damaged: "):
        reopened(tower).read("one", "a")
    assert reopened(tower).read("one", "stem").shape == (10, 2)


def test_read__truncated_chunk(tower: TowerGroup, tmp_path: Path) -> None:
    add(tower, "one")
    fill(tower, "one")
    file = chunk_files(tmp_path / "s.zarr" / PATH, "a")[1]
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(StoreError, match="damaged"):
        reopened(tower).read("one", "a")


def test_read__deleted_chunk(tower: TowerGroup, tmp_path: Path) -> None:
    add(tower, "one")
    fill(tower, "one")
    chunk_files(tmp_path / "s.zarr" / PATH, "a")[2].unlink()
    with pytest.raises(StoreError, match=r"m/image@one/a: a chunk is lost"):
        reopened(tower).read("one", "a")


def test_digest__changes_with_recipe_weights_and_stimuli(tower: TowerGroup) -> None:
    add(tower, "one", "two")
    seen = {tower.digest("one"), tower.digest("two")}
    for name in ("recipe_digest", "stimuli_fingerprint"):
        tower.group.attrs[name] = "changed"
        seen.add(tower.digest("one"))
    assert len(seen) == 4


def test_stored_activations__equal_a_forward_pass_by_hand(zoo: Zoo, zoo_store: Store) -> None:
    for model, pool in (("timm/vit-a", "mean"), ("timm/vit-b", "cls")):
        network = build(model)
        name = model.partition("/")[2]
        network.load_state_dict(load_file(zoo.folder / f"run/{name}/step-10.safetensors"))
        with torch.inference_mode():
            outputs = network.forward_intermediates(
                digits_inputs(),
                output_fmt="NLC",
                return_prefix_tokens=True,
                intermediates_only=True,
            )
        assert len(outputs) == 2
        for i, output in enumerate(outputs):  # with a class token: (patches, class token)
            expected = output.mean(1) if pool == "mean" else output[1][:, 0]
            stored = zoo_store.activations(model, layer=f"blocks.{i}", checkpoint="step10")
            np.testing.assert_allclose(stored.values, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_stored_activations__convolutions_from_a_seed(zoo: Zoo, zoo_store: Store) -> None:
    spec = load_registry([zoo.folder / "registry.yaml"])["timm/conv"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.initial_seed(0))
        network = build("timm/conv")
    with torch.inference_mode():
        outputs = network.forward_intermediates(digits_inputs(32), intermediates_only=True)
    assert len(outputs) == 4
    for i, output in enumerate(outputs):
        stored = zoo_store.activations("timm/conv", layer=f"stages.{i}", checkpoint="init")
        np.testing.assert_allclose(stored.values, output.mean((2, 3)).numpy(), rtol=1e-4, atol=1e-4)


def test_stored_activations__rows_are_the_towers_stimuli(zoo_store: Store) -> None:
    stimuli = zoo_store.stimuli()
    image = zoo_store.activations("open_clip/clip@step10#image/blocks.0")
    text = zoo_store.activations("open_clip/clip@step10#text/blocks.0")
    assert image["stimulus"].values.tolist() == stimuli["stimulus"].values.tolist()
    assert text["stimulus"].values.tolist() == stimuli["caption_id"].values.tolist()
