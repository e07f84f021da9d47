"""What stands on disk: readable with xarray and zarr alone, checked to the bit, and refused."""

import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import WrapperStore
from zoo import Zoo

import pipeline
from pipeline import schema
from pipeline.errors import InputError, StoreError
from pipeline.schema import Variable
from pipeline.store import Store, open_store
from pipeline.store.io.checksum import ChecksumStore
from pipeline.store.io.write_guard import WriteGuardStore
from pipeline.store.layout import create_variable, open_root, sweep_partial
from pipeline.store.verify import verify


def arrays(path: Path) -> dict[str, zarr.Array]:
    members = zarr.open_group(path, mode="r", use_consolidated=False).members(max_depth=None)
    return {name: found for name, found in members if isinstance(found, zarr.Array)}


def test_layout__whole_tree_opens_with_plain_xarray(zoo: Zoo) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(zoo.path, engine="zarr", chunks={}, consolidated=False)
    with tree:
        assert set(tree.children) == {
            "stimuli", "activations", "measures", "calibration",
            "competence", "alignment", "convergence", "runs",
        }  # fmt: skip
        (set_key,) = tree["activations"].children
        tower = tree[f"activations/{set_key}/timm/vit-a/image"].to_dataset()
        assert tower["blocks.1"].dims == ("checkpoint", "stimulus", "feature_blocks.1")
        assert tower["blocks.1"].chunks is not None
        assert np.isfinite(tower["blocks.1"].values).all()
        assert tower["checkpoint"].values.tolist() == ["step0", "step10"]


def test_layout__whole_tree_opens_with_plain_zarr(zoo: Zoo) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = zarr.open(zoo.path, mode="r")
        assert isinstance(root, zarr.Group)
        found = dict(root.members(max_depth=None))
    assert root.attrs["format"] == "consilience"
    assert len(found) > 100


def test_layout__one_dataset_opens_with_plain_xarray(zoo: Zoo, zoo_store: Store) -> None:
    (key,) = zoo_store.sets
    with xr.open_zarr(zoo.path, group=f"stimuli/{key}", consolidated=False) as stimuli:
        assert stimuli.sizes["stimulus"] == 597


def test_layout__every_array_ends_in_crc32c_and_names_its_dimensions(zoo: Zoo) -> None:
    found = arrays(zoo.path)
    assert found
    for name, array in found.items():
        assert array.metadata.zarr_format == 3, name
        names = array.metadata.dimension_names
        assert names is not None, name
        assert all(names), name
        codecs = [type(c).__name__ for c in array.metadata.codecs]
        assert codecs[-1] == "Crc32cCodec", (name, codecs)


def test_layout__descriptions_are_the_declared_ones(zoo: Zoo) -> None:
    tables = {
        "stimuli": schema.STIMULI,
        "activations": schema.ACTIVATIONS,
        "measures": schema.SIMILARITY_GRID,
        "calibration": schema.CALIBRATION,
    }
    for name, array in arrays(zoo.path).items():
        declared = tables.get(name.split("/")[0], {}).get(name.split("/")[-1])
        if declared is not None:
            assert array.attrs["description"] == declared.description
            assert array.metadata.dimension_names == declared.dims


def test_layout__metadata_is_not_consolidated(zoo: Zoo) -> None:
    files = list(zoo.path.rglob("zarr.json"))
    assert files
    for file in files:
        assert json.loads(file.read_text()).get("consolidated_metadata") is None, file


def test_layout__nothing_half_written_is_left(zoo: Zoo) -> None:
    assert list(zoo.path.rglob("*.partial")) == []
    assert not (zoo.path / "consilience.lock").exists()


def test_layout__chunks_of_one_set_have_the_same_blocks(zoo: Zoo) -> None:
    rows = {
        array.chunks[1]
        for name, array in arrays(zoo.path).items()
        if name.startswith("activations/") and "layer_index" in array.attrs
    }
    assert len(rows) == 1


def test_layout__layers_keep_their_order(zoo: Zoo, zoo_store: Store) -> None:
    conv = next(e for e in zoo_store.encoders() if e.model == "timm/conv")
    assert conv.layers == ("stages.0", "stages.1", "stages.2", "stages.3")
    group = zarr.open_group(zoo.path, mode="r")[conv.path]
    assert isinstance(group, zarr.Group)
    index = {n: a.attrs["layer_index"] for n, a in group.arrays() if "layer_index" in a.attrs}
    assert sorted(index, key=lambda n: index[n]) == list(conv.layers)


def test_open_root__file(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").write_text("text")
    with pytest.raises(InputError, match=r"a\.zarr is a file, but a store is a folder"):
        open_store(tmp_path / "a.zarr")


def test_open_root__folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("text")
    for mode in ("r", "a"):
        with pytest.raises(InputError, match="is not a store, but a folder with other files"):
            open_root(tmp_path, mode)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_open_root__another_zarr_group(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    for mode in ("r", "a"):
        with pytest.raises(InputError, match="is a Zarr group, but not a Consilience store"):
            open_root(tmp_path / "other.zarr", mode)  # type: ignore[arg-type]


def test_open_root__a_zarr_array(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "array.zarr", shape=(3,), dtype="f4")
    with pytest.raises((InputError, StoreError), match=r"array\.zarr"):
        open_root(tmp_path / "array.zarr", "a")


def test_open_root__newer_format(tmp_path: Path) -> None:
    open_root(tmp_path / "new.zarr", "a").attrs["format_version"] = schema.FORMAT_VERSION + 1
    with pytest.raises(StoreError, match=r"store format 3, but this Consilience reads format 2\."):
        open_store(tmp_path / "new.zarr")


def test_open_root__older_format(tmp_path: Path) -> None:
    path = tmp_path / "old.zarr"
    zarr.create_group(path, attributes={"format": schema.FORMAT, "format_version": 1})
    for attempt in (open_store, verify, partial(verify, repair=True)):
        with pytest.raises(
            StoreError, match=r"store format 1, but .* reads format 2\. Use an older C"
        ):
            attempt(path)  # type: ignore[operator]


def test_open_root__missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no store at .*none\.zarr .*`consilience run WORKFLOW`"):
        open_store(tmp_path / "none.zarr")
    assert not (tmp_path / "none.zarr").exists()


def test_open_root__damaged_root(tmp_path: Path) -> None:
    open_root(tmp_path / "a.zarr", "a")
    (tmp_path / "a.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node')
    with pytest.raises(StoreError, match=r"a\.zarr/zarr\.json cannot be read: .* --repair"):
        open_store(tmp_path / "a.zarr")


def test_open_root__makes_one_in_an_empty_folder(tmp_path: Path) -> None:
    root = open_root(tmp_path, "a")
    assert dict(root.attrs) == {"format": "consilience", "format_version": 2}
    assert open_store(tmp_path).sets == []
    assert pipeline.open_store(tmp_path).encoders  # the public name is the same function


def test_open_root__read_only_cannot_write(zoo_store: Store) -> None:
    with pytest.raises(ValueError, match=r"read.only"):
        zoo_store.root.create_group("new")


def test_create_variable__reads_fill_before_it_is_written(tmp_path: Path) -> None:
    root = open_root(tmp_path / "a.zarr", "a")
    declared = [
        Variable("f", ("x",), "float32", "Number."),
        Variable("i", ("x",), "int64", "Integer.", fill=-1),
        Variable("u", ("x",), "uint8", "State."),
        Variable("b", ("x",), "bool", "Truth."),
        Variable("s", ("x",), "str", "Text."),
    ]
    read = [create_variable(root, v, (1,), (1,))[...][0] for v in declared]
    assert np.isnan(read[0])
    assert [read[1], read[2], read[3], str(read[4])] == [-1, 0, False, ""]


def test_create_variable__text_of_any_length(tmp_path: Path) -> None:
    root = open_root(tmp_path / "a.zarr", "a")
    text = ["", "é", "a" * 300]
    array = create_variable(root, Variable("s", ("x",), "str", "Text."), (3,), (2,), values=text)
    assert [str(s) for s in array[...]] == text


def test_sweep_partial__counts_and_removes(zoo: Zoo, tmp_path: Path) -> None:
    shutil.copytree(zoo.path, tmp_path / "s.zarr")
    chunk = next((tmp_path / "s.zarr").rglob("c/**/0"))
    left = [chunk.with_name("0.1234.partial"), tmp_path / "s.zarr" / "zarr.json.99.partial"]
    for file in left:
        file.write_bytes(b"half")
    assert sweep_partial(tmp_path / "s.zarr") == 2
    assert not any(f.exists() for f in left)
    assert chunk.exists()


def test_wrappers__know_every_way_through_a_store() -> None:
    """What a newer Zarr adds has to pass the lease and the checksums of metadata too."""
    words = ("get", "set", "delete", "clear", "write")
    found = {n for n in dir(WrapperStore) if not n.startswith("__") and any(w in n for w in words)}
    harmless = {"getsize", "getsize_prefix", "supports_deletes", "supports_partial_writes"}
    harmless |= {"supports_writes", "_get_bytes", "_get_bytes_sync", "_get_json", "_get_json_sync"}
    reads = {"get", "_get_many", "get_partial_values"}  # the last two of chunks alone
    writes = {"set", "set_if_not_exists", "_set_many", "delete", "delete_dir", "clear"}
    assert found - harmless == reads | writes
    assert writes <= vars(WriteGuardStore).keys()
    assert {"get", "set", "set_if_not_exists", "_set_many"} <= vars(ChecksumStore).keys()
