"""From what a source found to a table: faults, order, duplicates and class numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.stimuli.ids import Ids
from pipeline.stimuli.source import FileSpec
from pipeline.stimuli.table import StimulusTable
from pipeline.types import Mask, Modality


@dataclass
class Draft:
    """Rows as a source found them, bad ones included.

    Attributes
    ----------
    rows
        What each row is called in messages: a path, a line.
    content
        Modality → content ids; 0 where a row has no item, or a bad one.
    columns
        Name → value of each row.
    faults
        Row → why it cannot be used.
    notes
        What a person should know of it, as sentences.
    """

    rows: Sequence[str]
    content: Mapping[Modality, Ids]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    faults: Mapping[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def table(
        self,
        spec: FileSpec,
        name: str,
        *,
        order: bool = False,
        details: Mapping[str, Any] | None = None,
        resident_bytes: int = 0,
        item_bytes: int = 0,
    ) -> StimulusTable:
        """Return the table of the good rows.

        Parameters
        ----------
        order
            Whether to order the rows by their content ids, for sources that have no order of
            their own; else they stay as they are.
        details
            What the store records of the source besides its spec.
        """
        notes = list(self.notes)
        keep = np.ones(len(self.rows), dtype=bool)
        if self.faults:
            keep[list(self.faults)] = False
            if spec.on_bad_stimulus == "error":
                raise InputError(self._faults_message(name))
            notes.append(
                _noted("Dropped because they cannot be used", self._named(~keep), self.rows)
            )
        made = StimulusTable(name, {}, self.content)
        chosen = np.arange(len(self.rows))
        if order:
            chosen = np.argsort(made.row_ids, kind="stable")
        chosen = chosen[keep[chosen]]
        repeats = _repeats(*(ids[chosen] for ids in self.content.values()))
        if repeats.any():
            named = [self.rows[int(i)] for i in chosen[repeats]]
            if spec.duplicates == "drop":
                chosen, repeats = chosen[~repeats], repeats[~repeats]
                notes.append(_noted("Dropped as exact duplicates", named, self.rows))
            else:
                notes.append(
                    _noted("Exact duplicates of earlier stimuli", named, self.rows)
                    + " They are each other's nearest neighbours: duplicates: drop leaves them out."
                )
        for modality in self.content if len(self.content) > 1 else ():
            ids = self.content[modality][chosen]
            alike = chosen[_repeats(ids) & (ids != 0)]
            if modality != "text" and len(alike) > repeats.sum():
                named = [self.rows[int(i)] for i in alike]
                notes.append(
                    _noted(f"Rows with the {modality} of an earlier one", named, self.rows)
                    + f" To {modality} towers they are each other's nearest neighbours."
                )
        if not len(chosen):
            raise InputError(f"stimuli {name!r}: none are left.")
        return StimulusTable(
            name,
            spec.recorded(),
            {m: ids[chosen] for m, ids in self.content.items() if ids[chosen].any()},
            {column: values[chosen] for column, values in self.columns.items()},
            details or {},
            notes,
            resident_bytes,
            item_bytes,
        )

    def _named(self, rows: Mask) -> list[str]:
        return [self.rows[int(i)] for i in np.flatnonzero(rows)]

    def _faults_message(self, name: str) -> str:
        lines = "".join(f"\n  {self.rows[i]}: {self.faults[i]}" for i in sorted(self.faults))
        return (
            f"stimuli {name!r}: {len(self.faults)} of {len(self.rows)} cannot be used:{lines}\n"
            "Repair or remove them, or leave them out for all models with on_bad_stimulus: drop."
        )


def _noted(what: str, named: Sequence[str], rows: Sequence[str]) -> str:
    shown = ", ".join(named[:3]) + (", …" if len(named) > 3 else "")
    return f"{what}: {len(named)} of {len(rows)} ({shown})."


def _repeats(*ids: Ids) -> Mask:
    """Return which rows have the ids of an earlier one, in every modality."""
    code, *others = ids
    for other in others:  # one number for each combination
        (known, of_code), (_, of_other) = (
            np.unique(values, return_inverse=True) for values in (code, other)
        )
        code = (of_code + len(known) * of_other).astype(np.uint64)
    repeated = np.ones(len(code), dtype=bool)
    repeated[np.unique(code, return_index=True)[1]] = False
    return repeated


def text_column(values: Sequence[str]) -> NDArray[Any]:
    """Return strings as a column.

    Raises
    ------
    InputError
        Where one is not valid Unicode.
    """
    try:
        return np.array(values, dtype=np.dtypes.StringDType())
    except UnicodeEncodeError as error:
        bad = next(v for v in values if not _is_unicode(v))
        raise InputError(f"{bad!r} is no valid text: {error.reason}. Correct it.") from None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_CLASS_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


def label_columns(values: Sequence[Any], rows: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return class numbers, and names where classes are not numbers themselves.

    Whole numbers without leading zeros are class numbers, if all labels are. Names are numbered in
    alphabetical order.

    Raises
    ------
    InputError
        Where a row has no label.
    """
    texts = ["" if is_missing(v) else str(v).strip() for v in values]
    without = [row for row, text in zip(rows, texts, strict=True) if not text]
    if without:
        raise InputError(
            f"{len(without)} of {len(rows)} rows have no label, first {without[0]}. Label all "
            "rows, or none: rename the column, or set label: null."
        )
    if all(_CLASS_NUMBER.fullmatch(t) for t in texts):
        return {"label": np.array([int(t) for t in texts], dtype=np.int64)}
    names, codes = np.unique(np.array(texts, dtype=object), return_inverse=True)
    return {"label": codes.astype(np.int64), "label_name": text_column(list(names[codes]))}


def is_missing(value: Any) -> bool:
    """Whether a value of a table is none: null, or not a number."""
    return value is None or (isinstance(value, float) and value != value)
