"""The write side of a store: what the driver creates, and what workers fill.

The driver creates, grows and removes groups, and writes the final datasets. Workers write whole
chunks of existing towers and grids. Both hold the run's lease, or a check of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.schema import NULL_GROUP, RUN_GROUP, SCORE_GROUP, SUBSET_GROUP
from pipeline.store import paths
from pipeline.store.activations import TowerGroup
from pipeline.store.catalog import encoders
from pipeline.store.datasets import replace_dataset, write_dataset
from pipeline.store.grid import Grid
from pipeline.store.io.chunks import arrays_of
from pipeline.store.io.lease import LeaseCheck
from pipeline.store.io.location import Location, locate
from pipeline.store.io.write_guard import write_errors
from pipeline.store.layout import (
    child_groups,
    delete,
    ensure_parents,
    fill_group,
    find_group,
    open_root,
    sweep_partial,
)
from pipeline.store.stimuli import write_stimuli
from pipeline.store.store import Store

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from numpy.typing import NDArray

    from pipeline.encoder import Encoder
    from pipeline.stimuli import StimulusTable, Subset


class StoreWriter(Store):
    """A store that can be written.

    Parameters
    ----------
    path
        Its path or URL.
    lease
        What has to be held for as long as anything is written: the driver's `Lease`, or what
        `StoreRef.lease_check` gives a worker.
    create
        Whether to create the store if it does not exist.

    Raises
    ------
    InputError
        Where there is no store, or the path holds something else.
    StoreError
        Where it was written by another format version, is damaged, or cannot be written.
    """

    def __init__(
        self,
        path: str | Path | Location,
        *,
        lease: LeaseCheck | None = None,
        create: bool = False,
    ) -> None:
        self.location = locate(path)
        self.root = open_root(self.location, "a" if create else "r+", lease=lease)

    def encoders(self, set: str | None = None) -> list[Encoder]:
        """Return every complete encoder on a set, as the store is now."""
        return encoders(self.root, self._set(set))

    def write_stimuli(self, stimuli: StimulusTable) -> None:
        """Write a stimulus set, unless it is stored already as it is."""
        write_stimuli(self.root, stimuli)

    def create_tower(
        self,
        set_key: str,
        model: str,
        tower: str,
        *,
        stimulus_ids: Sequence[str] | NDArray[np.object_],
        layers: Mapping[str, int],
        attributes: Mapping[str, Any],
    ) -> TowerGroup:
        """Create the group of one tower, without checkpoints; see `TowerGroup.create`."""
        return TowerGroup.create(
            self.root,
            paths.tower(set_key, model, tower),
            stimulus_ids=stimulus_ids,
            layers=layers,
            attributes=attributes,
        )

    def drop_tower(self, set_key: str, model: str, tower: str) -> None:
        """Remove the activations of one tower, if there are any."""
        delete(self.root, paths.tower(set_key, model, tower))

    def ensure_subset(self, subset: Subset) -> None:
        """Write the rows of a subset, unless they are stored already."""
        path = paths.subset(subset.key)
        if find_group(self.root, path, SUBSET_GROUP.mark) is not None:
            return
        ensure_parents(self.root, path)
        group = self.root.require_group(path)  # there may be scores below it
        delete(self.root, paths.array(path, "row"))
        fill_group(
            group,
            SUBSET_GROUP,
            {"stimulus": len(subset)},
            {
                "kind": subset.kind,
                "base": subset.drawn_key,
                "set": subset.base.key,
                "n_stimuli": len(subset),
                "fingerprint": subset.fingerprint,
            },
            values={"row": subset.rows},
        )

    def ensure_scores(self, subset: str, label: str, attributes: Mapping[str, Any]) -> Grid:
        """Return the grid of one measure on a subset, created empty if it does not exist.

        Parameters
        ----------
        attributes
            Of a new grid: the measure and its conventions.
        """
        return self.scores(subset, label) or Grid.create(
            self.root, paths.scores(subset, label), SCORE_GROUP, attributes=attributes
        )

    def ensure_null(self, subset: str, label: str, key: str, attributes: Mapping[str, Any]) -> Grid:
        """Return the grid of one null, created empty if it does not exist.

        Parameters
        ----------
        attributes
            Of a new grid: `aggregates`, `n_permutations`, method and seed; and the `version` of
            the moments, if these are what it is sampled from: then it has tail bounds.
        """
        return self.null(subset, label, key) or Grid.create(
            self.root, paths.null(subset, label, key), NULL_GROUP, attributes=attributes
        )

    def drop_measure(self, label: str) -> None:
        """Remove all results of a measure, on every subset: derived ones first."""
        from pipeline.analysis import ANALYSES

        final = [each.name for each in reversed(ANALYSES) if each.scope == "measure"]
        for part in (*final, paths.NULLS, paths.SCORES):
            for subset in child_groups(self.root, part):
                delete(self.root, paths.dataset(part, subset, label))

    def write_dataset(
        self, name: str, subset: str, label: str | None, dataset: xr.Dataset, inputs: str
    ) -> None:
        """Write a final dataset, replacing the existing one.

        Parameters
        ----------
        inputs
            The identity of what it was computed from, by `inputs_digest`.
        """
        write_dataset(self.root, paths.dataset(name, subset, label), dataset, inputs)

    def replace_dataset(self, name: str, subset: str, dataset: xr.Dataset, inputs: str) -> None:
        """Write a dataset of a subset so that a kill at any time loses nothing of the old one."""
        replace_dataset(self.root, paths.dataset(name, subset), dataset, inputs)

    @contextmanager
    def appending_run_log(self, name: str) -> Iterator[Callable[[str], None]]:
        """Begin the log of a run; provide a function that appends text to it.

        The logs are in the folder of an empty array: Zarr warns of a folder that is neither group
        nor array, and of a file in a group.
        """
        group = find_group(self.root, paths.RUNS) or self.root.create_group(paths.RUNS)
        if not arrays_of(group):
            fill_group(group, RUN_GROUP, {"run": 0}, {}, values={})
        with ExitStack() as stack:
            with write_errors(self.location):
                add = stack.enter_context(self.location.appending(paths.run_log(name)))

            def guarded(text: str) -> None:
                with write_errors(self.location):
                    add(text)

            yield guarded

    def sweep_partial(self) -> int:
        """Remove the `*.partial` files that killed writers left; return how many."""
        return sweep_partial(self.location)
