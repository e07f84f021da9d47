"""Memory and operations that a comparison will take, estimated from shapes alone.

The formulas follow the code buffer by buffer; memory is an upper bound of what is allocated at the
same time. A multiply-add is two operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.measures.catalog import MeasureSpec
from pipeline.measures.dense.cka import MEDIAN_ROWS
from pipeline.measures.dense.entries import CELL, packed_bytes
from pipeline.measures.dense.exact import MAX_TERMS
from pipeline.measures.dense.relations import RelationKey
from pipeline.measures.neighbours.lists import BLOCK_BYTES, RANKED_ROWS
from pipeline.measures.pairs import MEMORY, sharing, tile_sides
from pipeline.measures.permuted import CHUNK_PAIRS, working_bytes
from pipeline.types import Float64, Int64

Specs = Mapping[str, MeasureSpec]

SINGLE, DOUBLE = 4, 8
"""Bytes of the dtype that products are made in, and of float64."""


@dataclass(frozen=True, eq=False)
class PreparedBytes:
    """Memory of prepared representations, in bytes, each `(M,)`."""

    spillable: Float64
    """Of relations, which can be spilled to files."""
    resident: Float64
    """Of the rest."""


def kept_bytes(n: int, widths: Int64, specs: Specs) -> PreparedBytes:
    """Give the memory of representations `n` × `widths` prepared for the measures.

    Stimuli that tie for the last places of others take 12 bytes more each time, which cannot be
    known without the features.
    """
    spillable = np.zeros(len(widths))
    resident = np.zeros(len(widths))
    packed = float(packed_bytes(n, np.dtype(np.float32)))
    for key in _relations(specs):
        spillable += np.minimum(packed, n * widths * _entry_bytes(key, n, widths))
        resident += n * (DOUBLE + SINGLE)
    for k in _neighbour_counts(specs):
        resident += DOUBLE * n * k
    for spec in _pairwise(specs):
        # the features, the state prepared from them, and Gram matrices of batches, if any
        resident += 3.0 * DOUBLE * n * widths + DOUBLE * _batched(n, spec)
    return PreparedBytes(spillable, resident)


def _relations(specs: Specs) -> list[RelationKey]:
    return list({s.relation: 0 for s in specs.values() if s.measure.engine == "dense"})


def _pairwise(specs: Specs) -> list[MeasureSpec]:
    found = [s for s in specs.values() if s.measure.engine == "pairwise"]
    return list({s.relation: s for s in found}.values())


def _neighbour_counts(specs: Specs) -> list[int]:
    """Give k of every kind of neighbours."""
    found = [s for s in specs.values() if s.measure.engine == "neighbours"]
    keys = {(s.preset, s["neighbours"], s["k"]): int(s["k"]) for s in found}
    return list(keys.values())


def _batched(n: int, spec: MeasureSpec) -> float:
    options = dict(spec.parameters)
    if "batch_size" not in options:
        return 0.0
    return float(options["n_passes"]) * n * float(options["batch_size"]) / 2


def _in_distances(key: RelationKey) -> bool:
    """Tell whether a relation comes from distances in float64."""
    return key[1] in ("rbf", "distance") or key[1:3] == ("rsa", "euclidean")


def _ranks(key: RelationKey) -> bool:
    return key[1] == "rsa" and key[-1] == "spearman"


def _entry_bytes(key: RelationKey, n: int, widths: Int64) -> Any:
    if _ranks(key):
        return DOUBLE * n / np.maximum(widths, 1)  # a table (n, n)
    return DOUBLE if _in_distances(key) else SINGLE


def preparing_bytes(n: int, width: int, specs: Specs, layers: Sequence[int] = ()) -> float:
    """Give the temporary memory of preparing one representation, beside the result.

    Parameters
    ----------
    layers
        Widths of all layers of its encoder, where a preset clips over them.
    """
    features = float(n * width)
    values = SINGLE * features + features  # and which of them are finite
    steps = [0.0]
    if any(s.preset for s in specs.values()):
        values += DOUBLE * features
        steps.append(3 * DOUBLE * features)
        # magnitudes, their bits and the places that are counted, one layer at a time
        steps.append((3 * SINGLE + DOUBLE) * n * float(max(layers, default=width)))
    for key in _relations(specs):
        steps.append(CELL * n * SINGLE * 2.0 + _forming_bytes(key, n, width))
    if _neighbour_counts(specs):
        similarities = 2.0 * SINGLE * min(RANKED_ROWS, n) * n
        exact = 4.0 * min(BLOCK_BYTES, DOUBLE * min(RANKED_ROWS, n) * n)
        steps.append(SINGLE * features + similarities + exact)
    for _ in _pairwise(specs):
        steps.append(DOUBLE * (4 * features + 4.0 * min(n, width) ** 2))
    return values + max(steps)


def _forming_bytes(key: RelationKey, n: int, width: int) -> float:
    features = float(n * width)
    if _ranks(key):
        return DOUBLE * (8.0 * n * n + 4 * features)
    some = min(n, MEDIAN_ROWS)
    median = 2.0 * DOUBLE * some**2 if key[1] == "rbf" else 0.0
    rows = 3.0 * DOUBLE * min(512, n) * n
    if _in_distances(key):
        return DOUBLE * features + median + rows
    return DOUBLE * 4 * features + rows if key[1] == "rsa" else SINGLE * features


def preparing_operations(n: int, widths: Int64, specs: Specs) -> float:
    """Give the operations of preparing representations: relations that are packed, neighbours."""
    total = 0.0
    everything = float(widths.sum())
    packed = packed_bytes(n, np.dtype(np.float32))
    for key in _relations(specs):
        small = packed <= n * widths * _entry_bytes(key, n, widths)
        total += n * n * float(widths[small].sum())
        if _in_distances(key):
            total += 2.0 * n * n * everything  # row sums, which no formula gives
    rankings = {(s.preset, s["neighbours"]) for s in specs.values()
                if s.measure.engine == "neighbours"}  # fmt: skip
    total += 2.0 * n * n * everything * len(rankings)
    return total + 2.0 * len(_pairwise(specs)) * float((n * widths * np.minimum(n, widths)).sum())


def scoring_operations(n: int, widths: Int64, pairs: float, specs: Specs) -> float:
    """Give the operations of scoring pairs of prepared representations.

    Notes
    -----
    n²·Σd for forming what lies above the diagonal of each relation that is not packed, and n² for
    each pair, by every relation; n·k look-ups for each pair by neighbours; one product of features
    for each pair by pairwise measures, which is the least they take.
    """
    total = 0.0
    packed = packed_bytes(n, np.dtype(np.float32))
    for key in _relations(specs):
        formed = packed > n * widths * _entry_bytes(key, n, widths)
        total += n * n * (float(widths[formed].sum()) + pairs)
    total += sum(n * k * pairs for k in _neighbour_counts(specs))
    mean = float(widths.mean()) if len(widths) else 0.0
    return total + 2.0 * n * mean**2 * pairs * len(_pairwise(specs))


def scoring_bytes(
    n: int, n_xs: int, n_ys: int, specs: Specs, *, alike: bool, spilled: bool, memory: int = MEMORY
) -> float:
    """Give the memory that `score_pairs` takes beside prepared representations.

    Parameters
    ----------
    alike
        Whether both sides are the same.
    spilled
        Whether relations are in files.
    """
    results = float(DOUBLE * n_xs * n_ys)
    steps = [0.0]
    n_panels = n_xs + (0 if alike else n_ys)
    for labels in sharing(specs):
        height, width = tile_sides(n, SINGLE * max(1, n_panels), memory, spilled)
        block = SINGLE * height * width  # one relation's tile, before it is rounded
        if _in_distances(specs[labels[0]].relation):
            block += 4 * DOUBLE * min(CELL, n) ** 2
        panels = n_panels * (SINGLE * height * width + (SINGLE + 2 * DOUBLE) * MAX_TERMS)
        vectors = DOUBLE * n * (n_xs + n_ys)
        steps.append(panels + block + vectors + 8 * results)
    for k in _neighbour_counts(specs):
        rows = max(1, min(n, memory // (n + DOUBLE * k * max(1, n_ys))))
        steps.append(rows * (n + DOUBLE * k * (n_ys + 2)) + 3 * results)
    return max(steps) + 2 * results * len(specs)


def permuting_bytes(
    n: int,
    n_orders: int,
    n_xs: int,
    widths: Int64,
    specs: Specs,
    *,
    memory: int = MEMORY,
) -> float:
    """Give the memory of a null by permutation beside prepared representations and results.

    Parameters
    ----------
    widths
        Of the representations of Y, whose stimuli are permuted.
    """
    n_ys = len(widths)
    capacity = max(1, memory // working_bytes(n, n_orders, n_xs, 1, np.float32))
    at_once = min(n_ys, capacity)
    scores = float(DOUBLE * n_orders * n_xs * at_once)
    orders = 3.0 * DOUBLE * n_orders * n
    chunk = max(CHUNK_PAIRS, n)
    steps = [0.0]
    if _relations(specs):
        strip = SINGLE * min(CELL, n) * n * max(n_xs, at_once)
        tiles = chunk * (SINGLE * (n_xs + 2 * at_once) + 6 * DOUBLE)
        tiles += strip + 2 * DOUBLE * MAX_TERMS * (n_xs + at_once)
        vectors = DOUBLE * n * (n_xs + 2 * at_once)
        relations = working_bytes(n, n_orders, n_xs, at_once, np.float32)
        steps.append(relations + tiles + vectors + 4 * scores)
    for k in _neighbour_counts(specs):
        lists = n * k * (8 * SINGLE * n_xs + 4 * SINGLE * at_once)
        steps.append(lists + SINGLE * 2.0 * n * n + 3 * scores)
    if _pairwise(specs):  # each permutation is prepared while the one before is still held
        pairwise = {spec.name: spec for spec in _pairwise(specs)}
        steps.append(scores + 2 * float(kept_bytes(n, widths, pairwise).resident.sum()))
    # all measures' scores, and how they are brought together over layers
    return orders + max(steps) + scores * (len(specs) + 4)


def permuting_operations(n: int, n_orders: int, widths: Int64, pairs: float, specs: Specs) -> float:
    """Give the operations of a null by permutation: n² for each pair of layers, K times."""
    total = n * n * float(widths.sum()) * len(_relations(specs))
    total += n_orders * pairs * n * n * len(_relations(specs))
    total += sum(n_orders * pairs * n * k for k in _neighbour_counts(specs))
    mean = float(widths.mean()) if len(widths) else 0.0
    return total + 2.0 * n * mean**2 * n_orders * pairs * len(_pairwise(specs))
