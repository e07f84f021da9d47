"""Scores under permutations of the stimuli of one side.

A permutation moves the entries of a relation without changing them. So the relations of Y are
written out once, with the pairs of stimuli i < j along the first axis: the entries of all layers of
Y for one pair are adjacent, and a permutation gathers such rows. The relations of X are formed once
per chunk of pairs, and all permutations use the chunk while it is in cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, DTypeLike

from pipeline.errors import InputError
from pipeline.measures.catalog import MeasureSpec
from pipeline.measures.dense.entries import strips
from pipeline.measures.dense.exact import add_products, in_steps, joined, slices
from pipeline.measures.dense.relations import (
    Relation,
    in_units,
    relation_scores,
    row_effect_products,
)
from pipeline.measures.groups import Group, plan_groups, take_rows
from pipeline.measures.neighbours.lists import Neighbours
from pipeline.measures.neighbours.mutual_knn import fractional_pairs, indicators, neighbour_scores
from pipeline.measures.pairs import checked_mask, defined_pairs, pairwise_scores, sharing
from pipeline.measures.pairwise.measure import PairwiseMeasure
from pipeline.measures.prepared import Prepared
from pipeline.types import Float32, Float64, Index, Mask

CHUNK_PAIRS = 8192
"""Pairs of stimuli multiplied at a time: a few megabytes for a hundred layers."""


def score_permuted(
    xs: Sequence[Prepared],
    ys: Sequence[Prepared],
    specs: Mapping[str, MeasureSpec],
    orders: ArrayLike,
    *,
    wanted: ArrayLike | None = None,
) -> dict[str, Float64]:
    """Score every pair of representations under each permutation of the stimuli of Y.

    Parameters
    ----------
    xs, ys
        Prepared representations of the same stimuli.
    specs
        Measures by label.
    orders
        Permutations of the row numbers, `(K, n_stimuli)`.
    wanted
        Boolean mask `(len(xs), len(ys))`, as for `score_pairs`.

    Returns
    -------
    dict of numpy.ndarray
        By label, `(K, len(xs), len(ys))` in float64: entry κ is what `score_pairs` gives for `xs`
        and ``y.permuted(orders[κ])``. NaN where undefined or not wanted.

    Raises
    ------
    InputError
        As `score_pairs`, and if a row of `orders` is not a permutation of the stimuli.

    Notes
    -----
    Needs `working_bytes` beside its arguments; for neighbours, an index of n² numbers and the lists
    of both sides. Cost: K · len(xs) · len(ys) · n² operations. Fewer
    representations in `ys` at a time need less memory.
    """
    mask = checked_mask(xs, ys, wanted)
    groups = plan_groups(mask)
    permutations = _checked_orders(orders, xs[0].n_stimuli)
    results: dict[str, Float64] = {}
    for labels in sharing(specs):
        spec = specs[labels[0]]
        rx, ry = [x.relation_for(spec) for x in xs], [y.relation_for(spec) for y in ys]
        products = _dense_products(rx, ry, permutations, groups)
        linear = np.stack([row_effect_products(rx, ry, order) for order in permutations])
        for label in labels:
            each = specs[label]
            results[label] = relation_scores(
                products, linear, rx, ry,
                wanted=mask, u_centred_only=each.u_centred_only, added=each.added,
            )  # fmt: skip
    for name, spec in specs.items():
        if spec.measure.engine == "neighbours":
            nx, ny = [x.neighbours_for(spec) for x in xs], [y.neighbours_for(spec) for y in ys]
            results[name] = _neighbour_scores(nx, ny, permutations, groups, mask)
        elif isinstance(spec.measure, PairwiseMeasure):
            results[name] = np.stack(
                [
                    pairwise_scores(xs, _only(ys, spec, order), spec, spec.measure, mask)
                    for order in permutations
                ]
            )
    for name, spec in specs.items():
        results[name][:, ~defined_pairs(xs, ys, spec, mask)] = np.nan
    return {name: results[name] for name in specs}


def _only(ys: Sequence[Prepared], spec: MeasureSpec, order: Index) -> list[Prepared]:
    """Reorder what one pairwise measure needs, and no more."""
    key = spec.relation
    return [replace(y, relations={}, neighbours={}, states={key: y.states[key]}).permuted(order)
            for y in ys]  # fmt: skip


def working_bytes(n: int, n_orders: int, n_xs: int, n_ys: int, dtype: DTypeLike) -> int:
    """Bytes that `score_permuted` needs: Y's relations, and the scores under all permutations."""
    relations = n * (n - 1) // 2 * n_ys * np.dtype(dtype).itemsize
    return relations + 6 * 8 * n_orders * n_xs * n_ys


def _checked_orders(orders: ArrayLike, n: int) -> Index:
    permutations = np.asarray(orders, dtype=np.intp)
    if permutations.ndim != 2 or not np.array_equal(
        np.sort(permutations, axis=1), np.broadcast_to(np.arange(n), (len(permutations), n))
    ):
        raise InputError(
            f"Orders have shape {permutations.shape}; each of their rows must be a permutation of "
            f"the {n} row numbers, so (K, {n})."
        )
    return permutations


def _dense_products(
    xs: list[Relation],
    ys: list[Relation],
    orders: Index,
    groups: list[Group],
) -> Float64:
    """⟨U_x, P U_y Pᵀ⟩ for each permutation, `(K, len(xs), len(ys))`; zero outside the groups."""
    n, count = xs[0].n_stimuli, slices(np.result_type(xs[0].dtype, ys[0].dtype))
    starts = np.arange(n) * (2 * n - np.arange(n) - 1) // 2 - np.arange(n) - 1
    laid = np.empty((n * (n - 1) // 2, len(ys) * count), dtype=np.float32)
    for rows, chunk in _chunks(ys, count):
        first = starts[rows.start] + rows.start + 1
        laid[first : first + chunk.shape[-1]] = chunk.reshape(-1, chunk.shape[-1]).T
    places = [
        (group.rows, (group.columns[:, None] * count + np.arange(count)).ravel())
        for group in groups
    ]
    sums = [
        np.zeros((len(orders), g.rows.size * count, g.columns.size * count), dtype=np.int64)
        for g in groups
    ]
    for rows, panel in _chunks(xs, count):
        above = _above_diagonal(n, rows)
        i, j = above[0] + rows.start, above[1] + rows.start
        fetched = np.empty((len(i), laid.shape[1]), dtype=laid.dtype)
        lefts = [take_rows(panel, own).reshape(-1, panel.shape[-1]) for own, _ in places]
        for k, order in enumerate(orders):
            first, second = order[i], order[j]
            position = starts[np.minimum(first, second)] + np.maximum(first, second)
            # Positions are in range by construction; "clip" avoids a buffer in numpy.
            np.take(laid, position, axis=0, out=fetched, mode="clip")
            for left, (_, columns), added in zip(lefts, places, sums, strict=True):
                add_products(left, take_rows(fetched.T, columns), added[k])
    products = np.zeros((len(orders), len(xs), len(ys)))
    for group, added in zip(groups, sums, strict=True):
        shape = (len(orders), group.rows.size, count, group.columns.size, count)
        products[:, group.rows[:, None], group.columns] = joined(
            added.reshape(shape).swapaxes(2, 3), n
        )
    return in_units(products, xs, ys)


def _chunks(relations: list[Relation], count: int) -> Iterator[tuple[slice, Float32]]:
    """Give rows, and their entries above the diagonal as integer multiples of the step.

    Arrays are `(len(relations), count, pairs)`, with about `CHUNK_PAIRS` pairs i < j of stimuli.
    """
    n, dtype = relations[0].n_stimuli, relations[0].dtype
    for strip in strips(n):
        formed = np.empty((len(relations), strip.stop - strip.start, n - strip.start), dtype=dtype)
        for relation, block in zip(relations, formed, strict=True):
            relation.upper(strip, slice(strip.start, n), block)
        height = max(1, CHUNK_PAIRS // (n - strip.start))
        for start in range(strip.start, min(strip.stop, n - 1), height):
            rows = slice(start, min(start + height, strip.stop, n - 1))
            row, column = _above_diagonal(n, rows)
            shift = start - strip.start
            panel = np.empty((len(relations), count, len(row)), dtype=np.float32)
            for relation, block, whole in zip(relations, formed, panel, strict=True):
                in_steps(block[row + shift, column + shift], relation.step, n, whole)
            yield rows, panel


def _above_diagonal(n: int, rows: slice) -> tuple[Index, Index]:
    """Row and column of the pairs i < j of some rows, from the first of these rows."""
    return np.triu_indices(rows.stop - rows.start, k=1, m=n - rows.start)


def _neighbour_scores(
    xs: list[Neighbours],
    ys: list[Neighbours],
    orders: Index,
    groups: list[Group],
    mask: Mask,
) -> Float64:
    """Score neighbours under each permutation; zero outside the groups."""
    n = len(xs[0].indices)
    everyone = slice(0, n)
    # Where Y's ties were broken by index, the neighbours depend on the order of the stimuli.
    tied = fractional_pairs(xs, ys) | np.array([y.shares is not None for y in ys])
    shared = _shared_by_ties(xs, ys, orders, mask & tied)
    for group in groups:
        counted = ~tied[np.ix_(group.rows, group.columns)]
        if not counted.any():
            continue
        left = indicators([xs[i] for i in group.rows.tolist()], everyone)
        right = indicators([ys[j] for j in group.columns.tolist()], everyone).T.tocsr()
        rows, columns = np.divmod(left.indices, n)
        kind = left.indices.dtype
        for result, order in zip(shared, orders.astype(kind), strict=True):
            # Where j is near i in X, look up in Y the stimuli that are now at i and j.
            asked = order[rows] * kind.type(n) + order[columns]
            moved = scipy.sparse.csr_array((left.data, asked, left.indptr), shape=left.shape)
            result[np.ix_(group.rows, group.columns)] += (moved @ right).toarray() * counted
    return neighbour_scores(shared, xs, ys)


def _shared_by_ties(
    xs: list[Neighbours], ys: list[Neighbours], orders: Index, wanted: Mask
) -> Float64:
    """Sum the products of relations of which one has ties, `(K, len(xs), len(ys))`."""
    n = len(xs[0].indices)
    shared = np.zeros((len(orders), len(xs), len(ys)))
    for j in np.flatnonzero(wanted.any(axis=0)).tolist():
        rows, y = np.flatnonzero(wanted[:, j]), ys[j]
        flat = [xs[i].relation().reshape((1, n * n)) for i in rows.tolist()]
        left = scipy.sparse.vstack(flat, format="csr")
        table = y.relation().toarray()
        for result, order in zip(shared, orders, strict=True):
            if y.by_index:
                moved = y.permuted(order).relation().toarray()
            else:
                moved = table[np.ix_(order, order)]
            result[rows, j] = left @ moved.ravel()
    return shared
