"""A representation that is prepared once and compared many times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pipeline.errors import InputError
from pipeline.measures.catalog import MeasureSpec
from pipeline.measures.checks import checked_array
from pipeline.measures.dense.relate import relate
from pipeline.measures.dense.relations import Relation, RelationKey
from pipeline.measures.measure import Value
from pipeline.measures.neighbours.lists import Neighbours, find_neighbours
from pipeline.measures.numerics import storage_eps
from pipeline.measures.pairwise.measure import PairwiseMeasure
from pipeline.measures.presets import clip_threshold, preset_features
from pipeline.types import Float64, Index

NeighboursKey = tuple[str, str, int]


@dataclass(frozen=True, eq=False)
class State:
    """What a pairwise measure prepared of one representation, and what it prepared it from."""

    prepare: Callable[..., Any]
    """The measure's function."""
    parameters: Mapping[str, Value]
    values: Float64
    eps: float
    """Machine epsilon of the dtype that the features were stored in."""
    state: Any
    digest: bytes
    """Of the features in their original order; it decides which of two states is compared first."""

    @classmethod
    def of(cls, values: Float64, eps: float, spec: MeasureSpec, measure: PairwiseMeasure) -> State:
        """Prepare features for a pairwise measure."""
        parameters = {name: spec[name] for name in measure.prepares}
        if measure.of_neighbours:
            parameters["by_index"] = spec.ties_by_index
        state = measure.prepare(values, eps=eps, **parameters)
        digest = hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).digest()
        return cls(measure.prepare, parameters, values, eps, state, digest)

    def permuted(self, order: Index) -> State:
        """Prepare the features again in another order; the digest stays."""
        values = self.values[order]
        state = self.prepare(values, eps=self.eps, **self.parameters)
        return replace(self, values=values, state=state)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the requested measures need of one representation.

    Build one with `prepare`.
    """

    n_stimuli: int
    relations: Mapping[RelationKey, Relation] = field(default_factory=dict)
    neighbours: Mapping[NeighboursKey, Neighbours] = field(default_factory=dict)
    """By preset, ranking and k."""
    states: Mapping[RelationKey, State] = field(default_factory=dict)
    """Of pairwise measures."""
    clip: Mapping[str, float] = field(default_factory=dict)
    """By preset, the threshold at which features were clipped."""

    def permuted(self, order: ArrayLike) -> Prepared:
        """Reorder the stimuli: what `prepare(x[order], …)` gives.

        Relations and neighbours are not prepared again; states of pairwise measures are.

        Parameters
        ----------
        order
            A permutation of the row numbers, `(n_stimuli,)`.

        Returns
        -------
        Prepared
            Row i is row ``order[i]`` of this one.

        Raises
        ------
        InputError
            If `order` is not a permutation of the rows.
        """
        index = np.asarray(order, dtype=np.intp)
        if index.shape != (self.n_stimuli,) or not np.array_equal(
            np.sort(index), np.arange(self.n_stimuli)
        ):
            raise InputError(
                f"The order must be a permutation of the {self.n_stimuli} row numbers, each once."
            )
        return Prepared(
            self.n_stimuli,
            {key: relation.permuted(index) for key, relation in self.relations.items()},
            {key: found.permuted(index) for key, found in self.neighbours.items()},
            {key: state.permuted(index) for key, state in self.states.items()},
            self.clip,
        )

    @property
    def nbytes(self) -> int:
        """Memory of relations, neighbours and the features that pairwise measures keep."""
        kept = {id(state.values): state.values.nbytes for state in self.states.values()}
        return (
            sum(relation.storage.nbytes for relation in self.relations.values())
            + sum(found.nbytes for found in self.neighbours.values())
            + 3 * sum(kept.values())  # and the states prepared from them
        )

    def spilled(self, folder: Path) -> Prepared:
        """Write relations to files, from which tiles are read when they are multiplied."""
        relations = {key: each.spilled(folder) for key, each in self.relations.items()}
        return replace(self, relations=relations)

    def ties(self, spec: MeasureSpec) -> int:
        """Count the stimuli whose nearest neighbours are tied for the last places, or in order."""
        if spec.measure.engine == "neighbours":
            return self.neighbours_for(spec).ties
        measure = spec.measure
        if isinstance(measure, PairwiseMeasure) and measure.of_neighbours:
            return int(self.state_for(spec).ties)
        return 0

    def defined(self, spec: MeasureSpec) -> bool:
        """Tell whether the measure is defined for this representation."""
        return not self.undefined_reason(spec)

    def undefined_reason(self, spec: MeasureSpec) -> str:
        """Say why the measure is undefined for this representation; empty if it is defined."""
        measure = spec.measure
        if measure.engine == "neighbours":
            varies = self.neighbours_for(spec).defined
        elif isinstance(measure, PairwiseMeasure):
            state = self.state_for(spec)
            varies = bool(state.defined)
            if varies:
                return measure.undefined_reason(state, **compared_with(spec, measure))
        else:
            varies = self.relation_for(spec).squared_norm(u_centred_only=spec.u_centred_only) > 0.0
        return "" if varies else _CONSTANT.format(spec)

    def state_for(self, spec: MeasureSpec) -> Any:
        """Give the state of a pairwise measure; raise if it was not prepared."""
        if spec.relation not in self.states:
            raise _unprepared(spec)
        return self.states[spec.relation].state

    def relation_for(self, spec: MeasureSpec) -> Relation:
        """Give the relation of the spec; raise if it was not prepared."""
        if spec.relation not in self.relations:
            raise _unprepared(spec)
        return self.relations[spec.relation]

    def neighbours_for(self, spec: MeasureSpec) -> Neighbours:
        """Give the neighbour lists of the spec; raise if they were not prepared."""
        key = (spec.preset, str(spec["neighbours"]), int(spec["k"]))
        if key not in self.neighbours:
            raise _unprepared(spec)
        return self.neighbours[key]


_CONSTANT = (
    "is constant as far as {} can see: its stimuli are all alike (or, but for one of them, all "
    "equally far apart), so the score is undefined. A layer that does not depend on its input, "
    "such as a class token before the first block, must be left out."
)


def compared_with(spec: MeasureSpec, measure: PairwiseMeasure) -> dict[str, Value]:
    """Give the parameters that a pairwise measure compares with."""
    passed_on = {"preset", *measure.prepares}
    return {name: value for name, value in spec.parameters if name not in passed_on}


def _unprepared(spec: MeasureSpec) -> InputError:
    return InputError(
        f"A representation was not prepared for {spec}. Give this measure to `prepare` too."
    )


def prepare(
    x: ArrayLike,
    specs: Iterable[MeasureSpec] | Mapping[str, MeasureSpec],
    *,
    dtype: DTypeLike = np.float32,
    name: str = "x",
    clip: Mapping[str, float] | None = None,
) -> Prepared:
    """Prepare one representation for the measures given.

    Parameters
    ----------
    x
        Activations `(n_stimuli, n_features)`, real and finite.
    specs
        The measures, or a mapping whose values they are. Only what they need is computed.
    dtype
        Precision of the products, float32 or float64. Neighbours do not depend on it.
    name
        What an error calls the array.
    clip
        By preset, the threshold of the encoder that this is a layer of; without one, that of these
        features alone. See `clip_thresholds`.

    Returns
    -------
    Prepared
        With the features that give each relation by blocks, one `(n_stimuli, k)` list for each
        kind of neighbours, and the states of pairwise measures.

    Raises
    ------
    InputError
        If `x` is not a real, finite matrix, or has too few stimuli for a measure.

    Notes
    -----
    A constant representation is not an error here: its pairs come out as undefined. It is
    constant if no feature varies by more than two units in the last place of the dtype of `x`.
    Sums are in float64. Needs one or two more arrays like `x` in `dtype`, temporarily; measures
    of distances and pairwise measures need some in float64.
    """
    wanted = list(specs.values()) if isinstance(specs, Mapping) else list(specs)
    if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InputError(f"The dtype of products is {np.dtype(dtype)}; use float32 or float64.")
    array = checked_array(x, name)
    for spec in wanted:
        check_stimuli(len(array), spec, name)
    eps = storage_eps(array)
    small = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    values = array.astype(np.float32 if small else np.float64, copy=False)
    relations: dict[RelationKey, Relation] = {}
    neighbours: dict[NeighboursKey, Neighbours] = {}
    states: dict[RelationKey, State] = {}
    clipped: dict[str, float] = {}
    for preset in sorted({spec.preset for spec in wanted}):
        some = [spec for spec in wanted if spec.preset == preset]
        features, feature_eps = values, eps
        if preset:
            clipped[preset] = (clip or clip_thresholds(lambda: [values], wanted))[preset]
            features = preset_features(values, clipped[preset])
            feature_eps = 4 * eps  # lengths and quotients are rounded too
        keys = {spec.relation[1:] for spec in some if spec.measure.engine == "dense"}
        for key, relation in relate(features, feature_eps, keys, dtype).items():
            relations[preset, *key] = relation
        rankings: dict[str, set[int]] = {}
        for spec in some:
            if spec.measure.engine == "neighbours":
                rankings.setdefault(str(spec["neighbours"]), set()).add(int(spec["k"]))
        for kind, ks in rankings.items():
            for k, found in find_neighbours(
                features, feature_eps, kind, ks, by_index=bool(preset)
            ).items():
                neighbours[preset, kind, k] = found
        pairwise = [
            (spec, spec.measure) for spec in some if isinstance(spec.measure, PairwiseMeasure)
        ]
        exact = features.astype(np.float64, copy=False) if pairwise else np.empty(0)
        for spec, measure in pairwise:
            if spec.relation not in states:
                states[spec.relation] = State.of(exact, feature_eps, spec, measure)
    return Prepared(len(array), relations, neighbours, states, clipped)


def clip_thresholds(
    layers: Callable[[], Iterable[NDArray[Any]]], specs: Iterable[MeasureSpec]
) -> dict[str, float]:
    """Find the threshold of an encoder for every preset that the measures ask for.

    Parameters
    ----------
    layers
        As for `clip_threshold`.
    specs
        The measures.
    """
    presets = {spec.preset for spec in specs} - {""}
    return {preset: clip_threshold(layers, preset) for preset in sorted(presets)}


def check_stimuli(n: int, spec: MeasureSpec, name: str) -> None:
    """Refuse too few stimuli for a measure."""
    if n >= spec.minimum_stimuli:
        return
    measure, remedy = spec.measure, ""
    if measure.grows_with is not None:
        largest = n - measure.beyond
        (parameter,) = (p for p in measure.parameters if p.name == measure.grows_with)
        if n >= measure.minimum_stimuli and parameter.accepts(largest):
            remedy = f", or {parameter.name} of at most {largest}"
    raise InputError(
        f"{name} has {n} stimuli (rows); {spec} needs at least {spec.minimum_stimuli}: "
        "with fewer, there is next to nothing to tell representations apart by. Use more "
        f"stimuli{remedy}."
    )
