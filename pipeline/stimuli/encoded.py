"""Encoded images that lie in other files: identified and decoded once, when a table is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stimuli.decode import decode
from pipeline.stimuli.ids import Ids, as_ids, content_id
from pipeline.stimuli.source import Progress

AT_ONCE = 64
"""Encoded images that are in memory at a time."""


@dataclass(frozen=True)
class Encoded:
    """What is known of the image of each row.

    Attributes
    ----------
    ids
        Content ids; 0 of bad ones.
    columns
        `bytes`, `image_width` and `image_height`.
    faults
        Row → why its image cannot be used.
    """

    ids: Ids
    columns: dict[str, NDArray[Any]]
    faults: dict[int, str]

    @property
    def item_bytes(self) -> int:
        """Memory of the largest image once decoded."""
        pixels = self.columns["image_width"] * self.columns["image_height"]
        return 4 * int(pixels.max(initial=0))


def identify(
    n: int, read: Callable[[range], Sequence[bytes | str]], progress: Progress | None
) -> Encoded:
    """Identify and decode images.

    Nothing depends on the order in which threads finish.

    Parameters
    ----------
    n
        Number of rows.
    read
        Returns the encoded images of some rows; instead of a bad one, why it cannot be read.
    """
    found: list[tuple[str, int, int, int] | str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, n, AT_ONCE):
            found += pool.map(_inspect, read(range(start, min(start + AT_ONCE, n))))
            if progress is not None:
                progress(len(found), n)
    faults = {i: f for i, f in enumerate(found) if isinstance(f, str)}
    good = [("", 0, 0, 0) if isinstance(f, str) else f for f in found]
    ids, *numbers = zip(*good, strict=True) if good else ((), (), (), ())
    columns: dict[str, NDArray[Any]] = {
        name: np.array(values, dtype=np.int64)
        for name, values in zip(("bytes", "image_width", "image_height"), numbers, strict=True)
    }
    return Encoded(as_ids(ids), columns, faults)


def _inspect(content: bytes | str) -> tuple[str, int, int, int] | str:
    if isinstance(content, str):
        return content
    try:
        width, height = decode(content).size
    except ValueError as error:
        return str(error)
    return content_id(content), len(content), width, height
