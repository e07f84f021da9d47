"""Texts: the lines of a file, or a column of a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.stimuli import content_id, index_stimuli, open_stimuli
from pipeline.stimuli.ids import hex_ids
from pipeline.stimuli.text import TextSpec


def spec(path: Path, **keys: str | None) -> TextSpec:
    return TextSpec(source="text", path=str(path), **keys)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_lines__in_order_without_blank_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "words.txt", "\ufeffone\n\n  \ntwo words\nGröße\n")
    table = index_stimuli(spec(path))
    assert table.modalities == ("text",)
    assert list(table.columns["caption"]) == ["one", "two words", "Größe"]
    assert hex_ids(table.row_ids)[2] == content_id("Größe".encode())
    assert table.key == f"words-{table.fingerprint[:8]}"
    assert open_stimuli(spec(path), table).read("text", slice(1, 3)) == ["two words", "Größe"]


def test_lines__other_line_separators_are_text(tmp_path: Path) -> None:
    path = tmp_path / "w.txt"
    path.write_bytes("a\u2028b\nc\x0cd\r\ne".encode())
    assert list(index_stimuli(spec(path)).columns["caption"]) == ["a\u2028b", "c\x0cd", "e"]


def test_table__column_and_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "sentence,label,lang\nHallo,b,de\nHello,a,en\n")
    table = index_stimuli(spec(path, text="sentence"))
    assert list(table.columns["caption"]) == ["Hallo", "Hello"]
    assert table.columns["label"].tolist() == [1, 0]
    assert list(table.columns["lang"]) == ["de", "en"]
    with pytest.raises(InputError, match=r"t.csv has no column 'text'\. It has sentence, label"):
        index_stimuli(spec(path))


def test_faults__texts_that_are_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "text,label\na,1\n,2\n  ,3\n")
    with pytest.raises(
        InputError,
        match=r"2 of 3 cannot be used:\n  t.csv, line 3: it has no text\n  t.csv, line 4",
    ):
        index_stimuli(spec(path))
    table = index_stimuli(spec(path, on_bad_stimulus="drop"))
    assert list(table.columns["caption"]) == ["a"]


def test_duplicates__reported(tmp_path: Path) -> None:
    table = index_stimuli(spec(write(tmp_path / "w.txt", "a\nb\na\n")))
    assert "Exact duplicates of earlier stimuli: 1 of 3 (w.txt, line 3)." in table.notes[0]


def test_index__no_text_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no.txt cannot be read as UTF-8 text: .*No such file"):
        index_stimuli(spec(tmp_path / "no.txt"))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"b.txt cannot be read as UTF-8 text"):
        index_stimuli(spec(tmp_path / "b.txt"))
    with pytest.raises(InputError, match=r"stimuli 'e': none are left"):
        index_stimuli(spec(write(tmp_path / "e.txt", "\n\n")))
