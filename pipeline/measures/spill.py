"""Arrays in files, for what does not fit in memory: only the rows asked for are read."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray


class Spilled:
    """An array in a file of its own, which goes when the object does.

    Parameters
    ----------
    array
        What to write.
    folder
        Where to.
    """

    nbytes = 0
    """Memory it takes."""

    def __init__(self, array: NDArray[Any], folder: Path) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".array", delete=False) as file:
            self.path = Path(file.name)
            np.ascontiguousarray(array).tofile(file)
        finalize(self, self.path.unlink, missing_ok=True)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> NDArray[Any]:
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
