"""Scores of all pairs of representations, as matrix products.

A relational similarity is the inner product of two n × n relations, so all of them at once are
V Vᵀ with one relation, flattened to a vector, per row of V. V is never held whole: for one tile of
pairs of stimuli after the other, each representation's block becomes a row of a *panel*, and the
panel is multiplied with itself, or with the panel of the other side. Products are exact (see
`pipeline.measures.dense.exact`), so a score depends neither on the other pairs nor on the tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import InputError
from pipeline.measures.catalog import MeasureSpec
from pipeline.measures.dense.entries import CELL
from pipeline.measures.dense.exact import joined, slices
from pipeline.measures.dense.panels import panel_of
from pipeline.measures.dense.relations import (
    Relation,
    RelationKey,
    in_units,
    relation_scores,
    row_effect_products,
)
from pipeline.measures.groups import Group, plan_groups
from pipeline.measures.neighbours.mutual_knn import neighbour_scores, shared_neighbours
from pipeline.measures.pairwise.measure import PairwiseMeasure
from pipeline.measures.prepared import Prepared, compared_with
from pipeline.types import Float64, Index, Mask

MEMORY = 2**28
"""Default budget for panels, in bytes."""
MAX_PANEL_BYTES = 2**26
"""Larger panels save no time, as measured."""
DEVICE_TILE = 512
"""Stimuli on a side of the tiles of a GPU."""
ROUNDING = 64 * float(np.finfo(np.float64).eps)
"""How far rounding may take the score of a pairwise measure off the end of its range."""
SINGLE = 4
"""Bytes of an integer in a panel."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of pairs of representations.

    `values` is `(len(xs), len(ys))` float64, NaN where a pair was not wanted or is undefined;
    `undefined` marks the wanted pairs whose score does not exist, because one of the two
    representations is constant (or, for a debiased measure, all stimuli are equally far apart).
    """

    values: Float64
    undefined: Mask


def score_pairs(
    xs: Sequence[Prepared],
    ys: Sequence[Prepared],
    specs: Mapping[str, MeasureSpec],
    *,
    wanted: ArrayLike | None = None,
    tile: int | None = None,
    memory: int = MEMORY,
    device: str = "cpu",
) -> dict[str, Scores]:
    """Score every pair of representations by every measure.

    Parameters
    ----------
    xs, ys
        Prepared representations of the same stimuli in the same order. If `ys` holds the very
        objects of `xs`, each unordered pair is computed once.
    specs
        Measures by label. Those that share a relation share its product.
    wanted
        Boolean mask `(len(xs), len(ys))`; other pairs are NaN. They are computed only where one
        product that covers them is faster than several without them.
    tile
        Stimuli on a side of a tile, in whole cells of 128; by default what is quickest, as far as
        `memory` allows.
    memory
        Bytes for panels, of which 64 KiB for each representation are the least (twice that in
        float64). Beside them the call holds results, `(len(xs), len(ys))` in float64.
    device
        Where dense relations are formed and multiplied: ``"cpu"``, by numpy, or a device of torch
        such as ``"cuda"``. Neighbours and pairwise measures are compared on the CPU.

    Returns
    -------
    dict of Scores
        By label, eager.

    Raises
    ------
    InputError
        If stimuli differ in number, the mask has the wrong shape, or a representation was not
        prepared for a measure.

    Notes
    -----
    Cost: M n² d operations to form the relations of M representations, M² n² to multiply them (half
    of each by symmetry). Relations are formed in the dtype of preparation, rounded to integers of
    21 bits at most (twice that in float64), and multiplied and summed exactly. BLAS uses the
    threads that the caller has set.

    Examples
    --------
    >>> import numpy as np
    >>> from pipeline.measures import measure_spec, prepare
    >>> rng = np.random.default_rng(0)
    >>> specs = {"cka": measure_spec("cka")}
    >>> prepared = [prepare(rng.normal(size=(20, 5)), specs) for _ in range(3)]
    >>> score_pairs(prepared, prepared, specs)["cka"].values.shape
    (3, 3)
    """
    mask = checked_mask(xs, ys, wanted)
    symmetric = len(xs) == len(ys) and all(x is y for x, y in zip(xs, ys, strict=True))
    groups = plan_groups(mask, symmetric=symmetric)
    results: dict[str, Float64] = {}
    for labels in sharing(specs):
        spec = specs[labels[0]]
        rx, ry = [x.relation_for(spec) for x in xs], [y.relation_for(spec) for y in ys]
        products = _dense_products(rx, ry, groups, symmetric, tile, memory, device)
        linear = row_effect_products(rx, ry)
        for label in labels:
            each = specs[label]
            results[label] = relation_scores(
                products, linear, rx, ry,
                wanted=mask, u_centred_only=each.u_centred_only, added=each.added,
            )  # fmt: skip
    for name, spec in specs.items():
        if spec.measure.engine == "neighbours":
            nx, ny = [x.neighbours_for(spec) for x in xs], [y.neighbours_for(spec) for y in ys]
            wanted_once = np.triu(mask | mask.T) if symmetric else mask
            shared = shared_neighbours(nx, ny, wanted_once, memory=memory)
            both = shared + np.triu(shared, 1).T if symmetric else shared
            results[name] = neighbour_scores(both, nx, ny)
        elif isinstance(spec.measure, PairwiseMeasure):
            results[name] = pairwise_scores(xs, ys, spec, spec.measure, mask, mirrored=symmetric)
    return {name: _finished(results[name], xs, ys, specs[name], mask) for name in specs}


def sharing(specs: Mapping[str, MeasureSpec]) -> list[list[str]]:
    """Give the labels of dense measures, those that share a relation together."""
    together: dict[RelationKey, list[str]] = {}
    for label, spec in specs.items():
        if spec.measure.engine == "dense":
            together.setdefault(spec.relation, []).append(label)
    return list(together.values())


def pairwise_scores(
    xs: Sequence[Prepared],
    ys: Sequence[Prepared],
    spec: MeasureSpec,
    measure: PairwiseMeasure,
    mask: Mask,
    *,
    mirrored: bool = False,
) -> Float64:
    """Score the wanted pairs one by one; NaN elsewhere.

    Parameters
    ----------
    mirrored
        Whether `ys` are `xs`, so that a symmetric measure needs each unordered pair once.
    """
    settings = compared_with(spec, measure)
    if spec.added:
        settings["added"] = spec.added
    values = np.full(mask.shape, np.nan)
    once = mirrored and measure.symmetric
    pairs = defined_pairs(xs, ys, spec, mask | mask.T if once else mask)
    for i, j in np.argwhere(np.triu(pairs) if once else pairs):
        x, y = xs[i].states[spec.relation], ys[j].states[spec.relation]
        if measure.symmetric and y.digest < x.digest:
            x, y = y, x  # the last digits of a decomposition depend on the order of the two
        score = measure.compare(x.state, y.state, **settings)
        for end in measure.range:  # rounding may have left the range
            score = end if abs(score - end) <= ROUNDING else score
        values[i, j] = score
        if once:
            values[j, i] = values[i, j]
    return values


def relation_products(
    relations: Sequence[Relation], wanted: ArrayLike, *, memory: int = MEMORY
) -> Float64:
    """Give ⟨U, U'⟩ of the wanted pairs of relations among themselves.

    Parameters
    ----------
    relations
        M relations of the same stimuli.
    wanted
        Symmetric boolean mask `(M, M)`.
    memory
        Bytes for panels.

    Returns
    -------
    numpy.ndarray
        `(M, M)` float64; pairs that are not wanted are 0 or computed.
    """
    groups = plan_groups(np.asarray(wanted, bool), symmetric=True)
    return _dense_products(list(relations), list(relations), groups, True, None, memory, "cpu")


def _finished(
    values: Float64, xs: Sequence[Prepared], ys: Sequence[Prepared], spec: MeasureSpec, mask: Mask
) -> Scores:
    defined = defined_pairs(xs, ys, spec, mask)
    return Scores(np.where(defined, values, np.nan), mask & ~defined)


def defined_pairs(
    xs: Sequence[Prepared], ys: Sequence[Prepared], spec: MeasureSpec, mask: Mask
) -> Mask:
    """Tell which of the wanted pairs have a score."""
    of_x, of_y = np.zeros(len(xs), bool), np.zeros(len(ys), bool)
    for side, of, used in ((xs, of_x, mask.any(axis=1)), (ys, of_y, mask.any(axis=0))):
        for i in np.flatnonzero(used).tolist():
            of[i] = side[i].defined(spec)
    return np.asarray(mask & np.outer(of_x, of_y))


def checked_mask(xs: Sequence[Prepared], ys: Sequence[Prepared], wanted: ArrayLike | None) -> Mask:
    """Check that the representations can be compared, and give the mask of wanted pairs."""
    if not xs or not ys:
        raise InputError("There is nothing to compare: a list of representations is empty.")
    counts = sorted({p.n_stimuli for p in [*xs, *ys]})
    if len(counts) > 1:
        raise InputError(
            "Representations to be compared must have the same stimuli in the same order; these "
            f"have {' and '.join(map(str, counts))} rows."
        )
    mask = np.ones((len(xs), len(ys)), bool) if wanted is None else np.asarray(wanted, bool)
    if mask.shape != (len(xs), len(ys)):
        raise InputError(
            f"The mask of wanted pairs has shape {mask.shape}; with {len(xs)} and {len(ys)} "
            f"representations it must be {(len(xs), len(ys))}."
        )
    return mask


def _dense_products(
    xs: list[Relation],
    ys: list[Relation],
    groups: list[Group],
    symmetric: bool,
    tile: int | None,
    memory: int,
    device: str,
) -> Float64:
    """⟨U_x, U_y⟩ for the pairs in `groups`; zero elsewhere."""
    if not groups:
        return np.zeros((len(xs), len(ys)))
    n = xs[0].n_stimuli
    dtype = np.result_type(xs[0].dtype, ys[0].dtype)
    used_x, used_y = _used([g.rows for g in groups]), _used([g.columns for g in groups])
    if symmetric:
        used_x = used_y = _used([used_x, used_y])
    row_of = np.zeros(len(xs), dtype=np.intp)
    row_of[used_x] = np.arange(len(used_x))
    column_of = np.zeros(len(ys), dtype=np.intp)
    column_of[used_y] = np.arange(len(used_y))
    count = slices(dtype)
    n_panels = len(used_x) + (0 if symmetric else len(used_y))
    streamed = any(r.storage.nbytes == 0 for r in (*xs, *ys))
    if device != "cpu":  # there a tile is formed at once, so it must always be the same
        tile = tile or DEVICE_TILE
    height, width = tile_sides(n, n_panels * count * SINGLE, memory, streamed, tile)
    sides = [(xs, used_x)] if symmetric else [(xs, used_x), (ys, used_y)]
    panels = [
        (panel_of([side[i] for i in used], height * width, dtype, device), side, used)
        for side, used in sides
    ]
    left, right = panels[0][0], panels[-1][0]
    sums = [np.zeros((g.rows.size, count, g.columns.size, count), dtype=np.int64) for g in groups]
    unknown = [
        np.flatnonzero([side[i].self_product.value is None for i in used.tolist()])
        for _, side, used in panels
    ]
    norms = [np.zeros((len(which), count, count), dtype=np.int64) for which in unknown]
    for rows, columns in _tiles(n, height, width):
        for (panel, _, _), which, norm in zip(panels, unknown, norms, strict=True):
            panel.fill(rows, columns)
            if which.size:
                panel.add_own(which, norm)
        for group, added in zip(groups, sums, strict=True):
            left.add_products(right, row_of[group.rows], column_of[group.columns], added)
    products = np.zeros((len(xs), len(ys)))
    for group, added in zip(groups, sums, strict=True):
        products[np.ix_(group.rows, group.columns)] = joined(added.swapaxes(1, 2), n)
    for (_, side, used), which, norm in zip(panels, unknown, norms, strict=True):
        for i, product in zip(used[which].tolist(), joined(norm, n).tolist(), strict=True):
            side[i].self_product.value = product
    products = in_units(products, xs, ys)
    return _mirrored(products, groups) if symmetric else products


def _used(indices: list[Index]) -> Index:
    return np.unique(np.concatenate(indices))


def tile_sides(
    n: int, bytes_per_pair: int, memory: int, streamed: bool, tile: int | None = None
) -> tuple[int, int]:
    """Stimuli on the sides of a tile, in whole cells."""
    if streamed and tile is None:  # each tile reads its rows and columns: few and square
        tile = math.isqrt(memory // bytes_per_pair)
    if tile is not None:
        side = min(n, max(1, tile // CELL) * CELL)
        return side, side
    area = min(memory, MAX_PANEL_BYTES) // bytes_per_pair
    return min(CELL, n), min(max(1, area // CELL**2) * CELL, n)


def _tiles(n: int, height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Tiles that hold every pair above the diagonal once."""
    for i in range(0, n, height):
        for j in range(i, n, width):
            yield slice(i, min(i + height, n)), slice(j, min(j + width, n))


def _mirrored(products: Float64, groups: list[Group]) -> Float64:
    """Fill in the transpose of what was computed."""
    for group in groups:
        block = np.ix_(group.rows, group.columns)
        products.T[block] = products[block]
    return products
