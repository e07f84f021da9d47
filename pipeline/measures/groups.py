"""Split a mask of wanted pairs into few rectangles, each computed as one matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.types import Floating, Index, Mask

OVERHEAD = 24
"""Fixed cost of a product, as a number of additional rows and columns."""


@dataclass(frozen=True, eq=False)
class Group:
    """Rows that are multiplied with the same columns: one product. No row is in two groups."""

    rows: Index
    columns: Index

    def cost(self, overhead: int) -> int:
        """Estimate the product's time, in multiplications per pair of stimuli."""
        return (self.rows.size + overhead) * (self.columns.size + overhead)

    def joined(self, other: Group) -> Group:
        """One product that covers both."""
        return Group(np.union1d(self.rows, other.rows), np.union1d(self.columns, other.columns))


def plan_groups(mask: Mask, *, symmetric: bool = False, overhead: int = OVERHEAD) -> list[Group]:
    """Split the wanted pairs into few products, each of some rows with some columns.

    Rows with the same pattern go together, and so do those of similar patterns where one product
    that covers a few unwanted pairs is quicker than two that do not. With symmetric scores, rows of
    the same pattern relate to those of another wholly or not at all, so each takes only the
    columns of its own pattern and of later ones.
    """
    if symmetric:
        mask = mask | mask.T
    patterns, of = np.unique(mask, axis=0, return_inverse=True)
    of = of.reshape(-1)
    groups: list[Group] = []
    for number, pattern in enumerate(patterns):
        columns = np.flatnonzero(pattern & (of >= number)) if symmetric else np.flatnonzero(pattern)
        if columns.size:
            groups.append(Group(np.flatnonzero(of == number), columns))
            while len(groups) > 1 and _better_joined(groups[-2], groups[-1], overhead):
                last = groups.pop()
                groups[-1] = groups[-1].joined(last)
    return groups


def _better_joined(one: Group, other: Group, overhead: int) -> bool:
    return one.joined(other).cost(overhead) < one.cost(overhead) + other.cost(overhead)


def take_rows(panel: Floating, rows: Index) -> Floating:
    """Rows of a panel, without a copy where they are consecutive."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return panel[rows[0] : rows[-1] + 1]
    return panel[rows]
