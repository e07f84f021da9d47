"""One tile of many relations, laid out so that a matrix product compares them all.

On the CPU with numpy, whose product of an array with itself takes half the operations; on a GPU
with torch, where float32 products keep float32 precision unless `torch.backends` was told
otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.measures.entries import Formed, Products
from pipeline.measures.groups import take_rows
from pipeline.measures.relations import Relation

if TYPE_CHECKING:
    import torch

Float64 = NDArray[np.float64]
Index = NDArray[np.intp]

OWN_SUM = 2**8
"""Products of a relation with itself that are added in its dtype, before float64 takes over."""


class Panel(Protocol):
    """A tile of M relations, a row for each, and what each gives with itself."""

    def fill(self, rows: slice, columns: slice) -> None:
        """Lay out what of each relation's tile lies above the diagonal."""

    def product(self, other: Any, part: slice, rows: Index, columns: Index) -> Float64:
        """Multiply some rows with some of another panel, over part of the tile."""

    def halves(self) -> list[float]:
        """Give half of what each relation gives with itself, over all tiles that were filled."""


def panel_of(relations: list[Relation], size: int, dtype: np.dtype[Any], device: str) -> Panel:
    """Make room for tiles of `size` pairs of stimuli."""
    if device == "cpu":
        return HostPanel(relations, size, dtype)
    return TorchPanel(relations, size, dtype, device)


def resolve_device(device: str) -> str:
    """Say what `auto` means here: `cuda` where there is a GPU, `cpu` elsewhere."""
    if device == "cpu" or (device == "auto" and not Path("/dev/nvidiactl").exists()):
        return "cpu"  # without importing torch
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise InputError(
            "compare.device is cuda, and torch finds no GPU on this worker. Use device: auto, or "
            "workers that have one."
        )
    return "cpu"


class HostPanel:
    """With numpy."""

    def __init__(self, relations: list[Relation], size: int, dtype: np.dtype[Any]) -> None:
        self.relations = relations
        self.values = np.empty((len(relations), size), dtype=dtype)
        self.norms = np.zeros(len(relations))

    def fill(self, rows: slice, columns: slice) -> None:
        """Lay out what of each relation's tile lies above the diagonal."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        size = shape[0] * shape[1]
        for row, relation in zip(self.values, self.relations, strict=True):
            relation.upper(rows, columns, row[:size].reshape(shape))
        for start in range(0, size, OWN_SUM):
            part = self.values[:, start : min(start + OWN_SUM, size)]
            self.norms += np.vecdot(part, part)

    def product(self, other: HostPanel, part: slice, rows: Index, columns: Index) -> Float64:
        """Multiply some rows with some of another panel, over part of the tile."""
        left = take_rows(self.values[:, part], rows)
        right = take_rows(other.values[:, part], columns)
        where = (each.__array_interface__["data"] for each in (left, right))
        # The same array twice: numpy then multiplies half of it (syrk).
        same = left.shape == right.shape and len(set(where)) == 1
        return np.asarray(left @ left.T if same else left @ right.T, dtype=np.float64)

    def halves(self) -> list[float]:
        """Give half of what each relation gives with itself, over all tiles that were filled."""
        return [float(norm) for norm in self.norms]


class TorchPanel:
    """With torch, on a device: relations that are products of features are formed there."""

    def __init__(
        self, relations: list[Relation], size: int, dtype: np.dtype[Any], device: str
    ) -> None:
        import torch

        self.relations, self.dtype, self.torch = relations, dtype, torch
        self.device = torch.device(device)
        kind = torch.float32 if dtype == np.float32 else torch.float64
        self.values = torch.empty((len(relations), size), dtype=kind, device=self.device)
        self.norms = torch.zeros(len(relations), dtype=torch.float64, device=self.device)
        self.there = [self._moved(relation) for relation in relations]

    def _moved(self, relation: Relation) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Move features and shift to the device, where they are all there is to a relation."""
        source = relation.source
        if not (isinstance(source, Formed) and isinstance(source.entries, Products)):
            return None
        features = source.entries.features
        if not isinstance(features, np.ndarray) or features.dtype != self.dtype:
            return None
        first, second = (
            self.torch.as_tensor(np.ascontiguousarray(each), device=self.device)
            for each in (features, source.shift)
        )
        return first, second

    def fill(self, rows: slice, columns: slice) -> None:
        """Lay out what of each relation's tile lies above the diagonal."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        size = shape[0] * shape[1]
        room = np.empty(shape, dtype=self.dtype)
        for row, relation, there in zip(self.values, self.relations, self.there, strict=True):
            block = row[:size].view(shape)
            if there is None:
                relation.upper(rows, columns, room)
                block.copy_(self.torch.from_numpy(room))
                continue
            features, shift = there
            self.torch.matmul(features[rows], features[columns].T, out=block)
            block += shift[rows, None]
            block += shift[columns]
            block.triu_(rows.start - columns.start + 1)
        for start in range(0, size, OWN_SUM):
            part = self.values[:, start : min(start + OWN_SUM, size)]
            self.norms += self.torch.linalg.vecdot(part, part)

    def product(self, other: TorchPanel, part: slice, rows: Index, columns: Index) -> Float64:
        """Multiply some rows with some of another panel, over part of the tile."""
        left, right = (
            panel.values[self.torch.as_tensor(which, device=self.device), part]
            for panel, which in ((self, rows), (other, columns))
        )
        return np.asarray((left @ right.T).double().cpu().numpy())

    def halves(self) -> list[float]:
        """Give half of what each relation gives with itself, over all tiles that were filled."""
        return [float(norm) for norm in self.norms.cpu()]
