"""Subsets of a stimulus set: the rows on which representations are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.config.yaml import Spec
from pipeline.errors import InputError
from pipeline.stimuli.files import read_lines
from pipeline.stimuli.ids import fingerprint, hex_ids
from pipeline.stimuli.table import StimulusTable, is_text
from pipeline.suggest import did_you_mean
from pipeline.types import Int64, Mask

Value = str | int | float | bool


class SubsetSpec(Spec):
    """Rows of the stimulus set to compare on; default: all."""

    n: int | None = Field(default=None, ge=1)
    """Number of rows, sampled without replacement; default: all that the other keys leave."""
    seed: int = 0
    """Seed of the sampling."""
    stratify: str | None = None
    """A column, such as `label`: sample its values in proportion to their rows."""
    where: Mapping[str, Value | tuple[Value, ...]] = Field(default_factory=dict)
    """Column → value, or list of values: only rows that have one of them, in every column."""
    ids: tuple[str, ...] | str | None = None
    """Only these rows: a list of ids, or a text file with one to a line. An id is that of the
    manifest's `id` column, a path, or a content id."""

    @model_validator(mode="after")
    def _stratify_needs_n(self) -> Self:
        if self.stratify is not None and self.n is None:
            raise ValueError("stratify needs n, the number of rows to sample.")
        return self


@dataclass(frozen=True, eq=False)
class Subset:
    """Rows of a base set on which representations are compared."""

    base: StimulusTable
    rows: Int64
    kind: str = "images"
    """`images`: every chosen row. `captions`: only the first row of each distinct caption."""
    drawn: Subset | None = None
    """The subset that distinct captions were taken from."""

    def __len__(self) -> int:
        return len(self.rows)

    def distinct_captions(self) -> Subset:
        """Keep the first row of each distinct caption: to text towers, repeats are exact ties."""
        _, first = np.unique(self.base.ids("text")[self.rows], return_index=True)
        return Subset(self.base, self.rows[np.sort(first)], kind="captions", drawn=self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ordered ids of the stimuli compared."""
        ids = [self.base.row_ids[self.rows]]
        if self.kind == "captions":
            ids.append(self.base.ids("text")[self.rows])
        return fingerprint(np.concatenate(ids))

    @property
    def key(self) -> str:
        """Name in the store: set name, kind, number of rows and 8 hex digits."""
        kind = "-captions" if self.kind == "captions" else ""
        return f"{self.base.name}{kind}-n{len(self)}-{self.fingerprint[:8]}"

    @property
    def drawn_key(self) -> str:
        """Key of the rows that were drawn, distinct captions or not."""
        return (self.drawn or self).key


def draw(table: StimulusTable, spec: SubsetSpec) -> Subset:
    """Draw the rows that a spec asks for, and keep their order.

    Sampling is without replacement because duplicates would become each other's nearest
    neighbours.

    Raises
    ------
    InputError
        Where a column, a value or an id is not there, or more rows are asked for than there are.
    """
    kept = np.ones(len(table), dtype=bool)
    for name, wanted in spec.where.items():
        kept &= _having(table, name, wanted if isinstance(wanted, tuple) else (wanted,))
    if spec.ids is not None:
        kept &= _named(table, spec.ids)
    rows = np.flatnonzero(kept)
    if not len(rows):
        raise InputError(
            f"subset: no row of stimuli {table.name!r} is left by where and ids. Loosen one of "
            "them."
        )
    n = len(rows) if spec.n is None else spec.n
    if not 0 < n <= len(rows):
        left = "" if len(rows) == len(table) else f", of which where and ids leave {len(rows)}"
        raise InputError(
            f"subset: n = {n} rows were asked of stimuli {table.name!r}, which have "
            f"{len(table)}{left}. Set subset.n to at most {len(rows)}, or leave it out for all."
        )
    rng = np.random.default_rng(spec.seed)
    if spec.stratify is not None:
        chosen = _stratified(_column(table, spec.stratify)[rows], n, rng)
    else:
        chosen = rng.permutation(len(rows))[:n] if n < len(rows) else np.arange(n)
    return Subset(table, np.sort(rows[chosen]).astype(np.int64))


def _column(table: StimulusTable, name: str) -> NDArray[Any]:
    if name not in table.columns:
        known = ", ".join(table.columns) or "none"
        raise InputError(
            f"subset: stimuli {table.name!r} have no column {name!r}."
            f"{did_you_mean(name, table.columns)} Columns: {known}."
        )
    return table.columns[name]


def _having(table: StimulusTable, name: str, wanted: tuple[Value, ...]) -> Mask:
    """Return which rows have one of some values; classes go by their names, if they have any."""
    values = _column(table, name)
    if name == "label" and "label_name" in table.columns:
        values = table.columns["label_name"]
    found = np.zeros(len(table), dtype=bool)
    for value in wanted:
        here: Mask = values == (str(value) if is_text(values) else value)
        if not np.any(here):
            known = [str(v) for v in np.unique(values)]
            raise InputError(
                f"subset: no row of stimuli {table.name!r} has {name} {value!r}."
                f"{did_you_mean(str(value), known)} It has {', '.join(known[:10])}"
                f"{' and others' if len(known) > 10 else ''}."
            )
        found |= here
    return found


def _named(table: StimulusTable, ids: tuple[str, ...] | str) -> Mask:
    """Return which rows have one of some ids."""
    wanted = _read_ids(ids) if isinstance(ids, str) else ids
    names = [hex_ids(table.row_ids)]
    names += [table.columns[c] for c in ("id", "path") if c in table.columns]
    found = np.zeros(len(table), dtype=bool)
    known: set[str] = set()
    asked = set(wanted)
    for column in names:
        texts = [str(v) for v in column]
        found |= np.fromiter((t in asked for t in texts), bool, len(texts))
        known |= asked.intersection(texts)
    missing = [w for w in wanted if w not in known]
    if missing:
        raise InputError(
            f"subset: {len(missing)} of {len(wanted)} ids are not among stimuli {table.name!r}, "
            f"first {missing[0]!r}.{did_you_mean(missing[0], map(str, names[-1]))} An id is that "
            "of the manifest's id column, a path, or a content id of 16 digits."
        )
    return found


def _read_ids(path: str) -> tuple[str, ...]:
    try:
        lines = read_lines(path)
    except InputError as error:
        raise InputError(
            f"subset: ids: {error} Give a list of ids, or a file with one to a line."
        ) from None
    return tuple(line.strip() for line in lines if line.strip())


def _stratified(values: NDArray[Any], n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return n positions: every value in proportion to its rows, rounded as Webster's method."""
    _, codes, counts = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    order = rng.permutation(len(codes))
    by_value = order[np.argsort(codes[order], kind="stable")]
    rank = np.empty(len(codes), dtype=np.int64)  # of each row among those of its value
    rank[by_value] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    position = np.empty(len(codes), dtype=np.int64)
    position[order] = np.arange(len(codes))
    return np.lexsort((position, (rank + 0.5) / counts[codes]))[:n]
