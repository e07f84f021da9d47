"""How workers get at representations: read from the store, prepared once, kept while they fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.measures import MeasureSpec, Prepared, prepare
from pipeline.store.activations import TowerGroup
from pipeline.store.layout import open_root


@dataclass(frozen=True)
class Member:
    """One representation, as a worker finds it."""

    path: str
    checkpoint: str
    layer: str
    digest: str


class PreparedCache:
    """Prepared representations of one process, the most recent within a budget of bytes."""

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self.held: dict[Any, tuple[Prepared, int]] = {}

    def get(
        self,
        store: str,
        subset: str,
        member: Member,
        specs: Mapping[str, MeasureSpec],
        rows: NDArray[np.int64],
        towers: dict[str, TowerGroup],
    ) -> Prepared:
        """Return one prepared representation, reading it where it is not held."""
        key = (store, subset, member, tuple(sorted(specs.values(), key=str)))
        found = self.held.pop(key, None)
        if found is None:
            if member.path not in towers:
                group = open_root(store, "r")[member.path]
                assert isinstance(group, zarr.Group)
                towers[member.path] = TowerGroup(group)
            values = towers[member.path].read(member.checkpoint, member.layer, rows)
            name = f"{member.path}@{member.checkpoint}/{member.layer}"
            found = prepare(values, specs, name=name), 2 * values.nbytes
            self.used += found[1]
        self.held[key] = found  # now the most recent
        while self.used > self.budget and len(self.held) > 1:
            self.used -= self.held.pop(next(iter(self.held)))[1]
        return found[0]


CACHE = PreparedCache(budget=512 * 2**20)


def prepare_members(
    store: str, subset: str, members: list[Member], specs: Mapping[str, MeasureSpec]
) -> list[Prepared]:
    """Return prepared representations, restricted to a subset's rows."""
    array = open_root(store, "r")[f"measures/{subset}/row"]
    assert isinstance(array, zarr.Array)
    rows = np.asarray(array[...], dtype=np.int64)
    towers: dict[str, TowerGroup] = {}
    return [CACHE.get(store, subset, m, specs, rows, towers) for m in members]
