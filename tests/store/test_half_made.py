"""What a run that was killed in the middle of making or removing something leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.schema import SCORE_GROUP
from pipeline.stimuli import Subset
from pipeline.stimuli.digits import load_digits
from pipeline.store import layout
from pipeline.store.activations import TowerGroup
from pipeline.store.catalog import tower_groups
from pipeline.store.grid import Grid, pending_pairs
from pipeline.store.layout import delete, find_group, open_root
from pipeline.store.writer import StoreWriter
from pipeline.types import Weights

CHUNK = 4
PATH = "activations/set-0/timm/m/image"


class Killed(BaseException):
    """Nothing catches it."""


@contextmanager
def killed_at(target: object, name: str, call: int) -> Iterator[None]:
    """Raise instead of the given call (from 0) of a function or method."""
    original, count = getattr(target, name), iter(range(10**6))

    def counted(*arguments: Any, **keywords: Any) -> Any:
        if next(count) == call:
            raise Killed
        return original(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(target, name, counted)
        with pytest.raises(Killed):
            yield


def make_tower(root: zarr.Group) -> TowerGroup:
    return TowerGroup.create(
        root,
        PATH,
        stimulus_ids=["a", "b"],
        layers={"stem": 2, "top": 3},
        attributes={"recipe_digest": "r", "stimuli_fingerprint": "f"},
    )


def make_grid(root: zarr.Group) -> Grid:
    return Grid.create(
        root,
        "g",
        SCORE_GROUP,
        chunk=CHUNK,
        attributes={"measure": "m"},
    )


@pytest.mark.parametrize("call", range(9))
def test_create__tower_killed(tmp_path: Path, call: int) -> None:
    root = open_root(tmp_path / "s.zarr", "a")
    with killed_at(layout, "create_variable", call):
        make_tower(root)
    assert find_group(root, PATH, "recipe_digest") is None
    assert tower_groups(root, "set-0") == []
    assert make_tower(root).layers == ["stem", "top"]
    assert [name for name, *_ in tower_groups(root, "set-0")] == ["timm/m"]


@pytest.mark.parametrize("call", [0, 3])
def test_create__grid_killed(tmp_path: Path, call: int) -> None:
    root = open_root(tmp_path / "s.zarr", "a")
    with killed_at(layout, "create_variable", call):
        make_grid(root)
    assert find_group(root, "g", "chunk") is None
    assert make_grid(root).chunk == CHUNK


@pytest.mark.parametrize("call", range(len(SCORE_GROUP.variables)))
def test_admit__killed_while_the_arrays_grow(tmp_path: Path, call: int) -> None:
    root = open_root(tmp_path / "s.zarr", "a")
    first = dict.fromkeys("abcde", "1")
    with killed_at(zarr.Array, "resize", call):
        make_grid(root).admit(first)
    for wanted in (dict.fromkeys("ab", "1"), first):  # another run may want fewer
        found = Grid(open_root(tmp_path / "s.zarr", "r+")["g"], SCORE_GROUP)  # type: ignore[arg-type]
        n = len(wanted)
        assert (
            pending_pairs(found, wanted, np.ones((n, n), bool), CHUNK).n_pairs == n * (n + 1) // 2
        )
        found.admit(wanted)
    assert {array.shape[0] for _, array in found.group.arrays()} == {2 * CHUNK}
    assert found.members == {name: i for i, name in enumerate("abcde")}


@pytest.mark.parametrize("call", range(8))
def test_add_checkpoints__killed_while_the_arrays_grow(tmp_path: Path, call: int) -> None:
    root = open_root(tmp_path / "s.zarr", "a")
    with killed_at(zarr.Array, "resize", call):
        make_tower(root).add_checkpoints({"x": (0, Weights("w")), "y": (1, Weights("v"))})
    tower = TowerGroup(open_root(tmp_path / "s.zarr", "r+")[PATH])  # type: ignore[arg-type]
    assert tower.checkpoints == []
    tower.add_checkpoints({"x": (0, Weights("w"))})
    lengths = {n: a.shape[0] for n, a in tower.group.arrays() if n != "stimulus"}
    assert set(lengths.values()) == {1}, lengths
    assert tower.weights("x").digest == "w"


def test_delete__killed(tmp_path: Path) -> None:
    """Files go in any order: what is left is not taken for the group."""
    root = open_root(tmp_path / "s.zarr", "a")
    make_tower(root)
    with killed_at(zarr.storage.LocalStore, "delete_dir", 0):
        delete(root, PATH)
    assert find_group(root, PATH, "recipe_digest") is None
    make_tower(root)
    assert find_group(root, PATH, "recipe_digest") is not None


def test_ensure_subset__killed_before_its_rows(tmp_path: Path) -> None:
    """Rows that were never written read as the first row, over and over."""
    writer = StoreWriter(tmp_path / "s.zarr", create=True)
    subset = Subset(load_digits("test"), np.array([3, 5, 8]))
    with killed_at(zarr.Array, "__setitem__", 0):
        writer.ensure_subset(subset)
    writer.ensure_subset(subset)
    rows = writer.root[f"measures/{subset.key}/row"]
    assert isinstance(rows, zarr.Array)
    assert np.asarray(rows[...]).tolist() == [3, 5, 8]
