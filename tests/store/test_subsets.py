"""Which subsets and measures a store has: listed once for each call, and never out of date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pipeline.analysis import ALIGNMENT
from pipeline.errors import InputError, StoreError
from pipeline.measures import MeasureSpec, measure_spec
from pipeline.stimuli import StimulusTable, Subset, SubsetSpec, draw
from pipeline.store import Store, layout, paths
from pipeline.store.writer import StoreWriter

REPRESENTATIONS = {f"timm/{m}@final#image/{n}": "d" for m in "ab" for n in ("stem", "head")}


def labels_of(n: int) -> dict[str, MeasureSpec]:
    return {f"knn{k}": measure_spec("mutual_knn", k=k) for k in range(1, n + 1)}


def alignment(n: int = 2) -> xr.Dataset:
    """Make a dataset with all that an alignment must have, and nothing in it."""
    variables = {
        name: (variable.dims, np.full((n,) * len(variable.dims), variable.fill_value, object))
        if variable.dtype == "str"
        else (variable.dims, np.zeros((n,) * len(variable.dims), variable.dtype))
        for name, variable in ALIGNMENT.variables.items()
    }
    return ALIGNMENT.stamped(xr.Dataset(variables))


def add_results(
    writer: StoreWriter, subset: Subset, n_labels: int = 1, *, final: bool = True
) -> None:
    writer.ensure_subset(subset)
    for label, spec in labels_of(n_labels).items():
        attributes = {"measure": spec.identity(), "n_stimuli": len(subset)}
        grid = writer.ensure_scores(subset.key, label, attributes)
        grid.admit(REPRESENTATIONS)
        slots = list(grid.members.values())
        asked = np.zeros((grid.chunk, grid.chunk), bool)
        asked[np.ix_(slots, slots)] = True
        grid.write_chunk(
            0, 0, {"score": np.full(asked.shape, len(subset), np.float32)}, asked, ~asked
        )
        if final:
            writer.write_dataset("alignment", subset.key, label, alignment(), "i")


@pytest.mark.parametrize("call", ["alignment", "similarity", "diagnostics", "measure"])
@pytest.mark.parametrize("named", [True, False])
def test_store__lists_the_subsets_once_a_call(
    writer: StoreWriter,
    stimuli: StimulusTable,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    named: bool,
) -> None:
    first = draw(stimuli, SubsetSpec(n=32, seed=0))
    second = [draw(stimuli, SubsetSpec(n=32, seed=1))] if named else []
    for subset in (first, first.distinct_captions(), *second):
        add_results(writer, subset, 3, final=subset.kind == "images")
    listed = []

    def counting(root: Any, *path: str, mark: str = "") -> Any:
        listed.append("/".join((*filter(None, [root.path]), *path)))
        return layout.child_groups(root, *path, mark=mark)

    for module in ("subsets", "store", "final_datasets"):
        monkeypatch.setattr(f"pipeline.store.{module}.child_groups", counting)
    getattr(Store(writer.path), call)("knn2", first.key if named else None)
    of_results = [f"alignment/{first.key}"] if call == "alignment" else []
    assert sorted(listed) == [*of_results, paths.SCORES, paths.subset(first.key)]


def test_store__sees_what_is_written_after_it_was_opened(
    writer: StoreWriter, stimuli: StimulusTable
) -> None:
    first, second = draw(stimuli, SubsetSpec(n=32, seed=0)), draw(stimuli, SubsetSpec(n=48, seed=0))
    reader = Store(writer.path)
    for store in (reader, writer):
        assert store.subsets == []
    add_results(writer, first, 1)
    for store in (reader, writer):
        assert store.subset() == first.key
        assert store.labels() == ["knn1"]
    add_results(writer, first, 2)
    add_results(writer, second)
    for store in (reader, writer):
        assert store.subsets == sorted([first.key, second.key])
        assert store.labels(first.key) == store.dataset_labels("alignment", first.key)
        assert store.labels(first.key) == ["knn1", "knn2"]
        with pytest.raises(InputError, match="which subset is meant"):
            store.similarity("knn1")
        assert np.nanmax(store.similarity("knn1", second.key)) == len(second)
    writer.drop_measure("knn1")
    for store in (reader, writer):
        assert store.labels(first.key) == ["knn2"]
        with pytest.raises(InputError, match=r"there is no alignment 'knn1'\. Did you mean 'knn2'"):
            store.alignment("knn1", first.key)


def test_subsets__of_distinct_captions(writer: StoreWriter, stimuli: StimulusTable) -> None:
    images = draw(stimuli, SubsetSpec(n=64, seed=0))
    captions = images.distinct_captions()
    add_results(writer, captions, final=False)
    assert Store(writer.path).subsets == [captions.key]  # alone, as with text towers only
    add_results(writer, images)
    store = Store(writer.path)
    assert store.subsets == [images.key]
    assert store.captions_subset() == captions.key
    assert store.subset_metadata(captions.key)["kind"] == "captions"
    assert [d.attrs["kind"] for d in store.diagnostics("knn1")] == ["images", "captions"]
    # pairs that both have are those of the captions
    assert np.unique(store.similarity("knn1")) == [len(captions)]
    add_results(writer, captions)
    assert store.subsets == sorted([images.key, captions.key])


@pytest.mark.parametrize("call", ["similarity", "measure", "diagnostics", "alignment"])
def test_store__damaged_scores_of_captions_are_reported(
    writer: StoreWriter, stimuli: StimulusTable, call: str
) -> None:
    images = draw(stimuli, SubsetSpec(n=64, seed=0))
    captions = images.distinct_captions()
    add_results(writer, images)
    add_results(writer, captions, final=False)
    assert isinstance(writer.path, Path)
    (writer.path / paths.scores(captions.key, "knn1") / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=captions.key):
        getattr(Store(writer.path), call)("knn1", images.key)
