"""A pass over a store: walks it, reads chunks, and collects what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import zarr
from dask.utils import format_bytes
from zarr.core.sync import sync

from pipeline.errors import StoreError, UnreadableError
from pipeline.schema import ArrayLayout
from pipeline.store import paths
from pipeline.store.io.chunks import (
    DAMAGE,
    ChunkIndex,
    array_of,
    chunks,
    fault,
    key_of,
    raw_chunks,
    region_of,
)
from pipeline.store.io.lease import Holder
from pipeline.store.io.location import Location
from pipeline.store.layout import create_variable

_AT_ONCE = 64 * 2**20  # bytes of chunks in memory

Mend = Callable[[zarr.Group], None]


@dataclass(frozen=True)
class Damage:
    """One damaged or lost piece."""

    what: str
    """Model, checkpoint, tower, layer and rows; or label and slots; or the file."""
    why: str
    path: str
    """Its path in the store."""
    remedy: str
    """What the repair, and then the next run, do about it."""
    mend: Mend = field(repr=False, compare=False)


@dataclass
class Verification:
    """Result of a verification."""

    damages: list[Damage] = field(default_factory=list)
    arrays: int = 0
    chunks: int = 0
    bytes: int = 0
    seconds: float = 0.0
    running: Holder | None = None
    """Who was writing meanwhile: unfinished data may look lost."""
    unread: list[str] = field(default_factory=list)
    """What could not be read. It may be intact, and is left alone."""
    repaired: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing is damaged or lost."""
        return not self.damages and not self.unread

    def lines(self, store: str) -> Iterator[str]:
        """Yield the report for the user."""
        for damage in self.damages:
            yield f"{damage.what}: {damage.why} ({damage.path})"
            if self.repaired:
                yield f"  {damage.remedy}"
        yield from self.unread
        rate = format_bytes(int(self.bytes / max(self.seconds, 1e-9)))
        yield (
            f"read {self.arrays} arrays, {self.chunks} chunks, {format_bytes(self.bytes)} in "
            f"{self.seconds:.1f} s ({rate}/s)"
        )
        if self.running is not None:
            yield f"{self.running.phrase} is writing: what it has not finished may look lost"
        if self.is_whole:
            yield "nothing is damaged or lost"
            return
        if self.unread:
            yield f"not read: {len(self.unread)}"
        if not self.damages:
            return
        yield f"damaged or lost: {len(self.damages)}"
        yield (
            "`consilience run WORKFLOW` computes them again"
            if self.repaired
            else f"`consilience store verify {store} --repair` prepares them to be computed again"
        )


class Scan:
    """A pass over a store: walks it, reads chunks, and collects what is wrong."""

    def __init__(self, location: Location, root: zarr.Group) -> None:
        self.location, self.root = location, root
        self.found = Verification()
        self.seen: set[str] = set()
        """Paths of the arrays that were read."""

    def add(self, what: str, why: str, path: str, remedy: str, mend: Mend) -> None:
        """Record one damaged piece."""
        self.found.damages.append(Damage(what, why, path, remedy, mend))

    def children(self, path: str) -> list[str]:
        """Return the names below a path, with metadata or without."""

        async def listed() -> list[str]:
            return [name async for name in self.root.store.list_dir(path)]

        names = {n.rstrip("/") for n in sync(listed())} - {"zarr.json"}
        return sorted(n for n in names if self._holds_something(f"{path}/{n}"))

    def _holds_something(self, path: str) -> bool:
        async def any_key() -> bool:
            async for _ in self.root.store.list_prefix(f"{path}/"):
                return True
            return False

        return sync(any_key())

    def group(self, path: str) -> tuple[zarr.Group | None, str]:
        """Return a group, or None and why it cannot be read."""
        try:
            found = self.root[path]
        except KeyError:
            return None, "its zarr.json is lost"
        except DAMAGE as error:
            return None, f"its zarr.json cannot be read: {error}"
        if isinstance(found, zarr.Group):
            return found, ""
        return None, "its zarr.json is that of an array"

    def is_group(self, path: str) -> bool:
        """Whether a group of groups exists; record damage to its metadata."""
        if not self._holds_something(path):
            return False
        group, why = self.group(path)
        if group is None:
            self.add(path, why, f"{path}/zarr.json", "restored", partial(new_group, path))
        return True

    def metadata(self, group: str, layout: ArrayLayout) -> None:
        """Check the metadata of a declared array; record damage. A repair keeps its chunks."""
        where, name = group, layout.variable.name
        path = paths.array(group, name)
        parent = self.root[where]
        assert isinstance(parent, zarr.Group)
        try:
            self.seen.add(array_of(parent, name).path)
        except StoreError as error:
            self.add(
                path, error.what, f"{path}/zarr.json",
                "restored from its siblings",
                partial(_new_array, where, layout),
            )  # fmt: skip

    def faults(
        self, array: zarr.Array[Any], wanted: Iterable[ChunkIndex] | None = None
    ) -> Iterator[tuple[ChunkIndex, str]]:
        """Read chunks, by default all; yield the index of each damaged one, and why.

        Chunks are not decoded: the checksum covers exactly the bytes that a reader decodes.
        """
        self.seen.add(array.path)
        size = prod(array.chunks) * (0 if array.dtype.kind in "TO" else array.dtype.itemsize)
        at_once = max(1, _AT_ONCE // max(size, 2**16))
        indices = iter(wanted if wanted is not None else chunks(array))
        while batch := list(islice(indices, at_once)):
            for index, data in zip(batch, raw_chunks(array, batch), strict=True):
                if isinstance(data, UnreadableError):
                    self.found.unread.append(str(data))
                    continue
                why = fault(data, size)
                if data is None or why:
                    yield index, why
                else:
                    self.found.chunks += 1
                    self.found.bytes += len(data)

    def chunk(self, array: zarr.Array[Any], index: ChunkIndex) -> tuple[Any, str]:
        """Read one chunk; return its values, or None and why it cannot be read."""
        try:
            values = np.asarray(array[region_of(array, index)])
        except DAMAGE as error:
            return None, f"a chunk is damaged: {error}"
        self.found.chunks += 1
        self.found.bytes += values.nbytes
        return values, ""


def new_group(path: str, root: zarr.Group) -> None:
    """Write a group's metadata, without attributes; keep what is below it."""
    sync(root.store.delete(f"{path}/zarr.json"))
    root.create_group(path)


def _new_array(where: str, layout: ArrayLayout, root: zarr.Group) -> None:
    """Write an array's metadata; keep its chunks."""
    sync(root.store.delete(paths.metadata(paths.array(where, layout.variable.name))))
    parent = root[where]
    assert isinstance(parent, zarr.Group)
    create_variable(parent, layout.variable, layout.shape, layout.chunks)


def drop_chunk(root: zarr.Group, array: zarr.Array[Any], index: ChunkIndex) -> None:
    """Remove one chunk."""
    sync(root.store.delete(key_of(array, index)))
