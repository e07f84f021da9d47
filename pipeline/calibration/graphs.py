"""Expectations of products of relations' entries under a random permutation.

Of S = Σ_ij a_ij b_π(i)π(j), π uniform, the k-th moment expands into sums over k edges. Sort these
by which ends of edges coincide, a partition σ of the 2k ends into m vertices; then π takes the m
vertices of a to any m of b alike:

    E[S^k] = Σ_σ p_σ(a) p_σ(b) / (n)_m,    (n)_m = n(n−1)…(n−m+1),

with p_σ the sum over *distinct* vertices. By Möbius inversion on the lattice of partitions,

    p_σ = Σ_{τ ≥ σ} μ(σ, τ) P_τ,    μ = ∏ over vertices of τ of (−1)^(s−1) (s−1)!,

where s vertices of σ become that one of τ, and P_τ is the sum over *free* vertices. For a relation
whose rows sum to zero nearly all P vanish: wherever a vertex has a single end. The remaining ones
are *graphs*, written here as their edges (``"ab bc ca"`` is Σ_abc a_ab a_bc a_ca = tr A³), and the
moment is a small bilinear form in their sums, the same for all pairs of relations. So each
representation is summarised by a handful of scalars, and M² pairs take a few outer products.

The forms are derived in this way, in exact arithmetic, on first use (the fourth moment takes a
quarter of a second), and hold for every n of at least 4.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache, lru_cache, partial
from itertools import pairwise, permutations, product
from typing import Any

import numpy as np

from pipeline.types import Float64

Edges = tuple[tuple[Any, ...], ...]


def permutation_moment(
    graphs: tuple[str, ...],
    n: int,
    xs: Sequence[Float64],
    ys: Sequence[Float64],
    *,
    directed: bool = False,
) -> Float64:
    """Give E[∏ over edges] of all pairs of relations, from the sums of graphs over each.

    Parameters
    ----------
    graphs
        The graphs whose sums do not vanish, all with the same number of edges.
    n
        Number of stimuli.
    xs, ys
        A sum for each graph, `(Mx,)` and `(My,)`.
    directed
        Whether a_ij and a_ji differ.

    Returns
    -------
    numpy.ndarray
        `(Mx, My)`.
    """
    # Term by term, each symmetric in x and y: the last digits of a matrix product depend on how
    # many pairs there are.
    form = _form(graphs, int(n), directed)
    total = np.zeros((len(xs[0]), len(ys[0])))
    for i, row in enumerate(form.tolist()):
        total += row[i] * np.outer(xs[i], ys[i])
        for j in range(i):
            total += row[j] * (np.outer(xs[i], ys[j]) + np.outer(xs[j], ys[i]))
    return total


@lru_cache(maxsize=64)
def _form(graphs: tuple[str, ...], n: int, directed: bool) -> Float64:
    """Coefficients of the products of graphs' sums for n stimuli, exact until the last rounding."""
    form = [[Fraction(0)] * len(graphs) for _ in graphs]
    for n_vertices, table in _tables(graphs, directed).items():
        if n_vertices > n:
            continue  # there are not that many distinct stimuli
        for row, counts in zip(form, table, strict=True):
            for j, count in enumerate(counts):
                row[j] += Fraction(count, math.perm(n, n_vertices))
    return np.array([[float(value) for value in row] for row in form])


@lru_cache(maxsize=16)
def _tables(graphs: tuple[str, ...], directed: bool) -> dict[int, list[list[int]]]:
    """Σ over partitions σ into m vertices of the products of graphs' coefficients, by m.

    An edge of one letter is a factor with one index, such as d_i. Graphs that are not among
    `graphs` have sum zero.
    """
    sizes = [len(edge) for edge in graphs[0].split()]
    cuts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    canonical = cache(partial(_canonical, directed=directed))  # partitions give few edge sets
    places = {canonical(tuple(map(tuple, g.split()))): i for i, g in enumerate(graphs)}
    largest = max(len(set(g) - {" "}) for g in graphs)
    coefficients: dict[tuple[int, ...], list[int]] = defaultdict(lambda: [0] * len(graphs))
    for merged in _partitions(cuts[-1]):
        if max(merged) >= largest:
            continue
        edges = tuple(merged[i:j] for i, j in pairwise(cuts))
        place = places.get(canonical(tuple(sorted(edges))))
        if place is None:
            continue
        for split, mobius in _refinements(merged):
            coefficients[split][place] += mobius
    tables: dict[int, list[list[int]]] = {}
    for split, values in coefficients.items():
        table = tables.setdefault(max(split) + 1, [[0] * len(graphs) for _ in graphs])
        for row, x in zip(table, values, strict=True):
            for j, y in enumerate(values):
                row[j] += x * y
    return tables


def _partitions(size: int) -> Iterator[tuple[int, ...]]:
    """Set partitions of `range(size)`: the block of each element, blocks in order of appearance."""
    if size == 0:
        yield ()
        return
    for first in _partitions(size - 1):
        for block in range(max(first, default=-1) + 2):
            yield (*first, block)


def _refinements(merged: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int]]:
    """All partitions that refine one, with the Möbius function of the two."""
    blocks = [[i for i, b in enumerate(merged) if b == block] for block in range(max(merged) + 1)]
    for parts in product(*(list(_partitions(len(block))) for block in blocks)):
        labels: list[tuple[int, int]] = [(0, 0)] * len(merged)
        mobius = 1
        for number, (block, part) in enumerate(zip(blocks, parts, strict=True)):
            mobius *= (-1) ** max(part) * math.factorial(max(part))
            for element, label in zip(block, part, strict=True):
                labels[element] = (number, label)
        names: dict[tuple[int, int], int] = {}
        yield tuple(names.setdefault(label, len(names)) for label in labels), mobius


def _canonical(edges: Edges, directed: bool) -> Edges:
    """Rename vertices so that isomorphic graphs become equal."""
    vertices = sorted({vertex for edge in edges for vertex in edge})
    candidates = []
    for order in permutations(range(len(vertices))):
        names = dict(zip(vertices, order, strict=True))
        renamed = [tuple(names[vertex] for vertex in edge) for edge in edges]
        candidates.append(tuple(sorted(e if directed else tuple(sorted(e)) for e in renamed)))
    return min(candidates)
