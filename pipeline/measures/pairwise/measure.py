"""Measures that are compared pair by pair, as data.

A pairwise measure prepares each representation once, into a state of its own kind, and compares two
states many times. It knows arrays only: no specs, no labels, no store. Every state has a field
`defined`, false for a representation for which the measure is undefined, such as a constant one.
Undefined states are not compared, nor are those with an `undefined_reason`.

In every module, ``compare_NAME(x, y)`` takes two states of the same stimuli, prepared with equal
parameters by the `prepare` of its record, and returns NaN if one of them is undefined. Where the
measure is not symmetric, its docstring says what x and y are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.measures.measure import Measure


def always_defined(_: object, **__: object) -> str:
    """Give no reason."""
    return ""


@dataclass(frozen=True, kw_only=True)
class PairwiseMeasure(Measure):
    """A measure that is compared pair by pair, with the functions that compute it.

    Parameters
    ----------
    prepare
        ``prepare(values, *, eps=…, **parameters)``: from features `(n_stimuli, n_features)`,
        real, finite and float64, to a state. `eps` is the machine epsilon of the dtype that
        the features were stored in. Measures with the same `prepare` and equal parameters for it
        share states. It is called ``prepare_WHAT``, where WHAT names the state in `relation`, and
        stands at the top of a module, since states are pickled with it.
    compare
        ``compare(x, y, **parameters)``: from two states of the same stimuli to the score.
    prepares
        The names of those parameters that `prepare` takes; `compare` takes the others.
    undefined_reason
        ``undefined_reason(x, **parameters)``, with the parameters of `compare`: why the measure is
        undefined for a state, with the remedy; empty if it is defined.
    of_neighbours
        Whether nearest neighbours are compared. Then `prepare` takes ``by_index`` too, which breaks
        ties by index as published code does, and its states have a field `ties`.
    """

    engine: Literal["pairwise"] = "pairwise"
    relation: tuple[str, ...] = field(init=False)
    prepare: Callable[..., Any] = field(repr=False)
    compare: Callable[..., float] = field(repr=False)
    prepares: tuple[str, ...] = ()
    undefined_reason: Callable[..., str] = field(default=always_defined, repr=False)
    of_neighbours: bool = False

    def __post_init__(self) -> None:
        state = self.prepare.__name__.removeprefix("prepare_")
        object.__setattr__(self, "relation", (state, *self.prepares))
