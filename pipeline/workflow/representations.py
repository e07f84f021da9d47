"""How workers get at representations: read from the store, prepared once, kept while they fit."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.cluster import worker_folder
from pipeline.encoder import Encoder
from pipeline.measures import MeasureSpec, Prepared, clip_thresholds, prepare
from pipeline.measures.footprint import (
    SINGLE,
    kept_bytes,
    preparing_bytes,
    preparing_operations,
)
from pipeline.schema import rows_per_chunk
from pipeline.stimuli import Subset
from pipeline.store import open_store
from pipeline.store.activations import TowerGroup
from pipeline.workflow.scratch import CachedRepresentation, Scratch


@dataclass(frozen=True)
class RepresentationRef:
    """One representation, as a worker finds it."""

    path: str
    checkpoint: str
    layer: str
    digest: str
    stack: tuple[str, ...] = ()
    """All layers of its encoder, where a measure's preset asks for them."""
    width: int = 0
    """Features."""


def representation_refs(encoder: Encoder, specs: Iterable[MeasureSpec]) -> list[RepresentationRef]:
    """Return an encoder's layers as members, for the measures given."""
    stack = encoder.layers if any(spec.preset for spec in specs) else ()
    return [
        RepresentationRef(encoder.path, encoder.checkpoint, layer, encoder.digest, stack, width)
        for layer, width in zip(encoder.layers, encoder.attributes["widths"], strict=True)
    ]


@dataclass(frozen=True)
class Budget:
    """What may be held of prepared representations, in bytes."""

    memory: int = 512 * 2**20
    """Of each worker."""
    scratch: int = 16 * 2**30
    """On local disk, of all workers of a machine together."""


class PreparedCache:
    """Prepared representations of one process, the most recent within a budget.

    Each is prepared once by the workers of a machine and written to files, as long as these fit
    their budget. What does not fit in memory is read from there, tile by tile, as it is multiplied;
    what is in neither is forgotten, unless it is about to be compared.
    """

    def __init__(self) -> None:
        self.held: dict[Any, CachedRepresentation] = {}
        self.clip: dict[Any, dict[str, float]] = {}
        """By encoder: thresholds of presets, which are but numbers."""
        self.lock = RLock()  # a worker may have several threads
        self._scratch: Scratch | None = None

    def get(
        self,
        store: str,
        subset: str,
        members: Sequence[RepresentationRef],
        specs: Mapping[str, MeasureSpec],
        budget: Budget,
    ) -> list[Prepared]:
        """Return prepared representations, reading those that are not held."""
        opened = open_store(store)
        rows = opened.rows(subset)
        towers: dict[str, TowerGroup] = {}
        measures = tuple(sorted(map(str, specs.values())))
        keys = [(store, subset, member, measures) for member in members]
        needed = set(keys)
        if budget.scratch:
            self.scratch.need(map(_name, keys))
        found: list[CachedRepresentation] = []
        for key, member in zip(keys, members, strict=True):
            with self.lock:
                each = self.held.pop(key, None)
            if each is None or (each.filed is not None and not self.scratch.has(_name(key))):
                if member.path not in towers:
                    towers[member.path] = opened.tower_at(member.path)
                each = self._obtained(key, member, specs, rows, towers[member.path], budget)
            with self.lock:
                self.held[key] = each  # now the most recent
                self._fit(budget, needed)
            found.append(each)
        return [each.prepared for each in found]

    def _obtained(
        self,
        key: tuple[Any, ...],
        member: RepresentationRef,
        specs: Mapping[str, MeasureSpec],
        rows: NDArray[np.int64],
        tower: TowerGroup,
        budget: Budget,
    ) -> CachedRepresentation:
        def make() -> Prepared:
            return self._prepared(key, member, specs, rows, tower)

        if not budget.scratch:
            return CachedRepresentation(make())
        found = self.scratch.get(_name(key), make, budget.scratch)
        if self.used + found.whole <= budget.memory:
            found.load()
        return found

    def _prepared(
        self,
        key: tuple[Any, ...],
        member: RepresentationRef,
        specs: Mapping[str, MeasureSpec],
        rows: NDArray[np.int64],
        tower: TowerGroup,
    ) -> Prepared:
        clip = None
        if member.stack:
            encoder = (*key[:2], replace(member, layer="", width=0), key[-1])
            if encoder not in self.clip:
                self.clip[encoder] = clip_thresholds(
                    lambda: (tower.read(member.checkpoint, layer, rows) for layer in member.stack),
                    specs.values(),
                )
            clip = self.clip[encoder]
        values = tower.read(member.checkpoint, member.layer, rows)
        name = f"{member.path}@{member.checkpoint}/{member.layer}"
        return prepare(values, specs, name=name, clip=clip)

    def _fit(self, budget: Budget, needed: Container[Any]) -> None:
        """Bring what is held within the budget of memory, the oldest first."""
        used = self.used
        for each in self.held.values():
            if used <= budget.memory:
                return
            used -= each.memory
            each.spill()
            used += each.memory
        for key in [key for key in self.held if key not in needed]:
            if used <= budget.memory:
                return
            used -= self.held.pop(key).memory

    @property
    def used(self) -> int:
        """Bytes of memory that are taken."""
        with self.lock:
            return sum(each.memory for each in self.held.values())

    @property
    def scratch(self) -> Scratch:
        """The folder that the workers of this machine share."""
        with self.lock:
            if self._scratch is None:
                own = worker_folder()
                self._scratch = Scratch(Path(own).parent if own else Path(tempfile.gettempdir()))
            return self._scratch


def _name(key: tuple[Any, ...]) -> str:
    """Name what is prepared, the same in every process."""
    return hashlib.sha256(repr((__version__, key)).encode()).hexdigest()[:32]


CACHE = PreparedCache()


def prepare_representations(
    store: str,
    subset: str,
    members: Sequence[RepresentationRef],
    specs: Mapping[str, MeasureSpec],
    budget: Budget,
) -> list[Prepared]:
    """Return prepared representations, restricted to a subset's rows."""
    return CACHE.get(store, subset, members, specs, budget)


READ_AT_ONCE = 10
"""Chunks of an array that zarr reads at a time."""


class PreparedFootprint:
    """What the representations of a task take: operations, and bytes of memory and store."""

    def __init__(
        self,
        members: Sequence[RepresentationRef],
        subset: Subset,
        specs: Mapping[str, MeasureSpec],
        budget: Budget,
    ) -> None:
        n, base = len(subset), len(subset.base)
        self.widths = np.array([m.width for m in members], dtype=np.int64)
        kept = kept_bytes(n, self.widths, specs)
        spillable, resident = float(kept.spillable.sum()), float(kept.resident.sum())
        self.spilled = spillable + resident > budget.memory
        self.held = spillable + resident
        if self.spilled:
            left = resident + max(0.0, spillable - budget.scratch)
            self.held = max(float(budget.memory), left)
            self.held += float((kept.spillable + kept.resident).max())  # before it is moved
        widest = int(self.widths.max())
        layers = [m.width for m in members if m.stack]
        self.working = max(
            reading_bytes(base, n, widest),
            SINGLE * float(n * widest) + preparing_bytes(n, widest, specs, layers),
        )
        self.operations = preparing_operations(n, self.widths, specs)
        self.read = SINGLE * float(stored_rows(base) * self.widths.sum())
        if any(m.stack for m in members):  # thresholds are found in passes of their own
            self.read *= 4


def prepared_bytes(
    encoders: Sequence[Encoder], subset: Subset, specs: Mapping[str, MeasureSpec]
) -> float:
    """Give what all representations take once they are prepared, in bytes."""
    widths = np.array([w for e in encoders for w in e.attributes["widths"]], dtype=np.int64)
    kept = kept_bytes(len(subset), widths, specs)
    return float((kept.spillable + kept.resident).sum())


def reading_bytes(base: int, n: int, width: int) -> float:
    """Give what reading a layer takes: all its rows, which are finite, and those chosen."""
    # of each chunk there are the bytes that were read and the array they give
    in_flight = 2 * min(stored_rows(base), READ_AT_ONCE * rows_per_chunk(base))
    return float(width * (SINGLE * (base + in_flight + n) + base))


def stored_rows(n: int) -> int:
    """Give the rows that a layer has on disk: its last chunk is as long as the others."""
    rows = rows_per_chunk(n)
    return -(-n // rows) * rows
