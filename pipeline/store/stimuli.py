"""The stimulus sets of a store: what they are and where they lie, written once by the driver."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.modality import MODALITIES
from pipeline.schema import STIMULI, STIMULUS_GROUP, id_column, id_variable
from pipeline.stimuli.ids import Ids, as_ids, fingerprint, hex_ids
from pipeline.stimuli.table import StimulusTable, is_text
from pipeline.store import paths
from pipeline.store.io.chunks import array_of, read, read_whole
from pipeline.store.layout import create_group, find_group
from pipeline.types import Modality

_DIGEST = "digest"


def write_stimuli(root: zarr.Group, table: StimulusTable) -> None:
    """Write ids, columns and, if all have one size, the images of small sets. Driver only.

    A set that is stored with other columns, such as paths or labels, is written anew.
    """
    path = paths.stimuli(table.key)
    stored = find_group(root, path, STIMULUS_GROUP.mark)
    about = {
        "source": dict(table.source),
        "details": dict(table.details),
        "notes": list(table.notes),
        _DIGEST: table.digest,
    }
    if stored is not None and {key: stored.attrs.get(key) for key in about} == about:
        return
    columns: dict[str, Any] = {"stimulus": table.stimulus_ids, **table.columns}
    for modality, ids in table.content.items():
        if not np.array_equal(ids, table.row_ids):
            columns[id_variable(modality)] = hex_ids(ids)
    sizes = {"stimulus": len(table)}
    images = () if table.pixels is None else table.pixels()
    if len({image.shape for image in images}) == 1:
        columns["image"] = np.stack([np.atleast_3d(image) for image in images])
        sizes |= zip(("height", "width", "channel"), columns["image"].shape[1:], strict=True)
    # a set declares only the variables that it has values for
    present = {name: variable for name, variable in STIMULI.items() if name in columns}
    create_group(
        root,
        path,
        replace(STIMULUS_GROUP, variables=present),
        sizes,
        {
            **about,
            "name": table.name,
            "modalities": list(table.modalities),
            "caption_fingerprint": (
                fingerprint(table.content["text"]) if "text" in table.content else None
            ),
            "own_columns": {
                name: _dtype(values) for name, values in columns.items() if name not in STIMULI
            },
            "variables": sorted(columns),
            "resident_bytes": table.resident_bytes,
            "item_bytes": table.item_bytes,
            "fingerprint": table.fingerprint,
        },
        values=columns,
    )


def _dtype(values: NDArray[Any]) -> str:
    return "str" if is_text(values) else values.dtype.name


def read_table(root: zarr.Group, set_key: str) -> StimulusTable | None:
    """Return a stored set as a table in memory; None where it is not there, or not whole.

    Raises
    ------
    StoreError
        Where it is damaged.
    """
    group = find_group(root, paths.stimuli(set_key), STIMULUS_GROUP.mark)
    if group is None or _DIGEST not in group.attrs:
        return None
    attributes: dict[str, Any] = dict(group.attrs)

    def column(name: str) -> NDArray[Any]:
        return read_whole(array_of(group, name))

    others = {"stimulus", "image", *map(id_variable, MODALITIES)}
    return StimulusTable(
        str(attributes["name"]),
        attributes["source"],
        {
            modality: as_ids(map(str, column(id_column(attributes, modality))))
            for modality in MODALITIES
            if modality in attributes["modalities"]
        },
        {name: column(name) for name in attributes["variables"] if name not in others},
        attributes["details"],
        attributes["notes"],
        attributes["resident_bytes"],
        attributes["item_bytes"],
    )


class StoredRows:
    """The rows of a stored set, read a few at a time: `StimulusRows`."""

    def __init__(self, group: zarr.Group, key: str) -> None:
        self.key = key
        self._group = group
        self._attributes: dict[str, Any] = dict(group.attrs)
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._chunks: dict[str, tuple[int, NDArray[Any]]] = {}
        """Column → start of the chunk that was read last, and its values."""

    @property
    def name(self) -> str:
        """Name of the set."""
        return str(self._attributes["name"])

    @property
    def digest(self) -> str:
        """Identity of all that is known of the rows."""
        return str(self._attributes[_DIGEST])

    def __len__(self) -> int:
        return int(self._array("stimulus").shape[0])

    def ids_at(self, modality: Modality, rows: slice) -> Ids:
        """Return content ids of some rows."""
        column = self.column_at(id_column(self._attributes, modality), rows)
        return as_ids(map(str, column))

    @property
    def column_names(self) -> Collection[str]:
        """Names of the columns."""
        names: list[str] = self._attributes["variables"]
        return names

    def column_at(self, name: str, rows: slice) -> NDArray[Any]:
        """Return one column of some rows."""
        array = self._array(name)
        step = array.chunks[0]
        start = rows.start // step * step
        if rows.stop > start + step:
            return read(array, rows)
        if name not in self._chunks or self._chunks[name][0] != start:
            self._chunks[name] = start, read(array, slice(start, start + step))
        return self._chunks[name][1][rows.start - start : rows.stop - start]

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            self._arrays[name] = array_of(self._group, name)
        return self._arrays[name]
