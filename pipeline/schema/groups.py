"""The kinds of groups that a store has, each declared once.

What makes a group, reads it and verifies it takes variables, shapes, chunks and the completion
marker from here. Plain records: nothing here imports zarr.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.schema.variables import (
    ACTIVATIONS,
    ANALYTIC_CALIBRATION,
    CALIBRATION,
    LOG,
    SIMILARITY_GRID,
    STIMULI,
    SUBSET,
    Variable,
    layer_variable,
    own_column,
)

MAX_ROWS = 1024
"""Stimuli in a chunk, at most: 4 MiB of a layer 1,024 wide."""
COLUMN_CHUNK = 1024
"""Members of a growing axis in a chunk of a one-dimensional variable."""
ROW_CHUNK = 2**14
"""Stimuli in a chunk of a one-dimensional variable, at most: workers read a few at a time."""

Attributes = Mapping[str, Any]
Sizes = Mapping[str, int]


def rows_per_chunk(n_stimuli: int) -> int:
    """Return the stimuli in a chunk: one number for all layers of a set."""
    return min(n_stimuli, MAX_ROWS)


@dataclass(frozen=True)
class ArrayLayout:
    """Shape and chunks of one declared array."""

    variable: Variable
    shape: tuple[int, ...]
    chunks: tuple[int, ...]


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class GroupKind:
    """One kind of group.

    Attributes
    ----------
    name
        What it holds, in words.
    variables
        Those that every group of this kind may have.
    mark
        Completion marker: the attribute that is written last. Without it the group does not count.
    axis
        The dimension that grows as members are added, if one does. Pairwise variables have it
        twice, as `AXIS_x` and `AXIS_y`.
    chunk
        Members on a side of a chunk of pairs.
    further
        From a group's attributes to the variables that it has besides.
    sizes
        From a group's attributes, and the sizes known, to the sizes that follow from them.
    chunks
        From a group's attributes and all sizes to the chunk lengths of variables with several
        dimensions. A dimension that is left out is one chunk.
    """

    name: str
    variables: Mapping[str, Variable]
    mark: str = ""
    axis: str = ""
    chunk: int = 0
    further: Callable[[Attributes], Mapping[str, Variable]] = _nothing
    sizes: Callable[[Attributes, Sizes], Sizes] = _nothing
    chunks: Callable[[Attributes, Sizes], Sizes] = _nothing

    def declared(self, attributes: Attributes) -> dict[str, Variable]:
        """Return the variables of a group with these attributes."""
        return {**self.variables, **self.further(attributes)}

    def grows(self, dim: str) -> bool:
        """Whether a dimension is the growing axis, or a side of it."""
        return bool(self.axis) and dim in (self.axis, f"{self.axis}_x", f"{self.axis}_y")

    def growing_axis(self, variable: Variable) -> int | None:
        """Return the first of a variable's dimensions that grows, or None."""
        return next((i for i, dim in enumerate(variable.dims) if self.grows(dim)), None)

    def is_pairwise(self, variable: Variable) -> bool:
        """Whether a variable has a value for each pair of members."""
        return f"{self.axis}_x" in variable.dims

    def layouts(self, attributes: Attributes, sizes: Sizes) -> dict[str, ArrayLayout]:
        """Return the layout of every array of a group.

        Parameters
        ----------
        sizes
            Of the growing axis, 0 if left out, and of the dimensions that `attributes` do not
            determine. A variable with a dimension of unknown size is left out.
        """
        known = {self.axis: 0, **sizes}
        known |= self.sizes(attributes, known)
        side = known[self.axis]
        chunks = self.chunks(attributes, known)
        found = {}
        for name, variable in self.declared(attributes).items():
            own = [self.grows(dim) for dim in variable.dims]
            if not all(o or dim in known for o, dim in zip(own, variable.dims, strict=True)):
                continue
            shape = [side if o else known[d] for o, d in zip(own, variable.dims, strict=True)]
            if len(shape) == 1:
                chunk = [COLUMN_CHUNK if own[0] else min(shape[0], ROW_CHUNK)]
            else:
                chunk = [chunks.get(d, s) for d, s in zip(variable.dims, shape, strict=True)]
            found[name] = ArrayLayout(variable, tuple(shape), tuple(chunk))
        return found


def _layers(attributes: Attributes) -> dict[str, Variable]:
    return {
        layer: layer_variable(layer, index)
        for index, layer in enumerate(attributes.get("layers", ()))
    }


def _tower_sizes(attributes: Attributes, known: Sizes) -> dict[str, int]:
    n = known["stimulus"]
    layers = zip(attributes.get("layers", ()), attributes.get("widths", ()), strict=False)
    return {
        "block": -(-n // rows_per_chunk(n)),
        **{f"feature_{layer}": int(width) for layer, width in layers},
    }


def _pair_chunks(axis: str) -> Callable[[Attributes, Sizes], dict[str, int]]:
    return lambda attributes, _: {f"{axis}_{side}": int(attributes["chunk"]) for side in "xy"}


STIMULUS_GROUP = GroupKind(
    "stimuli",
    STIMULI,
    mark="fingerprint",
    further=lambda attributes: {
        name: own_column(name, dtype) for name, dtype in attributes.get("own_columns", {}).items()
    },
    chunks=lambda _, sizes: {"stimulus": rows_per_chunk(sizes["stimulus"])},
)
TOWER_GROUP = GroupKind(
    "activations",
    ACTIVATIONS,
    mark="recipe_digest",
    axis="checkpoint",
    further=_layers,
    sizes=_tower_sizes,
    chunks=lambda _, sizes: {
        "checkpoint": 1,
        "stimulus": rows_per_chunk(sizes["stimulus"]),
        "block": 1,
    },
)
SUBSET_GROUP = GroupKind("subset", SUBSET, mark="fingerprint")
SCORE_GROUP = GroupKind(
    "scores",
    SIMILARITY_GRID,
    mark="chunk",
    axis="representation",
    chunk=128,  # one task computes 128 × 128 pairs
    chunks=_pair_chunks("representation"),
)
NULL_GROUP = GroupKind(
    "null",
    CALIBRATION,
    mark="chunk",
    axis="encoder",
    chunk=16,
    # nulls that are sampled from moments have the version of these, and tail bounds
    further=lambda attributes: ANALYTIC_CALIBRATION if "version" in attributes else {},
    sizes=lambda attributes, _: {
        "aggregate": len(attributes.get("aggregates", ())),
        "permutation": attributes.get("n_permutations", 0),
    },
    chunks=_pair_chunks("encoder"),
)
RUN_GROUP = GroupKind("runs", {LOG.name: LOG})
