"""Representations on workers: read from the store, prepared once, cached within a budget."""

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
    """Where a worker finds one representation in the store."""

    path: str
    checkpoint: str
    layer: str
    digest: str
    stack: tuple[str, ...] = ()
    """All layers of its encoder if a measure's preset needs them, else empty."""
    width: int = 0
    """Number of features."""


def representation_refs(encoder: Encoder, specs: Iterable[MeasureSpec]) -> list[RepresentationRef]:
    """Return references to all layers of an encoder, for these measures."""
    stack = encoder.layers if any(spec.preset for spec in specs) else ()
    return [
        RepresentationRef(encoder.path, encoder.checkpoint, layer, encoder.digest, stack, width)
        for layer, width in zip(encoder.layers, encoder.attributes["widths"], strict=True)
    ]


@dataclass(frozen=True)
class Budget:
    """Limits for cached prepared representations, in bytes."""

    memory: int = 512 * 2**20
    """Per worker."""
    scratch: int = 16 * 2**30
    """On local disk, for all workers of a machine together; 0: no files."""


class PreparedCache:
    """LRU cache of the prepared representations of one process, within a budget.

    Each is prepared once by the workers of a machine and written to files, as long as these fit
    their budget. What does not fit in memory is read from the files, tile by tile, as it is
    multiplied. What fits in neither is evicted, unless the current call returns it.
    """

    def __init__(self) -> None:
        self.held: dict[Any, CachedRepresentation] = {}
        self.clip: dict[Any, dict[str, float]] = {}
        """Encoder → clip thresholds of presets: a few numbers each, so never evicted."""
        self.lock = RLock()  # a worker may have several threads
        self._scratch: Scratch | None = None

    def get(
        self,
        store: str,
        subset: str,
        refs: Sequence[RepresentationRef],
        specs: Mapping[str, MeasureSpec],
        budget: Budget,
    ) -> list[Prepared]:
        """Return prepared representations, reading and preparing those that are not cached."""
        opened_store = open_store(store)
        rows = opened_store.rows(subset)
        towers: dict[str, TowerGroup] = {}
        measures = tuple(sorted(map(str, specs.values())))
        keys = [(store, subset, ref, measures) for ref in refs]
        needed_keys = set(keys)
        if budget.scratch:
            self.scratch.pin(map(_scratch_name, keys))
        found: list[CachedRepresentation] = []
        for key, ref in zip(keys, refs, strict=True):
            with self.lock:
                cached = self.held.pop(key, None)
            if cached is None or (
                cached.in_scratch is not None and not self.scratch.has(_scratch_name(key))
            ):
                if ref.path not in towers:
                    towers[ref.path] = opened_store.tower_at(ref.path)
                cached = self._load_or_prepare(key, ref, specs, rows, towers[ref.path], budget)
            with self.lock:
                self.held[key] = cached  # last in the order: most recently used
                self._evict(budget, needed_keys)
            found.append(cached)
        return [cached.prepared for cached in found]

    def _load_or_prepare(
        self,
        key: tuple[Any, ...],
        ref: RepresentationRef,
        specs: Mapping[str, MeasureSpec],
        rows: NDArray[np.int64],
        tower: TowerGroup,
        budget: Budget,
    ) -> CachedRepresentation:
        def make() -> Prepared:
            return self._prepare(key, ref, specs, rows, tower)

        if not budget.scratch:
            return CachedRepresentation(make())
        found = self.scratch.get(_scratch_name(key), make, budget.scratch)
        if self.used + found.loaded_bytes <= budget.memory:
            found.load()
        return found

    def _prepare(
        self,
        key: tuple[Any, ...],
        ref: RepresentationRef,
        specs: Mapping[str, MeasureSpec],
        rows: NDArray[np.int64],
        tower: TowerGroup,
    ) -> Prepared:
        clip = None
        if ref.stack:
            encoder = (*key[:2], replace(ref, layer="", width=0), key[-1])
            if encoder not in self.clip:
                self.clip[encoder] = clip_thresholds(
                    lambda: (tower.read(ref.checkpoint, layer, rows) for layer in ref.stack),
                    specs.values(),
                )
            clip = self.clip[encoder]
        values = tower.read(ref.checkpoint, ref.layer, rows)
        name = f"{ref.path}@{ref.checkpoint}/{ref.layer}"
        return prepare(values, specs, name=name, clip=clip)

    def _evict(self, budget: Budget, needed_keys: Container[Any]) -> None:
        """Spill, then drop, the least recently used until the memory budget is met."""
        used = self.used
        for cached in self.held.values():
            if used <= budget.memory:
                return
            used -= cached.memory
            cached.spill()
            used += cached.memory
        for key in [key for key in self.held if key not in needed_keys]:
            if used <= budget.memory:
                return
            used -= self.held.pop(key).memory

    @property
    def used(self) -> int:
        """Bytes of memory in use."""
        with self.lock:
            return sum(cached.memory for cached in self.held.values())

    @property
    def scratch(self) -> Scratch:
        """The scratch folder that the workers of this machine share."""
        with self.lock:
            if self._scratch is None:
                folder = worker_folder()
                self._scratch = Scratch(
                    Path(folder).parent if folder else Path(tempfile.gettempdir())
                )
            return self._scratch


def _scratch_name(key: tuple[Any, ...]) -> str:
    """Return a name for a prepared representation that is the same in every process."""
    return hashlib.sha256(repr((__version__, key)).encode()).hexdigest()[:32]


CACHE = PreparedCache()


def prepare_representations(
    store: str,
    subset: str,
    refs: Sequence[RepresentationRef],
    specs: Mapping[str, MeasureSpec],
    budget: Budget,
) -> list[Prepared]:
    """Return prepared representations of a subset's rows, from this process's cache."""
    return CACHE.get(store, subset, refs, specs, budget)


READ_AT_ONCE = 10
"""Chunks of an array that zarr reads concurrently."""


class PreparedFootprint:
    """Cost of a task's representations: operations, bytes of memory, and bytes read."""

    def __init__(
        self,
        refs: Sequence[RepresentationRef],
        subset: Subset,
        specs: Mapping[str, MeasureSpec],
        budget: Budget,
    ) -> None:
        n, base = len(subset), len(subset.base)
        self.widths = np.array([ref.width for ref in refs], dtype=np.int64)
        kept = kept_bytes(n, self.widths, specs)
        spillable, resident = float(kept.spillable.sum()), float(kept.resident.sum())
        self.spilled = spillable + resident > budget.memory
        self.held = spillable + resident
        if self.spilled:
            left = resident + max(0.0, spillable - budget.scratch)
            self.held = max(float(budget.memory), left)
            self.held += float((kept.spillable + kept.resident).max())  # one not yet spilled
        widest = int(self.widths.max())
        layers = [ref.width for ref in refs if ref.stack]
        self.working = max(
            reading_bytes(base, n, widest),
            SINGLE * float(n * widest) + preparing_bytes(n, widest, specs, layers),
        )
        self.operations = preparing_operations(n, self.widths, specs)
        self.read = SINGLE * float(stored_rows(base) * self.widths.sum())
        if any(ref.stack for ref in refs):  # clip thresholds take extra passes
            self.read *= 4


def prepared_bytes(
    encoders: Sequence[Encoder], subset: Subset, specs: Mapping[str, MeasureSpec]
) -> float:
    """Return the bytes of memory that all prepared representations take together."""
    widths = np.array([w for e in encoders for w in e.attributes["widths"]], dtype=np.int64)
    kept = kept_bytes(len(subset), widths, specs)
    return float((kept.spillable + kept.resident).sum())


def reading_bytes(base: int, n: int, width: int) -> float:
    """Return the bytes of memory for reading a layer.

    Parameters
    ----------
    base
        Rows of the base set: all are read, and checked to be finite.
    n
        Rows of the subset, which are copied.
    width
        Number of features.
    """
    # each chunk in flight exists twice: the bytes read and the array decoded from them
    in_flight = 2 * min(stored_rows(base), READ_AT_ONCE * rows_per_chunk(base))
    return float(width * (SINGLE * (base + in_flight + n) + base))


def stored_rows(n: int) -> int:
    """Return the rows that a layer has on disk: its last chunk is stored at full length."""
    rows = rows_per_chunk(n)
    return -(-n // rows) * rows
