"""One tile of many relations, arranged so that one matrix product compares them all.

On the CPU with numpy, whose product of an array with itself takes half the operations; on a GPU
with torch, where products that form relations keep float32 precision unless `torch.backends` was
told otherwise. Relations are multiplied as integers (see `pipeline.measures.dense.exact`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.errors import InputError
from pipeline.measures.dense.entries import LazyRelation, Products
from pipeline.measures.dense.exact import MAX_TERMS, add_own, add_products, bits, in_steps, slices
from pipeline.measures.dense.relations import Relation
from pipeline.measures.groups import take_rows
from pipeline.types import Floating, Index, Int64

if TYPE_CHECKING:
    import torch


class Panel(Protocol):
    """A tile of M relations as integers, `slices` rows for each."""

    def fill(self, rows: slice, columns: slice) -> None:
        """Fill in each relation's tile, above the diagonal."""

    def add_products(self, other: Any, rows: Index, columns: Index, sums: Int64) -> None:
        """Add products of some relations with some of another panel, over the tile.

        `sums` is `(len(rows), slices, len(columns), slices)`.
        """

    def add_own(self, which: Index, sums: Int64) -> None:
        """Add the products of some relations with themselves, `(len(which), slices, slices)`."""


def panel_of(relations: list[Relation], size: int, dtype: np.dtype[Any], device: str) -> Panel:
    """Allocate a panel for tiles of `size` pairs of stimuli."""
    if device == "cpu":
        return HostPanel(relations, size, dtype)
    return TorchPanel(relations, size, dtype, device)


def resolve_device(device: str) -> str:
    """Resolve `auto`: `cuda` where there is a GPU, `cpu` elsewhere."""
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
        self.relations, self.size = relations, 0
        self.tile = np.empty(size, dtype=dtype)
        self.values = np.empty((len(relations), slices(dtype), size), dtype=np.float32)

    def fill(self, rows: slice, columns: slice) -> None:
        """Fill in each relation's tile, above the diagonal."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        self.size = shape[0] * shape[1]
        flat = self.tile[: self.size]
        for row, relation in zip(self.values, self.relations, strict=True):
            relation.upper(rows, columns, flat.reshape(shape))
            in_steps(flat, relation.step, relation.n_stimuli, row[:, : self.size])

    def add_products(self, other: HostPanel, rows: Index, columns: Index, sums: Int64) -> None:
        """Add products of some relations with some of another panel, over the tile."""
        same = other is self and np.array_equal(rows, columns)
        flat = sums.reshape(sums.shape[0] * sums.shape[1], -1)
        for start in range(0, self.size, MAX_TERMS):
            part = slice(start, min(start + MAX_TERMS, self.size))
            left = self._rows(rows, part)
            add_products(left, left if same else other._rows(columns, part), flat)

    def _rows(self, which: Index, part: slice) -> Floating:
        """Give part of some relations' tiles, `(len(which) · slices, size)`."""
        return take_rows(self.values[:, :, part], which).reshape(-1, part.stop - part.start)

    def add_own(self, which: Index, sums: Int64) -> None:
        """Add the products of some relations with themselves."""
        add_own(take_rows(self.values, which)[:, :, : self.size], sums)


class TorchPanel:
    """With torch, on a device, which also forms relations that are products of features."""

    def __init__(
        self, relations: list[Relation], size: int, dtype: np.dtype[Any], device: str
    ) -> None:
        import torch

        self.relations, self.dtype, self.torch = relations, dtype, torch
        self.device = torch.device(device)
        kind = torch.float32 if dtype == np.float32 else torch.float64
        self.tile = torch.empty(size, dtype=kind, device=self.device)
        self.values = torch.empty(
            (len(relations), slices(dtype), size), dtype=torch.float64, device=self.device
        )
        self.size = 0
        self.there = [self._moved(relation) for relation in relations]

    def _moved(self, relation: Relation) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Move features and shift to the device, if the relation consists of these."""
        storage = relation.storage
        if not (isinstance(storage, LazyRelation) and isinstance(storage.entries, Products)):
            return None
        features = storage.entries.features
        if not isinstance(features, np.ndarray) or features.dtype != self.dtype:
            return None
        first, second = (
            self.torch.as_tensor(np.ascontiguousarray(each), device=self.device)
            for each in (features, storage.shift)
        )
        return first, second

    def fill(self, rows: slice, columns: slice) -> None:
        """Fill in each relation's tile, above the diagonal."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        self.size = shape[0] * shape[1]
        room = np.empty(shape, dtype=self.dtype)
        flat = self.tile[: self.size]
        block = flat.view(shape)
        for row, relation, there in zip(self.values, self.relations, self.there, strict=True):
            if there is None:
                relation.upper(rows, columns, room)
                block.copy_(self.torch.from_numpy(room))
            else:
                features, shift = there
                self.torch.matmul(features[rows], features[columns].T, out=block)
                block += shift[rows, None]
                block += shift[columns]
                block.triu_(rows.start - columns.start + 1)
            rest = flat / relation.step
            for whole in row[:, : self.size]:
                nearest = self.torch.round(rest)
                whole.copy_(nearest)
                rest = (rest - nearest) * 2.0 ** bits(relation.n_stimuli)

    def add_products(self, other: TorchPanel, rows: Index, columns: Index, sums: Int64) -> None:
        """Add products of some relations with some of another panel, over the tile."""
        left, right = (
            panel.values[self.torch.as_tensor(which, device=self.device), :, : self.size].flatten(
                0, 1
            )
            for panel, which in ((self, rows), (other, columns))
        )
        for start in range(0, self.size, MAX_TERMS):
            part = slice(start, start + MAX_TERMS)
            product = (left[:, part] @ right[:, part].T).cpu().numpy()
            sums += product.astype(np.int64).reshape(sums.shape)

    def add_own(self, which: Index, sums: Int64) -> None:
        """Add the products of some relations with themselves."""
        for i, own in zip(which.tolist(), sums, strict=True):
            self.add_products(self, np.array([i]), np.array([i]), own[None, :, None, :])
