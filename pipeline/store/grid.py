"""Square arrays of pairwise results that grow by slots.

The axis is append-only and padded to a multiple of the chunk, so that adding a member never moves
stored results. A member whose activations changed retires its slot and gets a new one. A task owns
the whole chunks (I, J) and (J, I).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.schema import GroupKind, Slot, State
from pipeline.store.io.chunks import (
    array_of,
    arrays_of,
    is_there,
    read,
    read_across,
    remedy,
    stored_chunks,
)
from pipeline.store.layout import as_text, create_group
from pipeline.types import Float32, Mask


@dataclass(frozen=True)
class Allocation:
    """The slots once all members are admitted."""

    members: dict[str, int]
    """Live member → slot."""
    new: list[str]
    """Members that get a new slot, in order of slots."""
    retired: list[int]
    """Slots whose activations are no longer current."""
    length: int
    """Length of the axis, a multiple of the chunk."""


def allocate(grid: Grid | None, digests: Mapping[str, str], chunk: int) -> Allocation:
    """Return the slots of members, also for a grid that does not exist yet. Reads only."""
    members = dict(grid.members) if grid is not None else {}
    known = grid.digests if grid is not None else {}
    stale = [m for m, d in digests.items() if m in members and known[m] != d]
    retired = [members.pop(m) for m in stale]
    new = [m for m in digests if m not in members]
    held: Any = np.zeros(0) if grid is None else grid.slots
    used = np.flatnonzero(held)  # Slot.FREE is 0
    start = int(used[-1]) + 1 if used.size else 0
    members |= {m: start + i for i, m in enumerate(new)}
    length = max(len(held), -(-(start + len(new)) // chunk) * chunk)
    return Allocation(members, new, retired, length)


def padded_state(grid: Grid | None, length: int) -> NDArray[np.uint8]:
    """Return the state of every pair of slots, padded to `length` slots."""
    state = np.full((length, length), State.MISSING, np.uint8)
    if grid is not None:
        # longer than the axis if a run was killed while the arrays grew
        held = grid.state()[:length, :length]
        state[: len(held), : len(held)] = held
    return state


@dataclass(frozen=True)
class PendingPairs:
    """The requested pairs that a grid does not hold yet."""

    members: Mapping[str, int]
    """Member → slot, of all that will be live."""
    missing: Mask
    """`(slot, slot)`, symmetric: a task killed between chunk (i, j) and (j, i) redoes both."""
    chunk: int

    @property
    def n_pairs(self) -> int:
        """Unordered pairs that are missing."""
        return int(np.triu(self.missing).sum())

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the chunks (I, J), I ≤ J, with missing pairs."""
        n = self.missing.shape[0] // self.chunk
        blocks = np.asarray(self.missing.reshape(n, self.chunk, n, self.chunk).any((1, 3)))
        yield from ((int(i), int(j)) for i, j in np.argwhere(np.triu(blocks)))

    def check(self, grid: Grid) -> None:
        """Raise where a grid has other members in the slots than these pairs were planned for.

        Raises
        ------
        StoreError
            Where scores would be stored under the names of others.
        """
        if any(grid.members.get(member) != slot for member, slot in self.members.items()):
            raise StoreError(
                f"{grid.group.path}: its members are not in the slots that were planned",
                "Run again.",
            )

    def region(self, i: int) -> slice:
        """Return the slots of chunk `i`."""
        return slice(i * self.chunk, (i + 1) * self.chunk)


def pending_pairs(
    grid: Grid | None, digests: Mapping[str, str], wanted: Mask, chunk: int
) -> PendingPairs:
    """Return the requested pairs that are missing from a grid, or from none.

    Parameters
    ----------
    digests
        Member → identity of its activations.
    wanted
        Symmetric mask `(member, member)`, in the order of `digests`.
    chunk
        Slots in a chunk.
    """
    allocation = allocate(grid, digests, chunk)
    state = padded_state(grid, allocation.length)
    slots = [allocation.members[m] for m in digests]
    missing = np.zeros(state.shape, bool)
    if slots == list(range(len(slots))):  # the usual case, and many times faster
        missing[: len(slots), : len(slots)] = wanted
    else:
        missing[np.ix_(slots, slots)] = wanted
    missing &= (state != State.DONE) & (state != State.UNDEFINED)
    return PendingPairs(allocation.members, missing | missing.T, chunk)


class Grid:
    """Pairwise results over one axis, `representation` or `encoder`."""

    def __init__(self, group: zarr.Group, kind: GroupKind) -> None:
        self.group, self.kind, self.axis = group, kind, kind.axis

    @classmethod
    def create(
        cls,
        root: zarr.Group,
        path: str,
        kind: GroupKind,
        *,
        attributes: Mapping[str, Any],
        chunk: int | None = None,
    ) -> Grid:
        """Create an empty grid: the declared variables, with no slots.

        Parameters
        ----------
        attributes
            What the grid holds; for a null with its `aggregates` and `n_permutations`.
        chunk
            Slots in a chunk along each of the two pairwise dimensions; default: the kind's.
        """
        attributes = {**attributes, "chunk": chunk or kind.chunk}
        return cls(create_group(root, path, kind, {}, attributes), kind)

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one of the group's arrays."""
        return array_of(self.group, name)

    @property
    def attrs(self) -> dict[str, Any]:
        """The group's attributes."""
        return dict(self.group.attrs)

    def column(self, name: str) -> NDArray[Any]:
        """Return a per-slot variable; missing chunks read as fill values."""
        return read(self.array(name))

    def write_column(self, name: str, values: Mapping[int, Any]) -> None:
        """Set a per-slot variable at some slots (slot → value). Driver only."""
        array = self.array(name)
        held = read(array)
        held[list(values)] = list(values.values())
        array[...] = held

    @property
    def chunk(self) -> int:
        """Slots in a chunk."""
        return int(self.group.attrs["chunk"])  # type: ignore[arg-type]

    @cached_property
    def members(self) -> dict[str, int]:
        """Live member → slot.

        Raises
        ------
        StoreError
            Where slots or names are lost.
        """
        live = self.slots == Slot.LIVE
        names = read(self.array(self.axis))
        return {str(names[i]): int(i) for i in np.flatnonzero(live)}

    @cached_property
    def slots(self) -> NDArray[np.uint8]:
        """State of each slot: free, live or retired.

        Raises
        ------
        StoreError
            Where states or names are lost. A lost slot reads as free: another member would take
            it over, with all its results.
        """
        slots = read(self.array("slot"))
        # longer than the slots if a run was killed while the arrays grew
        names, digests = (
            read(self.array(name))[: len(slots)] for name in (self.axis, "activations_digest")
        )
        named = (names != "") & (digests != "")
        used = np.flatnonzero(slots)  # Slot.FREE is 0
        n = int(used[-1]) + 1 if used.size else 0
        # slots are marked after their names are written, and before any result
        if not (slots[:n].all() and named[:n].all()) or self._has_results(n):
            raise StoreError(
                f"{self.group.path}: slots or names of what was compared are lost",
                remedy(self.group.store),
            )
        return slots

    def _has_results(self, start: int) -> bool:
        """Whether any result is stored in chunks that lie wholly at or beyond slot `start`."""
        first = -(-start // self.chunk)
        if first * self.chunk >= self.array("state").shape[0]:
            return False
        return any(max(index) >= first for index in stored_chunks(self.array("state")))

    @cached_property
    def digests(self) -> dict[str, str]:
        """Live member → identity of its activations."""
        digests = read(self.array("activations_digest"))
        return {member: str(digests[slot]) for member, slot in self.members.items()}

    def admit(self, digests: Mapping[str, str]) -> None:
        """Give every member a slot; retire the slot of one whose digest changed. Driver only."""
        allocation = allocate(self, digests, self.chunk)
        if allocation.length > self.array("slot").shape[0]:
            # the slots last: every other array is at least as long as they are
            for _, array in sorted(arrays_of(self.group), key=lambda named: named[0] == "slot"):
                metadata: Any = array.metadata
                dims = metadata.dimension_names
                array.resize(
                    tuple(
                        allocation.length if str(d).startswith(self.axis) else s
                        for d, s in zip(dims, array.shape, strict=True)
                    )
                )
        slots = self.array(
            "slot"
        )  # opened after the resize, since an array object keeps its old shape
        for slot in allocation.retired:
            slots[slot] = int(Slot.RETIRED)
        if allocation.new:
            start = allocation.members[allocation.new[0]]
            region = slice(start, start + len(allocation.new))
            self.array(self.axis)[region] = as_text(allocation.new)
            self.array("activations_digest")[region] = as_text(digests[m] for m in allocation.new)
            slots[region] = int(Slot.LIVE)
        for name in ("members", "digests", "slots"):
            self.__dict__.pop(name, None)

    def state(self) -> NDArray[np.uint8]:
        """Return the state of every pair of slots.

        Raises
        ------
        StoreError
            Where a chunk is damaged.
        """
        return read(self.array("state")).astype(np.uint8, copy=False)

    def values(self, name: str) -> NDArray[Any]:
        """Return one variable for all pairs of slots.

        Raises
        ------
        StoreError
            Where a chunk is damaged, or one that `state` marks as written is lost.
        """
        array = self.array(name)
        values = read(array)
        there = stored_chunks(array)
        for pair in self.written_chunks(self.state()):
            index = self.chunk_index(name, pair)
            if index not in there:
                raise self._lost(name, pair)
        return values

    def scores_among(
        self, rows: Sequence[int], columns: Sequence[int]
    ) -> tuple[Float32, NDArray[np.uint8]]:
        """Return the scores `(rows, columns)` of some pairs of slots, and their states.

        Raises
        ------
        StoreError
            Where a chunk is damaged, or one that `state` marks as written is lost.
        """
        at = (np.asarray(rows), np.asarray(columns))
        scores, state = (read_across(self.array(name), at) for name in ("score", "state"))
        for r, c in np.argwhere((state == State.DONE) & np.isnan(scores))[:1]:
            raise self._lost("score", (rows[r] // self.chunk, columns[c] // self.chunk))
        return scores, state

    def written_chunks(self, state: NDArray[np.uint8]) -> list[tuple[int, int]]:
        """Return the chunks (i, j) that hold results."""
        n = len(state) // self.chunk
        blocks = state.reshape(n, self.chunk, n, self.chunk) != State.MISSING
        return [(int(i), int(j)) for i, j in np.argwhere(blocks.any((1, 3)))]

    def pair_axis(self, name: str) -> int:
        """Return the position of the first pairwise dimension of a variable."""
        dims: Any = self.array(name).metadata.dimension_names  # type: ignore[union-attr]
        return int(list(dims).index(f"{self.axis}_x"))

    def chunk_index(self, name: str, pair: tuple[int, int]) -> tuple[int, ...]:
        """Return the index of the chunk of a variable that holds the pairs (i, j)."""
        at, ndim = self.pair_axis(name), self.array(name).ndim
        return (0,) * at + pair + (0,) * (ndim - at - 2)

    def span(self, pair: tuple[int, int]) -> str:
        """Name the slots of a chunk of pairs."""
        i, j = map(self.region, pair)
        return f"{i.start}:{i.stop} × {j.start}:{j.stop}"

    def region(self, i: int) -> slice:
        """Return the slots of chunk `i`."""
        return slice(i * self.chunk, (i + 1) * self.chunk)

    def write_chunk(
        self,
        i: int,
        j: int,
        values: Mapping[str, NDArray[Any]],
        wanted: Mask,
        undefined: Mask,
    ) -> None:
        """Merge results into chunk (i, j) of some variables, then mark them as done. Workers.

        Parameters
        ----------
        values
            Variable → `(..., chunk, chunk, ...)`, the pairwise dimensions where it has them.
        wanted
            Pairs `(chunk, chunk)` that `values` holds; the others are left unchanged.
        undefined
            Pairs among them for which the measure is not defined.
        """
        state = self.array("state")
        pairs = (self.region(i), self.region(j))
        before = read(state, pairs)
        for name, found in values.items():
            array = self.array(name)
            at = self.pair_axis(name)
            index = (*(slice(None),) * at, *pairs, *(slice(None),) * (array.ndim - at - 2))
            chunk = self.chunk_index(name, (i, j))
            if (before != State.MISSING).any() and not is_there(array, chunk):
                raise self._lost(name, (i, j))  # else fill values would take its place, unnoticed
            held = read(array, index)
            mask = wanted.reshape((1,) * at + wanted.shape + (1,) * (held.ndim - at - 2))
            array[index] = np.where(mask, found, held).astype(held.dtype)
        marks = np.where(undefined, State.UNDEFINED, State.DONE)
        state[pairs] = np.where(wanted, marks, before).astype(np.uint8)

    def _lost(self, name: str, pair: tuple[int, int]) -> StoreError:
        return StoreError(
            f"{self.group.path}: {name} of slots {self.span(pair)} is lost",
            remedy(self.group.store),
        )
