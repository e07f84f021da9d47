"""A stimulus set as a table: an id per modality and columns for each row. Holds no pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.modality import MODALITIES
from pipeline.stimuli.ids import Ids, fingerprint, hex_ids
from pipeline.types import Int64, Modality

LACKING: Mapping[Modality, str] = {"image": "images", "text": "captions", "array": "arrays"}
"""What stimuli have for each modality, in words."""


class StimulusRows(Protocol):
    """The rows of a table, in memory or in a store."""

    @property
    def name(self) -> str:
        """Name of the set."""

    @property
    def key(self) -> str:
        """Name of the set in the store."""

    @property
    def digest(self) -> str:
        """Identity of all that is known of the rows."""

    @property
    def column_names(self) -> Collection[str]:
        """Names of the columns."""

    def ids_at(self, modality: Modality, rows: slice) -> Ids:
        """Return content ids of some rows."""

    def column_at(self, name: str, rows: slice) -> NDArray[Any]:
        """Return one column of some rows."""


def row_name(rows: StimulusRows, row: int) -> str:
    """Name a row for messages: by its own id or its path, else by its number in the source."""

    def value(column: str) -> Any:
        return rows.column_at(column, slice(row, row + 1))[0]

    for column in ("id", "path"):
        if column in rows.column_names:
            return str(value(column))
    return f"row {value('row') if 'row' in rows.column_names else row}"


@dataclass(frozen=True, eq=False)
class StimulusTable:
    """An ordered set of stimuli, one to a row, known by content ids.

    Attributes
    ----------
    name
        Name of the set, with which its key in the store begins.
    source
        What was asked for, as recorded in the store's attributes.
    content
        Modality → content id of each row's item; 0 where a row has none. Modalities that no row
        has are left out.
    columns
        Name → value of each row: `caption`, `label` (class number), `label_name`, `group`, `id`,
        where the item lies, and a manifest's own columns.
    details
        What else the store records: how files were decoded, which release of a data set it was.
    notes
        What a person should know of the set, as sentences: duplicates, what was dropped.
    resident_bytes
        Memory that its reader holds, apart from the item at hand.
    item_bytes
        Memory of the largest item once decoded.
    pixels
        Returns every image, `(height, width)` or `(height, width, 3)`, of sets that are small
        enough for the store to keep them.
    """

    name: str
    source: Mapping[str, Any]
    content: Mapping[Modality, Ids]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    resident_bytes: int = 0
    item_bytes: int = 0
    pixels: Callable[[], Sequence[NDArray[np.uint8]]] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.content.values()))) if self.content else 0

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the rows have; the first that a row has names it."""
        return tuple(m for m in MODALITIES if m in self.content)

    def ids(self, modality: Modality) -> Ids:
        """Return the content ids of what towers of a modality take.

        Raises
        ------
        InputError
            Where the rows, or some of them, have no such items.
        """
        found = self.content.get(modality)
        if found is None:
            others = ", ".join(self.modalities)
            raise InputError(
                f"stimuli {self.name!r}: they have no {LACKING[modality]}, which {modality} towers "
                f"need. Choose stimuli with {LACKING[modality]}, or models with "
                f"towers: [{others}]."
            )
        without = np.flatnonzero(found == 0)
        if len(without):
            shown = ", ".join(row_name(self, int(i)) for i in without[:3])
            raise InputError(
                f"stimuli {self.name!r}: {len(without)} of {len(self)} rows have no "
                f"{LACKING[modality][:-1]}, which {modality} towers need; first {shown}. Leave "
                f"these rows out of the source, or the {modality} towers out of the models."
            )
        return found

    def ids_at(self, modality: Modality, rows: slice) -> Ids:
        """Return content ids of some rows."""
        return self.content[modality][rows]

    @property
    def column_names(self) -> Collection[str]:
        """Names of the columns."""
        return self.columns.keys()

    def column_at(self, name: str, rows: slice) -> NDArray[Any]:
        """Return one column of some rows."""
        return self.columns[name][rows]

    @cached_property
    def row_ids(self) -> Ids:
        """Names of the rows: for each, the id of its item of the first modality that it has."""
        named = np.zeros(len(self), np.uint64)
        for modality in self.modalities:
            named = np.where(named == 0, self.content[modality], named)
        return named

    @property
    def stimulus_ids(self) -> NDArray[np.object_]:
        """Names of the rows as 16 hex digits each."""
        return hex_ids(self.row_ids)

    @property
    def labels(self) -> Int64 | None:
        """Class number of each row, or None."""
        return self.columns.get("label")

    def fingerprint_of(self, modality: Modality) -> str:
        """Return the SHA-256 over the ordered content ids of what towers of a modality take.

        The activations of an image tower depend on the images only, not on captions.
        """
        if modality not in self._fingerprints:
            self._fingerprints[modality] = fingerprint(self.ids(modality))
        return self._fingerprints[modality]

    @cached_property
    def _fingerprints(self) -> dict[Modality, str]:
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ordered names of the rows."""
        return fingerprint(self.row_ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that is known of the rows, where they lie included."""
        digest = hashlib.sha256()
        everything: dict[str, NDArray[Any]] = dict(self.columns)
        everything |= {f"{modality} id": ids for modality, ids in self.content.items()}
        for name, values in sorted(everything.items()):
            kind = "text" if is_text(values) else values.dtype.str
            digest.update(f"{name} {kind} ".encode())
            digest.update(_content(values))
        return digest.hexdigest()

    @cached_property
    def labels_digest(self) -> str:
        """SHA-256 over the class numbers; empty without labels."""
        labels = self.labels
        return "" if labels is None else hashlib.sha256(labels.tobytes()).hexdigest()[:16]

    @property
    def key(self) -> str:
        """Name in the store: `name-` and 8 hex digits of the fingerprint."""
        return f"{self.name}-{self.fingerprint[:8]}"


def is_text(values: NDArray[Any]) -> bool:
    """Whether a column is of strings."""
    return values.dtype.kind in "OTU"


def _content(values: NDArray[Any]) -> bytes:
    if is_text(values):
        return "\0".join(map(str, values)).encode()
    return np.ascontiguousarray(values).tobytes()
