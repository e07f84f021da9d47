"""Tables that people write: CSV, TSV, JSON Lines and Parquet, one stimulus to a row."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.schema import is_column_name
from pipeline.stimuli.draft import is_missing, label_columns, text_column
from pipeline.suggest import did_you_mean

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Manifest:
    """A table of a file, with the names of its rows for messages."""

    path: Path
    columns: Mapping[str, Sequence[Any]]
    rows: Sequence[str]
    has_types: bool = True
    """Whether values have the types that they were written with; else all are texts."""

    def __len__(self) -> int:
        return len(self.rows)

    def required(self, name: str, key: str) -> list[str]:
        """Return a column as texts.

        Parameters
        ----------
        key
            The key of the workflow that names the column.

        Raises
        ------
        InputError
            Where there is no such column.
        """
        if name not in self.columns:
            raise InputError(
                f"{self.path} has no column {name!r}.{did_you_mean(name, self.columns)} It has "
                f"{', '.join(self.columns) or 'none'}: set {key}: to the one that is meant."
            )
        for row, value in zip(self.rows, self.columns[name], strict=True):
            if isinstance(value, list | dict | bytes):
                raise InputError(
                    f"{self.path}: {row}: the column {name!r} holds {type(value).__name__}s, where "
                    "texts are expected. Name another column, or write one value to a row."
                )
        return ["" if is_missing(v) else str(v) for v in self.columns[name]]

    def optional(self, name: str | None, default: str, key: str) -> list[str] | None:
        """Return a column as texts, or None: where it is left out, or the default is not there.

        Parameters
        ----------
        name
            What the workflow says: None leaves the column out.
        default
            What it says if it says nothing.
        """
        if name is None or (name == default and name not in self.columns):
            return None
        return self.required(name, key)


def is_manifest(path: str | Path) -> bool:
    """Whether a file is a table, by the suffix of its name."""
    return Path(path).suffix.lower() in FORMATS


def read_manifest(path: str | Path) -> Manifest:
    """Read a table by the suffix of its name.

    Raises
    ------
    InputError
        Where it is missing, of another format, or malformed.
    """
    path = Path(path)
    if not is_manifest(path):
        raise InputError(
            f"{path}: the format of a table is known by its suffix, which is one of "
            f"{', '.join(FORMATS)}."
        )
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(
            f"{path}: there is no such file (paths are relative to {Path.cwd()})."
            f"{did_you_mean(path.name, beside)}"
        )
    read = {".jsonl": _jsonl, ".parquet": _parquet}.get(path.suffix.lower(), _csv)
    try:
        found = read(path)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    if not len(found):
        raise InputError(f"{path} has no rows.")
    return found


def _csv(path: Path) -> Manifest:
    with path.open(encoding="utf-8-sig", newline="") as file:
        tabs = path.suffix.lower() == ".tsv"
        reader = csv.reader(file, delimiter="\t" if tabs else ",", strict=True)
        header = next(reader, [])
        _check_header(path, header)
        records, lines = [], []
        for record in reader:
            if not record:
                continue
            if len(record) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(record)} fields, but the first line "
                    f"names {len(header)} columns. Quote fields that contain the separator."
                )
            records.append(record)
            lines.append(f"{path.name}, line {reader.line_num}")
    columns = dict(zip(header, map(list, zip(*records, strict=True)), strict=False))
    return Manifest(path, columns, lines, has_types=False)


def _jsonl(path: Path) -> Manifest:
    records: list[dict[str, Any]] = []
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: this is not JSON: {error}.") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: expected an object, {{column: value}}.")
        records.append(record)
        lines.append(f"{path.name}, line {number}")
    names = dict.fromkeys(name for record in records for name in record)
    return Manifest(path, {n: [r.get(n) for r in records] for n in names}, lines)


def _parquet(path: Path) -> Manifest:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(
            f"{path}: Parquet is read with PyArrow, which is not installed: "
            "pip install 'consilience[datasets]'."
        ) from None
    try:
        found = parquet.read_table(path)
    except (ValueError, OSError) as error:  # PyArrow's own errors are ValueErrors
        raise InputError(f"{path} cannot be read as Parquet: {error}.") from None
    _check_header(path, found.column_names)
    columns = {name: found.column(name).to_pylist() for name in found.column_names}
    return Manifest(path, columns, [f"{path.name}, row {i}" for i in range(found.num_rows)])


def _check_header(path: Path, names: Sequence[str]) -> None:
    twice = next((n for n in names if list(names).count(n) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has two columns {twice!r}. Rename one of them.")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key is given twice")
    return record


_NUMBERS = (
    (re.compile(r"-?(0|[1-9][0-9]{0,17})"), int),
    (re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?"), float),
)


def _as_numbers(texts: Sequence[str]) -> Sequence[Any]:
    """Return texts as numbers, where all of them are written as such."""
    for pattern, kind in _NUMBERS:
        if all(pattern.fullmatch(t) for t in texts):
            return [kind(t) for t in texts]
    return texts


def described(
    manifest: Manifest,
    *,
    items: Sequence[str],
    label: str | None,
    group: str | None,
    id: str | None,
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the columns of a manifest that describe its rows, and notes on those left out.

    Parameters
    ----------
    items
        Columns that hold the stimuli themselves, which are left out.
    label, group, id
        Names of these columns; None leaves one out.

    Raises
    ------
    InputError
        Where a column is not there, is incomplete, or repeats an id.
    """
    found: dict[str, NDArray[Any]] = {}
    left_out: list[str] = []
    labels = manifest.optional(label, "label", "label")
    if labels is not None:
        found |= label_columns(labels, manifest.rows)
    groups = manifest.optional(group, "group", "group")
    if groups is not None:
        found["group"] = text_column(groups)
    ids = manifest.optional(id, "id", "id")
    if ids is not None:
        _check_unique(ids, manifest)
        found["id"] = text_column(ids)
    for name, values in manifest.columns.items():
        if name in (*items, label, group, id):
            continue
        if is_column_name(name):
            found[name] = plain_column(values if manifest.has_types else _as_numbers(values))
        else:
            left_out.append(name)
    notes = [_LEFT_OUT.format(names=_quoted(left_out))] if left_out else []
    return found, notes


_LEFT_OUT = (
    "Columns that were left out, because the store uses their names or cannot have such names: "
    "{names}."
)


def nested_note(names: Sequence[str]) -> list[str]:
    """Return a note on columns of lists or objects, if there are any."""
    if not names:
        return []
    return [f"Columns that were left out, because they are not scalars: {_quoted(names)}."]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _check_unique(ids: Sequence[str], manifest: Manifest) -> None:
    seen: dict[str, str] = {}
    for value, row in zip(ids, manifest.rows, strict=True):
        if not value:
            raise InputError(f"{manifest.path}: {row} has no id.")
        if value in seen:
            raise InputError(
                f"{manifest.path}: {seen[value]} and {row} have the same id {value!r}. Ids name "
                "rows: give each its own, or set id: null."
            )
        seen[value] = row


def plain_column(values: Sequence[Any]) -> NDArray[Any]:
    """Return values as a column: of integers, floats or truth values, else of texts."""
    kinds = {type(v) for v in values}
    for wanted, dtype in (({bool}, bool), ({int}, np.int64), ({int, float}, np.float64)):
        if kinds <= wanted:
            try:
                return np.array(values, dtype=dtype)
            except OverflowError:
                break
    return text_column(["" if is_missing(v) else str(v) for v in values])
