"""The activations of one tower of a model on one stimulus set.

The driver creates and grows the group. Workers write whole chunks and, once every layer of a
block is written, mark the block in `complete`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.schema import TOWER_GROUP, rows_per_chunk
from pipeline.store.io.chunks import array_of, read, read_marks, read_whole, remedy
from pipeline.store.layout import as_text, create_group
from pipeline.types import Block, Float32, Mask, Weights

GROWING = tuple(
    name for name, variable in TOWER_GROUP.variables.items() if TOWER_GROUP.grows(variable.dims[0])
)


class TowerGroup:
    """The activations of one model tower."""

    def __init__(self, group: zarr.Group) -> None:
        self.group = group
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._columns: dict[str, NDArray[Any]] = {}

    @classmethod
    def create(
        cls,
        root: zarr.Group,
        path: str,
        *,
        stimulus_ids: Sequence[str] | NDArray[np.object_],
        layers: Mapping[str, int],
        attributes: Mapping[str, Any],
    ) -> TowerGroup:
        """Create the group with its layers and no checkpoints.

        Parameters
        ----------
        layers
            Layer → number of features, from input to output.
        attributes
            Recipe, recipe_digest and whatever else describes the tower; JSON-serialisable.
        """
        clash = set(layers) & set(TOWER_GROUP.variables)
        if clash:
            raise StoreError(f"{path}: a layer may not be called {', '.join(sorted(clash))}")
        group = create_group(
            root,
            path,
            TOWER_GROUP,
            {"stimulus": len(stimulus_ids)},
            {**attributes, "layers": list(layers), "widths": list(layers.values())},
            values={"stimulus": stimulus_ids},
        )
        return cls(group)

    @cached_property
    def layers(self) -> list[str]:
        """Layer names, from input to output."""
        return [str(name) for name in self.attrs["layers"]]

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one of the group's arrays, opened once."""
        if name not in self._arrays:
            self._arrays[name] = array_of(self.group, name)
        return self._arrays[name]

    @property
    def attrs(self) -> dict[str, Any]:
        """The group's attributes."""
        return dict(self.group.attrs)

    def update_metadata(self, attributes: Mapping[str, Any]) -> None:
        """Change attributes that the recipe does not determine. Driver only."""
        self.group.update_attributes(dict(attributes))

    @cached_property
    def checkpoints(self) -> list[str]:
        """Checkpoint labels, in the order of their rows.

        Raises
        ------
        StoreError
            Where labels are lost of checkpoints that have activations.
        """
        labels = [str(c) for c in self.column("checkpoint")]
        # labels are written last when the axis grows: an empty one marks an unfinished row
        n = labels.index("") if "" in labels else len(labels)
        # marks are read only where needed: a damaged one costs its block, not the tower
        if any(labels[n:]) or (n < len(labels) and self.complete[n:].any()):
            raise StoreError(
                f"{self.group.path}: labels of checkpoints are lost", remedy(self.group.store)
            )
        return labels[:n]

    @property
    def training_steps(self) -> dict[str, int]:
        """Checkpoint → training step, in the order of their rows; -1 where unknown."""
        return {c: int(s) for c, s in zip(self.checkpoints, self.steps, strict=False)}

    @property
    def steps(self) -> NDArray[np.int64]:
        """Training step of each checkpoint; -1 where unknown."""
        return self.column("step")

    def weights(self, checkpoint: str) -> Weights:
        """Return the identity of the weights that a checkpoint was extracted from."""
        row = self.checkpoints.index(checkpoint)
        return Weights(
            str(self.column("weights_digest")[row]),
            int(self.column("weights_size")[row]),
            int(self.column("weights_mtime_ns")[row]),
        )

    def digest(self, checkpoint: str) -> str:
        """Return the identity of a checkpoint's activations: recipe, weights and stimuli."""
        identity = [
            self.attrs["recipe_digest"],
            str(self.column("weights_digest")[self.checkpoints.index(checkpoint)]),
            self.attrs["stimuli_fingerprint"],
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def column(self, name: str) -> NDArray[Any]:
        """Return one variable of all checkpoints or stimuli, read once.

        Raises
        ------
        StoreError
            Where a chunk is damaged or lost.
        """
        if name not in self._columns:
            array = self.array(name)
            if name == "complete":
                self._columns[name] = read_marks(array)
            elif name == "checkpoint":
                self._columns[name] = read(array)  # written last: see `checkpoints`
            else:
                rows = len(self.checkpoints) if name in GROWING else None
                self._columns[name] = read_whole(array, rows=rows)
        return self._columns[name]

    @property
    def stimulus_ids(self) -> list[str]:
        """Content ids of the rows."""
        return [str(s) for s in self.column("stimulus")]

    @property
    def n_stimuli(self) -> int:
        """Rows of every layer."""
        return int(self.array("stimulus").shape[0])

    @property
    def blocks(self) -> list[Block]:
        """Half-open row ranges of the chunks."""
        n, rows = self.n_stimuli, rows_per_chunk(self.n_stimuli)
        return [(i, min(i + rows, n)) for i in range(0, n, rows)]

    @cached_property
    def complete(self) -> Mask:
        """Which blocks of which checkpoints are complete, `(checkpoint, block)`."""
        return self.column("complete").astype(bool)

    def is_complete(self, checkpoint: str) -> bool:
        """Whether all activations of a checkpoint are extracted."""
        if checkpoint not in self.checkpoints:
            return False
        return bool(self.complete[self.checkpoints.index(checkpoint)].all())

    def add_checkpoints(self, rows: Mapping[str, tuple[int, Weights]]) -> None:
        """Append checkpoints (label → step, weights); existing ones stay. Driver only."""
        new = {label: row for label, row in rows.items() if label not in self.checkpoints}
        start, stop = len(self.checkpoints), len(self.checkpoints) + len(new)
        for name in (*self.layers, *GROWING):
            array = self.array(name)
            if array.shape[0] != stop:  # also after a run was killed in the middle of this
                array.resize((stop, *array.shape[1:]))
        if not new:
            return
        region = slice(start, stop)
        self.array("step")[region] = [step for step, _ in new.values()]
        self._write_weights(region, [weights for _, weights in new.values()])
        self.array("checkpoint")[region] = as_text(new)
        self._columns.clear()
        for name in ("checkpoints", "complete"):
            self.__dict__.pop(name, None)

    def replace_weights(self, checkpoint: str, weights: Weights) -> None:
        """Change the identity of weights from which nothing has been extracted yet. Driver only.

        Raises
        ------
        StoreError
            Where activations were already extracted: they belong to the recorded weights.
        """
        row = self.checkpoints.index(checkpoint)
        if self.complete[row].any():
            raise StoreError(
                f"{self.group.path}@{checkpoint}: activations were already extracted from the "
                "recorded weights, which cannot be replaced"
            )
        self._write_weights(slice(row, row + 1), [weights])
        self._columns.clear()

    def _write_weights(self, region: slice, weights: Sequence[Weights]) -> None:
        self.array("weights_digest")[region] = as_text(w.digest for w in weights)
        self.array("weights_size")[region] = [w.size for w in weights]
        self.array("weights_mtime_ns")[region] = [w.mtime_ns for w in weights]

    def write_block(self, checkpoint: str, block: Block, values: Mapping[str, Float32]) -> None:
        """Write every layer of one block of rows, then mark it as complete. Workers.

        Raises
        ------
        StoreError
            Where the rows are not one whole chunk, since two writers that share a chunk silently
            lose rows; or where layers are missing.
        """
        start, stop = block
        rows = rows_per_chunk(self.n_stimuli)
        if start % rows or stop != min(start + rows, self.n_stimuli):
            raise StoreError(
                f"{self.group.path}: rows {start}:{stop} are not one whole chunk of {rows} rows; "
                "two writers that share a chunk overwrite each other's rows",
                "Write whole chunks.",
            )
        if list(values) != self.layers:
            raise StoreError(
                f"{self.group.path}: expected the layers {self.layers}, got {list(values)}"
            )
        row = self.checkpoints.index(checkpoint)
        for layer, block_values in values.items():
            self.array(layer)[row, start:stop] = block_values
        self.array("complete")[row, start // rows] = 1

    def read(self, checkpoint: str, layer: str, rows: NDArray[np.int64] | None = None) -> Float32:
        """Return the activations `(stimulus, feature)` of one layer, all rows or the given.

        Raises
        ------
        StoreError
            Where they are not complete, or a chunk is damaged.
        """
        where = f"{self.group.path}@{checkpoint}/{layer}"
        if not self.is_complete(checkpoint):
            raise StoreError(f"{where}: not all of these activations have been extracted yet")
        values = StoredLayer(self, checkpoint, layer)[...]
        return values if rows is None else values[rows]


class StoredLayer:
    """One layer of one checkpoint: a lazy array `(stimulus, feature)`, read when indexed.

    Damaged and lost chunks raise, also when Dask reads them later.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, tower: TowerGroup, checkpoint: str, layer: str) -> None:
        self._array = tower.array(layer)
        self._row = tower.checkpoints.index(checkpoint)
        self._where = f"{tower.group.path}@{checkpoint}/{layer}"
        self.shape = self._array.shape[1:]
        self.chunks = self._array.chunks[1:]

    def __getitem__(self, region: Any) -> Float32:
        """Read a region.

        Raises
        ------
        StoreError
            Where a chunk is damaged or lost.
        """
        inside = region if isinstance(region, tuple) else (region,)
        values = read(self._array, (self._row, *inside), what=self._where)
        if np.isnan(values).any():  # only finite values are stored
            raise StoreError(
                f"{self._where}: a chunk is lost (it reads as NaN)", remedy(self._array.store)
            )
        return values
