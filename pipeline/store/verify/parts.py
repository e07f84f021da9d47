"""What each part of a store must hold, and how damage to it is repaired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import zarr

from pipeline.errors import StoreError
from pipeline.modality import modality_of
from pipeline.schema import (
    NULL_GROUP,
    RUN_GROUP,
    SCORE_GROUP,
    STIMULUS_GROUP,
    SUBSET_GROUP,
    TOWER_GROUP,
    GroupKind,
    State,
    Variable,
    id_column,
)
from pipeline.store import paths
from pipeline.store.activations import TowerGroup
from pipeline.store.datasets import MARK, lost_keys, variables
from pipeline.store.grid import Grid
from pipeline.store.io.chunks import DAMAGE, ChunkIndex, array_of, read_whole, stored_chunks
from pipeline.store.layout import create_variable, delete
from pipeline.store.verify.scan import Scan, drop_chunk, new_group

if TYPE_CHECKING:
    from pipeline.analysis import Analysis

_AGAIN = "marked as missing; the next run computes it again"
_MADE = "removed; the next run creates it again"


def verify_activations(scan: Scan, part: str) -> None:
    """Check every tower of every model."""
    for set_key in scan.children(part):
        if not scan.is_group(f"{part}/{set_key}"):
            continue
        for source in scan.children(f"{part}/{set_key}"):
            if not scan.is_group(f"{part}/{set_key}/{source}"):
                continue
            for name in scan.children(f"{part}/{set_key}/{source}"):
                path = f"{part}/{set_key}/{source}/{name}"
                if scan.is_group(path):
                    for tower in scan.children(path):
                        _Tower(scan, f"{path}/{tower}", f"{source}/{name}", tower).verify()


class _NoMetadataError(Exception):
    """The metadata of all growing arrays of a group are lost: its length is not known."""


def _metadata(
    scan: Scan, path: str, group: zarr.Group, kind: GroupKind, sizes: Mapping[str, int]
) -> bool:
    """Check the metadata of a group's arrays; each can be restored from the others.

    Returns
    -------
    bool
        Whether all are intact.

    Raises
    ------
    _NoMetadataError
        Where no array is left to restore the others from.
    """
    attributes = dict(group.attrs)
    lengths = []
    for name, variable in kind.declared(attributes).items():
        at = kind.growing_axis(variable)
        if at is not None:
            try:
                lengths.append(int(array_of(group, name).shape[at]))
            except (StoreError, IndexError):
                continue
    if not lengths:
        raise _NoMetadataError("the metadata of all its arrays is lost")
    before = len(scan.found.damages)
    for layout in kind.layouts(attributes, {**sizes, kind.axis: max(lengths)}).values():
        scan.metadata(path, layout)
    return len(scan.found.damages) == before


class _Tower:
    """One model tower: its metadata, its columns, and the chunks marked as complete."""

    def __init__(self, scan: Scan, path: str, model: str, tower: str) -> None:
        self.scan, self.path, self.model, self.tower = scan, path, model, tower

    def verify(self) -> None:
        group, why = self.scan.group(self.path)
        if group is None:
            self.lost(f"{self.path}/zarr.json", why)
            return
        if TOWER_GROUP.mark not in group.attrs:
            return  # its creation was interrupted: it does not count
        if not self.stimuli(group):
            return
        n = int(array_of(group, "stimulus").shape[0])
        try:
            if not _metadata(self.scan, self.path, group, TOWER_GROUP, {"stimulus": n}):
                return
        except _NoMetadataError as error:
            self.lost(self.path, str(error))
            return
        found = TowerGroup(group)
        try:
            labels = found.checkpoints
            for name in ("step", "weights_digest", "weights_size", "weights_mtime_ns"):
                found.column(name)
        except StoreError as error:
            self.lost(self.path, error.what)
            return
        self.blocks(found, labels)

    def lost(self, path: str, why: str) -> None:
        """Record damage that only a new extraction can repair."""
        self.scan.add(
            f"{self.model}#{self.tower}", why, path,
            "it cannot be restored from the rest: the tower is removed, and the next run "
            f"extracts it whole, as --replace {self.model} would",
            partial(_drop, self.path),
        )  # fmt: skip

    def stimuli(self, group: zarr.Group) -> bool:
        """Check the ids of the rows, which the stimulus set has too."""
        path = f"{self.path}/stimulus"
        try:
            array = array_of(group, "stimulus")
            bad = [why for _, why in self.scan.faults(array)]
        except StoreError as error:
            bad = [error.what]
        if not bad:
            return True
        source = paths.stimuli(paths.tower_parts(self.path)[0])
        try:
            column = id_column(dict(self.scan.root[source].attrs), modality_of(self.tower))
            ids = [
                str(i) for i in read_whole(array_of(self.scan.root, paths.array(source, column)))
            ]
        except (StoreError, *DAMAGE):
            self.lost(path, bad[0])
            return False
        self.scan.add(
            f"{self.model}#{self.tower}, ids of the stimuli", bad[0], path,
            f"restored from {source}", lambda root: _write_ids(root, self.path, ids),
        )  # fmt: skip
        return False

    def blocks(self, found: TowerGroup, labels: list[str]) -> None:
        """Read every chunk that is marked as complete."""
        marks = found.array("complete")
        written = stored_chunks(marks)
        faulty = dict(self.scan.faults(marks, sorted(written)))
        for index, why in faulty.items():
            self.block(found, labels, index, "its mark in `complete`", why)
        marked = written - faulty.keys()
        if not faulty:
            marked = {index for index in written if found.complete[index]}
        there = {layer: stored_chunks(found.array(layer)) for layer in found.layers}
        for layer in found.layers:
            wanted = [(*index, 0) for index in sorted(marked)]
            for index, why in self.scan.faults(found.array(layer), wanted):
                self.block(found, labels, index[:2], layer, why)
        unmarked = set.intersection(*({i[:2] for i in s} for s in there.values())) - marked
        for row, block in sorted(unmarked):
            if row < len(labels) and (row, block) not in written:
                why = "all layers are there, but no mark: it is lost, or a writer was killed"
                self.block(found, labels, (row, block), "its mark in `complete`", why)

    def block(
        self, found: TowerGroup, labels: list[str], index: ChunkIndex, layer: str, why: str
    ) -> None:
        """Record a block of rows of one checkpoint that must be extracted again."""
        row, number = index
        start, stop = found.blocks[number]

        def mend(root: zarr.Group) -> None:
            group = root[self.path]
            assert isinstance(group, zarr.Group)
            tower = TowerGroup(group)
            for name in tower.layers:
                drop_chunk(root, tower.array(name), (row, number, 0))
            drop_chunk(root, tower.array("complete"), (row, number))

        self.scan.add(
            f"{self.model}@{labels[row]}#{self.tower}/{layer}, rows {start}:{stop}", why,
            f"{self.path}/{layer.split()[-1].strip('`')}",
            "marked for extraction; the next run extracts these rows again", mend,
        )  # fmt: skip


def _write_ids(root: zarr.Group, path: str, ids: list[str]) -> None:
    delete(root, paths.array(path, "stimulus"))
    group = root[path]
    assert isinstance(group, zarr.Group)
    layout = TOWER_GROUP.layouts(dict(group.attrs), {"stimulus": len(ids)})["stimulus"]
    create_variable(group, layout.variable, layout.shape, layout.chunks, values=ids)


def verify_measures(scan: Scan, part: str) -> None:
    """Check the rows of every subset, and every grid of scores."""
    for subset in scan.children(part):
        path = f"{part}/{subset}"
        group, why = scan.group(path)
        if group is None:
            scan.add(
                f"subset {subset}", why, f"{path}/zarr.json", "the next run creates it again",
                partial(new_group, path),
            )  # fmt: skip
        elif SUBSET_GROUP.mark in group.attrs:
            try:
                bad = [why for _, why in scan.faults(array_of(group, "row"))]
            except StoreError as error:
                bad = [error.what]
            if bad:
                scan.add(
                    f"subset {subset}, its rows", bad[0], f"{path}/row", _MADE,
                    partial(new_group, path),
                )  # fmt: skip
        for label in scan.children(path):
            if label != "row":
                name = f"measure {label} on {subset}"
                _Grid(scan, f"{path}/{label}", name, SCORE_GROUP).verify()


def verify_calibration(scan: Scan, part: str) -> None:
    """Check every grid of nulls."""
    for subset in scan.children(part):
        if not scan.is_group(f"{part}/{subset}"):
            continue
        for label in scan.children(f"{part}/{subset}"):
            path = f"{part}/{subset}/{label}"
            if scan.is_group(path):
                for key in scan.children(path):
                    name = f"null {key} of {label} on {subset}"
                    _Grid(scan, f"{path}/{key}", name, NULL_GROUP).verify()


class _Grid:
    """Pairwise results: slots, and every chunk that holds results."""

    def __init__(self, scan: Scan, path: str, name: str, kind: GroupKind) -> None:
        self.scan, self.path, self.name, self.kind = scan, path, name, kind
        self.variables: dict[str, Variable] = {}

    def verify(self) -> None:
        group, why = self.scan.group(self.path)
        if group is None:
            self.lost(f"{self.path}/zarr.json", why)
            return
        if self.kind.mark not in group.attrs:
            return  # its creation was interrupted: it does not count
        grid = Grid(group, self.kind)
        try:
            if not _metadata(self.scan, self.path, group, self.kind, {}):
                return
        except _NoMetadataError as error:
            self.lost(self.path, str(error))
            return
        self.variables = self.kind.declared(dict(group.attrs))
        try:
            _ = grid.slots, grid.members
        except StoreError as error:
            self.lost(self.path, error.what)
            return
        for name in self.variables:
            if not self.is_pairwise(name):
                array = grid.array(name)
                there = sorted(stored_chunks(array))
                for _, why in self.scan.faults(array, there):
                    self.lost(f"{self.path}/{name}", why)
                    return
        self.pairs(grid)

    def lost(self, path: str, why: str) -> None:
        """Record damage that cannot be narrowed down to pairs."""
        self.scan.add(self.name, why, path, f"all of it {_MADE}", partial(_drop, self.path))

    def is_pairwise(self, name: str) -> bool:
        return self.kind.is_pairwise(self.variables[name])

    def pairs(self, grid: Grid) -> None:
        """Read every chunk that `state` marks as written; find values without a state."""
        names = [n for n in self.variables if self.is_pairwise(n) and n != "state"]
        state = grid.array("state")
        states = stored_chunks(state)
        written = []
        for pair in sorted(states):
            values, why = self.scan.chunk(state, pair)
            if why:
                self.block(grid, pair, "state", why)
            elif (values != State.MISSING).any():
                written.append(pair)
        for name in names:
            array, at = grid.array(name), grid.pair_axis(name)
            wanted = [_around(pair, at, array.ndim) for pair in written]
            for index, why in self.scan.faults(array, wanted):
                self.block(grid, index[at : at + 2], name, why)
            if name == names[0]:
                for index in sorted(stored_chunks(array)):
                    if index[at : at + 2] not in states:
                        why = "values without their state: it is lost, or a writer was killed"
                        self.block(grid, index[at : at + 2], "state", why)

    def block(self, grid: Grid, pair: ChunkIndex, name: str, why: str) -> None:
        """Record a chunk of pairs that must be computed again."""

        def mend(root: zarr.Group) -> None:
            for each in self.variables:
                if self.is_pairwise(each):
                    array = grid.array(each)
                    drop_chunk(root, array, _around(pair, grid.pair_axis(each), array.ndim))

        i, j = pair
        members = {slot: member for member, slot in grid.members.items()}
        rows = [members.get(s, "") for s in range(*grid.region(i).indices(len(grid.slots)))]
        first = next(filter(None, rows), "")
        self.scan.add(
            f"{self.name}, {name} of slots {grid.span((i, j))} (from {first})", why,
            f"{self.path}/{name}", _AGAIN, mend,
        )  # fmt: skip


def _around(pair: ChunkIndex, at: int, ndim: int) -> ChunkIndex:
    """Return the index of a chunk of pairs; the other dimensions have one chunk."""
    return (0,) * at + pair + (0,) * (ndim - at - 2)


def _drop(path: str, root: zarr.Group) -> None:
    delete(root, path)


def verify_stimuli(scan: Scan, part: str) -> None:
    """Check every set of stimuli."""
    for set_key in scan.children(part):
        _verify_dataset(scan, f"{part}/{set_key}", part, STIMULUS_GROUP.mark)


def verify_final(analysis: Analysis, scan: Scan, part: str) -> None:
    """Check every final dataset of an analysis."""
    for subset in scan.children(part):
        path = f"{part}/{subset}"
        if analysis.scope == "subset":
            _verify_dataset(scan, path, part, MARK)
        elif scan.is_group(path):
            for label in scan.children(path):
                _verify_dataset(scan, f"{path}/{label}", part, MARK)


def _verify_dataset(scan: Scan, path: str, what: str, mark: str) -> None:
    group, why = scan.group(path)
    if group is not None and mark not in group.attrs:
        return  # its creation was interrupted: it does not count
    where, faults = paths.metadata(path), [why] if why else []
    if group is not None:
        try:
            faults = [f"{key} is lost" for key in lost_keys(group)]
            for array in variables(group):
                there = sorted(stored_chunks(array))
                for _, fault in scan.faults(array, there):
                    faults.append(fault)
                    where = array.path
        except StoreError as error:
            faults = [error.what]
    for fault in faults:
        scan.add(f"{what} {path.partition('/')[2]}", fault, where, _MADE, partial(_drop, path))


def _verify_runs(scan: Scan, part: str) -> None:
    """Check what holds the logs. The logs themselves are not results and have no checksums."""
    if scan.group(part)[0] is not None:
        for layout in RUN_GROUP.layouts({}, {"run": 0}).values():
            scan.metadata(part, layout)


def verifiers(analyses: Sequence[Analysis]) -> dict[str, Callable[[Scan, str], None]]:
    """Return part of a store → what verifies it, in order."""
    return {
        paths.STIMULI: verify_stimuli,
        paths.ACTIVATIONS: verify_activations,
        paths.SCORES: verify_measures,
        paths.NULLS: verify_calibration,
        **{each.name: partial(verify_final, each) for each in analyses},
        paths.RUNS: _verify_runs,
    }
