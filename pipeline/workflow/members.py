"""How workers get at representations: read from the store, prepared once, kept while they fit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.cluster import worker_folder
from pipeline.measures import MeasureSpec, Prepared, clip_thresholds, prepare
from pipeline.store.activations import TowerGroup
from pipeline.store.catalog import Encoder
from pipeline.store.layout import open_root


@dataclass(frozen=True)
class Member:
    """One representation, as a worker finds it."""

    path: str
    checkpoint: str
    layer: str
    digest: str
    stack: tuple[str, ...] = ()
    """All layers of its encoder, where a measure's preset asks for them."""
    width: int = 0
    """Features."""


def encoder_members(encoder: Encoder, specs: Iterable[MeasureSpec]) -> list[Member]:
    """Return an encoder's layers as members, for the measures given."""
    stack = encoder.layers if any(spec.preset for spec in specs) else ()
    return [
        Member(encoder.path, encoder.checkpoint, layer, encoder.digest, stack, width)
        for layer, width in zip(encoder.layers, encoder.attributes["widths"], strict=True)
    ]


@dataclass(frozen=True)
class Budget:
    """What a worker may hold of prepared representations, in bytes."""

    memory: int = 512 * 2**20
    scratch: int = 16 * 2**30
    """On local disk, in the worker's own folder."""


class PreparedCache:
    """Prepared representations of one process, the most recent within a budget.

    What does not fit in memory goes to files, from which tiles are read as they are multiplied;
    what does not fit there either is forgotten, unless it is about to be compared.
    """

    def __init__(self) -> None:
        self.held: dict[Any, _Held] = {}
        self.clip: dict[Any, dict[str, float]] = {}
        """By encoder: thresholds of presets, which are but numbers."""
        self.folder: Path | None = None

    def get(
        self,
        store: str,
        subset: str,
        members: Sequence[Member],
        specs: Mapping[str, MeasureSpec],
        budget: Budget,
    ) -> list[Prepared]:
        """Return prepared representations, reading those that are not held."""
        root = open_root(store, "r")
        array = root[f"measures/{subset}/row"]
        assert isinstance(array, zarr.Array)
        rows = np.asarray(array[...], dtype=np.int64)
        towers: dict[str, TowerGroup] = {}
        measures = tuple(sorted(specs.values(), key=str))
        keys = [(store, subset, member, measures) for member in members]
        needed = set(keys)
        for key, member in zip(keys, members, strict=True):
            found = self.held.pop(key, None)
            if found is None:
                if member.path not in towers:
                    group = root[member.path]
                    assert isinstance(group, zarr.Group)
                    towers[member.path] = TowerGroup(group)
                found = _Held(self._prepared(key, member, specs, rows, towers[member.path]))
            self.held[key] = found  # now the most recent
            self._fit(budget, needed)
        return [self.held[key].prepared for key in keys]

    def _prepared(
        self,
        key: tuple[Any, ...],
        member: Member,
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
        """Bring what is held within the budget, the oldest first."""
        memory, scratch = self._used("memory"), self._used("scratch")
        if memory <= budget.memory:
            return
        forgotten = [key for key in self.held if key not in needed]
        for key in [key for key, each in self.held.items() if each.movable]:
            each = self.held.get(key)
            if each is None:  # forgotten meanwhile, to make room
                continue
            room = budget.scratch - each.movable
            while scratch > room >= 0 and forgotten and forgotten[0] != key:
                old = self.held.pop(forgotten.pop(0))
                memory, scratch = memory - old.memory, scratch - old.scratch
            if scratch <= room:
                self.held[key] = moved = each.spilled(self._scratch())
                memory, scratch = memory - each.memory + moved.memory, scratch + each.movable
            if memory <= budget.memory:
                return
        for key in forgotten:
            if memory > budget.memory:
                memory -= self.held.pop(key).memory

    def _used(self, where: str) -> int:
        return sum(getattr(each, where) for each in self.held.values())

    def _scratch(self) -> Path:
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="consilience-", dir=worker_folder()))
            finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        return self.folder


class _Held:
    """A prepared representation, and what it takes."""

    def __init__(self, prepared: Prepared, scratch: int = 0) -> None:
        self.prepared, self.scratch, self.memory = prepared, scratch, prepared.nbytes
        self.movable = sum(each.source.nbytes for each in prepared.relations.values())

    def spilled(self, folder: Path) -> _Held:
        return _Held(self.prepared.spilled(folder), self.scratch + self.movable)


CACHE = PreparedCache()


def prepare_members(
    store: str,
    subset: str,
    members: Sequence[Member],
    specs: Mapping[str, MeasureSpec],
    budget: Budget,
) -> list[Prepared]:
    """Return prepared representations, restricted to a subset's rows."""
    return CACHE.get(store, subset, members, specs, budget)
