"""Arrays in files, for what does not fit in memory: only the requested rows are read."""

from __future__ import annotations

import io
import pickle
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Index


@dataclass(frozen=True)
class Spilled:
    """An array in a file, which the caller removes."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    nbytes = 0
    """Memory it takes, in bytes."""

    @classmethod
    def of(cls, array: NDArray[Any], folder: Path) -> Spilled:
        """Write an array to a file of its own."""
        path = folder / f"{uuid.uuid4().hex}.array"
        np.ascontiguousarray(array).tofile(path)
        return cls(path, array.shape, array.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return Spilled, (self.path, self.shape, self.dtype)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice | Index) -> NDArray[Any]:
        """Read some rows, or items of a vector."""
        if not isinstance(rows, slice):
            return self[:][rows]
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise NotImplementedError("rows are read one after the other")
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        found = np.fromfile(
            self.path,
            dtype=self.dtype,
            count=max(stop - start, 0) * width,
            offset=start * width * self.dtype.itemsize,
        )
        return found.reshape(-1, *self.shape[1:])


class _Reader(pickle.Unpickler):
    """Reads pickled objects, replacing arrays in files."""

    def __init__(self, pickled: Any, instead: Callable[..., Any]) -> None:
        super().__init__(io.BytesIO(pickle.dumps(pickled)))
        self.instead = instead

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return self.instead if found is Spilled else found


def in_memory(spilled: Any) -> Any:
    """Copy an object, reading its arrays in files into memory."""
    return _Reader(spilled, lambda *described: Spilled(*described)[:]).load()


def in_files(spilled: Any) -> list[Path]:
    """List the files of an object's arrays."""
    found: list[Path] = []
    _Reader(spilled, lambda path, *_: found.append(path)).load()
    return found
