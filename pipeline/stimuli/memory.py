"""Stimuli that are in memory: their table, and readers of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.stimuli.decode import as_image
from pipeline.stimuli.ids import Ids, array_id, as_ids, hex_ids, text_id
from pipeline.stimuli.table import StimulusRows, StimulusTable, row_name
from pipeline.types import Modality


def table_of(
    name: str,
    source: Mapping[str, Any],
    *,
    images: Sequence[NDArray[np.uint8]] = (),
    captions: Sequence[str] | None = None,
    labels: NDArray[np.int64] | None = None,
    label_names: Sequence[str] = (),
) -> StimulusTable:
    """Return the table of stimuli that are in memory.

    Parameters
    ----------
    images
        uint8 pixels, one array of shape (height, width) or (height, width, 3) per stimulus.
    captions
        One per stimulus.
    labels
        Class number of each stimulus.
    label_names
        Name of each class.
    """
    content: dict[Modality, Ids] = {}
    columns: dict[str, NDArray[Any]] = {}
    if len(images):
        content["image"] = as_ids(array_id(i) for i in images)
    if captions is not None:
        content["text"] = as_ids(map(text_id, captions))
        columns["caption"] = np.array(captions, dtype=object)
    if labels is not None:
        columns["label"] = labels
        if len(label_names):
            columns["label_name"] = np.array([label_names[i] for i in labels], dtype=object)
    return StimulusTable(
        name,
        source,
        content,
        columns,
        resident_bytes=sum(image.nbytes for image in images),
        pixels=(lambda: images) if len(images) else None,
    )


def check_content(
    table: StimulusRows, modality: Modality, rows: slice, found: Ids, where: str
) -> None:
    """Raise InputError where items are other ones than a table says.

    Parameters
    ----------
    found
        Content ids of the items that were read.
    where
        What they were read from.
    """
    wanted = table.ids_at(modality, rows)
    changed = np.flatnonzero(wanted != found)
    if len(changed):
        first = int(changed[0])
        raise InputError(
            f"{where}: {row_name(table, rows.start + first)} is not the {modality} that the "
            f"set has (id {hex_ids(wanted)[first]}, now {hex_ids(found)[first]}). It changed, or "
            "this machine has other files or versions: put the same on every machine, and run "
            "again."
        )


class CaptionReader:
    """Reads captions from the table itself."""

    def __init__(self, table: StimulusRows) -> None:
        self.table = table

    def read(self, rows: slice) -> list[str]:
        """Return captions, checked against their ids."""
        captions = [str(c) for c in self.table.column_at("caption", rows)]
        found = as_ids(text_id(c) if c else "" for c in captions)
        check_content(self.table, "text", rows, found, f"stimuli {self.table.name!r}")
        return captions


class PixelReader:
    """Reads images of which the pixels are in memory, and captions from the table.

    Parameters
    ----------
    load
        Returns all images, `(height, width)` or `(height, width, 3)`.
    """

    def __init__(
        self, table: StimulusRows, load: Callable[[], Sequence[NDArray[np.uint8]]]
    ) -> None:
        self.table, self.load = table, load
        self.captions = CaptionReader(table)

    def read(self, modality: Modality, rows: slice) -> Sequence[Any]:
        """Return images or captions."""
        if modality == "text":
            return self.captions.read(rows)
        pixels = self.load()[rows]
        found = as_ids(map(array_id, pixels))
        check_content(self.table, modality, rows, found, f"stimuli {self.table.name!r}")
        return [as_image(p) for p in pixels]
