"""Sets of stimuli in a store: whole in the driver, a few rows at a time on workers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from pictures import write_photos

from pipeline.errors import InputError, StoreError
from pipeline.schema import groups
from pipeline.stimuli import StimulusTable, index_stimuli, open_stimuli
from pipeline.stimuli.draft import text_column
from pipeline.stimuli.images import ImagesSpec
from pipeline.stimuli.memory import table_of
from pipeline.stimuli.table import row_name
from pipeline.store import open_store
from pipeline.store.io.location import locate
from pipeline.store.stimuli import read_table
from pipeline.store.writer import StoreWriter


@pytest.fixture
def spec(tmp_path: Path) -> ImagesSpec:
    write_photos(tmp_path / "p", ["a.jpg", "b.png", "c/d.jpg"])
    (tmp_path / "p" / "m.csv").write_text(
        "image,caption,label,id,weight,fine\na.jpg,A,x,1,0.5,true\nb.png,,y,2,1.5,false\n"
        "c/d.jpg,C,x,3,2,true\n"
    )
    return ImagesSpec(source="images", manifest=str(tmp_path / "p" / "m.csv"))


def test_table__written_and_read(writer: StoreWriter, spec: ImagesSpec) -> None:
    table = index_stimuli(spec)
    writer.write_stimuli(table)
    found = writer.find_table(spec.recorded())
    assert found is not None
    assert found.digest == table.digest
    assert (found.key, found.source, found.notes) == (table.key, table.source, table.notes)
    assert found.item_bytes == table.item_bytes
    for name, values in table.columns.items():
        np.testing.assert_array_equal(found.columns[name], values, err_msg=name)
    assert found.content["text"].tolist() == table.content["text"].tolist()
    assert found.content["text"][1] == 0
    assert index_stimuli(spec, found).digest == table.digest
    assert writer.find_table({**spec.recorded(), "root": "elsewhere"}) is None


def test_table__of_digits(writer: StoreWriter, stimuli: StimulusTable) -> None:
    writer.write_stimuli(stimuli)
    found = read_table(writer.root, stimuli.key)
    assert found is not None
    assert found.digest == stimuli.digest


def test_rows__as_the_table_has_them(writer: StoreWriter, spec: ImagesSpec) -> None:
    table = index_stimuli(spec)
    writer.write_stimuli(table)
    rows = writer.stimulus_rows(table.key)
    assert (len(rows), rows.name, rows.key, rows.digest) == (3, "m", table.key, table.digest)
    for part in (slice(0, 3), slice(1, 2), slice(2, 3)):
        for modality in table.modalities:
            np.testing.assert_array_equal(rows.ids_at(modality, part), table.ids_at(modality, part))
        for name in ("caption", "path", "label"):
            np.testing.assert_array_equal(rows.column_at(name, part), table.columns[name][part])
    assert row_name(rows, 2) == row_name(table, 2) == "3"
    reader = open_stimuli(spec, rows)
    assert [i.size for i in reader.read("image", slice(0, 2))] == [(16, 12)] * 2
    with pytest.raises(StoreError, match="stimuli/other is missing"):
        writer.stimulus_rows("other")


@pytest.mark.parametrize("chunk", [2, 5, 7, 100])
def test_rows__over_several_chunks(
    writer: StoreWriter, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(groups, "ROW_CHUNK", chunk)
    texts = [f"text {i}" for i in range(23)]
    table = table_of("t", {}, captions=texts)
    writer.write_stimuli(table)
    rows = writer.stimulus_rows(table.key)
    for start in range(23):
        for stop in range(start + 1, 24):
            part = slice(start, stop)
            assert list(rows.column_at("caption", part)) == texts[part]
            assert rows.ids_at("text", part).tolist() == table.content["text"][part].tolist()


def test_write__changed_columns_replace_the_old(writer: StoreWriter, spec: ImagesSpec) -> None:
    table = index_stimuli(spec)
    writer.write_stimuli(table)
    root = Path(spec.folder)
    (root / "c/d.jpg").rename(root / "c/renamed.jpg")
    manifest = root / "m.csv"
    manifest.write_text(manifest.read_text().replace("d.jpg", "renamed.jpg").replace(",y,", ",z,"))
    moved = index_stimuli(spec, table)
    assert moved.key == table.key
    writer.write_stimuli(moved)
    assert list(writer.stimulus_column(table.key, "path"))[2] == "c/renamed.jpg"
    assert "z" in list(writer.stimulus_column(table.key, "label_name"))
    assert writer.sets == [table.key]


def test_write__what_is_recorded_is_kept_up_to_date(writer: StoreWriter, spec: ImagesSpec) -> None:
    table = index_stimuli(spec)
    writer.write_stimuli(dataclasses.replace(table, details={"decoder": "Pillow 9"}))
    writer.write_stimuli(table)
    assert writer.set_metadata(table.key)["details"] == table.details


def test_stimuli__plain_xarray_opens_them(writer: StoreWriter, spec: ImagesSpec) -> None:
    table = index_stimuli(spec)
    writer.write_stimuli(table)
    path = locate(writer.location).path  # type: ignore[attr-defined]
    found = xr.open_zarr(path / "stimuli" / table.key, consolidated=False)
    assert dict(found.sizes) == {"stimulus": 3}
    assert found["weight"].values.tolist() == [0.5, 1.5, 2.0]
    assert found["fine"].values.tolist() == ["true", "false", "true"]
    assert found["caption_id"].values[1] == ""
    own = open_store(path).stimuli()
    assert set(own.variables) == set(found.variables)
    assert list(own["stimulus"].values) == list(table.stimulus_ids)


def test_ids__of_rows_whose_first_modality_is_missing(writer: StoreWriter) -> None:
    whole = table_of("t", {}, images=[np.full((2, 2), v, np.uint8) for v in (1, 2)],
                     captions=["a", "b"])  # fmt: skip
    content = {**whole.content, "image": np.array([0, whole.content["image"][1]], np.uint64)}
    table = StimulusTable("t", {}, content, {"caption": text_column(["a", "b"])})
    assert table.row_ids.tolist() == [content["text"][0], content["image"][1]]
    writer.write_stimuli(table)
    rows = writer.stimulus_rows(table.key)
    assert rows.ids_at("image", slice(0, 2)).tolist() == content["image"].tolist()
    assert rows.ids_at("text", slice(0, 2)).tolist() == content["text"].tolist()
    with pytest.raises(InputError, match="1 of 2 rows have no image, which image towers need"):
        table.ids("image")


def test_memory__a_reader_of_rows_holds_one_chunk(
    writer: StoreWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "ROW_CHUNK", 8)
    table = table_of("t", {}, captions=[f"text {i}" for i in range(100)])
    writer.write_stimuli(table)
    rows: Any = writer.stimulus_rows(table.key)
    for start in range(0, 100, 4):
        rows.column_at("caption", slice(start, start + 4))
        assert len(rows._chunks["caption"][1]) <= 8
