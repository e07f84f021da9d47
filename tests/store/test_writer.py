"""The write side: what it creates is found by the read side, and never made twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zoo import tree

from pipeline.errors import InputError, StoreError
from pipeline.schema import groups
from pipeline.stimuli import StimulusTable, Subset, SubsetSpec, draw
from pipeline.store import Store, paths
from pipeline.store.io.lease import lease
from pipeline.store.writer import StoreWriter
from pipeline.types import Weights


def test_writer__needs_a_store_unless_it_creates_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no store"):
        StoreWriter(tmp_path / "s.zarr")
    StoreWriter(tmp_path / "s.zarr", create=True)
    assert StoreWriter(tmp_path / "s.zarr").sets == []


def test_writer__writes_only_under_its_lease(tmp_path: Path, stimuli: StimulusTable) -> None:
    with lease(tmp_path / "s.zarr") as held:
        writer = StoreWriter(tmp_path / "s.zarr", create=True, lease=held)
        writer.write_stimuli(stimuli)
    held._lost = "it ended"
    with pytest.raises(StoreError, match="this run has lost the store: it ended"):
        writer.drop_tower("s", "a/b", "image")


def test_write_stimuli__columns_are_read_one_by_one(
    writer: StoreWriter, stimuli: StimulusTable
) -> None:
    writer.write_stimuli(stimuli)
    before = tree(writer.location.path)  # type: ignore[attr-defined]
    writer.write_stimuli(stimuli)
    assert tree(writer.location.path) == before  # type: ignore[attr-defined]
    assert stimuli.labels is not None
    np.testing.assert_array_equal(writer.stimulus_column(stimuli.key, "label"), stimuli.labels)
    with pytest.raises(StoreError, match=r"/moods/zarr\.json cannot be read: it is lost"):
        writer.stimulus_column(stimuli.key, "moods")


def test_ensure_subset__once(writer: StoreWriter, stimuli: StimulusTable) -> None:
    subset = draw(stimuli, SubsetSpec(n=64, seed=0))
    assert isinstance(subset, Subset)
    writer.ensure_subset(subset)
    writer.ensure_subset(subset)
    np.testing.assert_array_equal(writer.rows(subset.key), subset.rows)
    assert writer.group(paths.subset(subset.key)).attrs["base"] == subset.key


def test_tower__created_found_and_dropped(writer: StoreWriter) -> None:
    assert writer.tower("s", "a/b", "image") is None
    made = writer.create_tower(
        "s", "a/b", "image", stimulus_ids=["p", "q"], layers={"stem": 3},
        attributes={"recipe_digest": "r", "stimuli_fingerprint": "f"},
    )  # fmt: skip
    made.add_checkpoints({"final": (5, Weights("w"))})
    assert writer.tower_encoders("s", "a/b", "image") == []
    made.write_block("final", (0, 2), {"stem": np.ones((2, 3), np.float32)})
    (encoder,) = writer.tower_encoders("s", "a/b", "image")
    assert writer.tower_at(encoder.path).read("final", "stem").shape == (2, 3)
    made.update_metadata({"family": "f"})
    found = writer.tower("s", "a/b", "image")
    assert found is not None
    assert found.attrs["family"] == "f"
    writer.drop_tower("s", "a/b", "image")
    assert writer.tower("s", "a/b", "image") is None
    with pytest.raises(StoreError, match="activations/s/a/b/image is missing"):
        writer.tower_at(encoder.path)


def test_ensure_scores__columns_of_slots(writer: StoreWriter) -> None:
    assert writer.scores("u", "cka") is None
    grid = writer.ensure_scores("u", "cka", {"measure": "m"})
    assert grid.chunk == groups.SCORE_GROUP.chunk
    grid.admit({"a": "1", "b": "2"})
    assert writer.ensure_scores("u", "cka", {"measure": "other"}).group.attrs["measure"] == "m"
    grid.write_column("n_ties", {1: 7})
    assert grid.column("n_ties")[:3].tolist() == [-1, 7, -1]


@pytest.mark.parametrize("version", [{}, {"version": 2}])
def test_ensure_null__has_tails_where_it_is_sampled_from_moments(
    writer: StoreWriter, version: dict[str, Any]
) -> None:
    attributes = {**version, "aggregates": ["max", "mean"], "n_permutations": 5}
    grid = writer.ensure_null("u", "cka", "k", attributes)
    grid.admit({"a": "1"})
    chunk = groups.NULL_GROUP.chunk
    assert grid.array("null").shape == grid.array("null").chunks == (2, chunk, chunk, 5)
    assert ("tail" in dict(grid.group.arrays())) == bool(version)
    assert writer.null("u", "cka", "k") is not None
    assert writer.null("u", "cka", "other") is None


def test_drop_measure__leaves_the_others(writer: StoreWriter) -> None:
    null = {"aggregates": ["max"], "n_permutations": 2}
    for label in ("cka", "knn"):
        writer.ensure_scores("u", label, {})
        writer.ensure_null("u", label, "k", null)
        writer.write_dataset("alignment", "u", label, xr.Dataset({"x": ("n", [1.0])}), "i")
    writer.drop_measure("cka")
    assert writer.scores("u", "cka") is writer.null("u", "cka", "k") is None
    assert not writer.is_current("alignment", "u", "cka", "i")
    assert writer.scores("u", "knn") is not None
    assert writer.null("u", "knn", "k") is not None
    assert writer.is_current("alignment", "u", "knn", "i")
    assert not writer.is_current("alignment", "u", "knn", "j")


def test_replace_dataset__a_kill_leaves_one(
    writer: StoreWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.store import datasets

    def dataset(value: float) -> xr.Dataset:
        return xr.Dataset({"x": ("n", [value])})

    writer.replace_dataset("competence", "u", dataset(1.0), "1")
    assert writer.is_committed("competence", "u")
    original = datasets.delete

    def killed(root: Any, path: str) -> None:
        original(root, path)
        if path.endswith("/u"):
            raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.replace_dataset("competence", "u", dataset(2.0), "2")
    assert not writer.is_committed("competence", "u")
    (left,) = writer.column_datasets("competence", "u")
    assert left["x"].values.tolist() == [2.0]


def test_appending_run_log__each_in_a_file_of_its_own(writer: StoreWriter) -> None:
    for name in ("one", "two"):
        with writer.appending_run_log(name) as add:
            add(f"{name}\n")
    assert sorted(writer.location.files(paths.run_logs())) == [
        "one.jsonl", "two.jsonl", "zarr.json",
    ]  # fmt: skip
    record = writer.location.read(paths.run_log("two"))
    assert record is not None
    assert record.content == b"two\n"


def test_dataset__unknown_name(writer: StoreWriter) -> None:
    with pytest.raises(InputError, match=r"there is no final dataset 'alignmnt'\. Did you mean"):
        Store(writer.path).dataset("alignmnt")
