"""Measures that compare n × n relations by inner products, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pipeline.measures.dense.relations import Relation
from pipeline.measures.measure import Measure

EXACT_PRODUCTS = (
    "scores no longer depend on what else is compared, and rounding keeps them in range"
)
"""What changed with exact products (see `pipeline.measures.dense.exact`)."""


@dataclass(frozen=True, kw_only=True)
class DenseMeasure(Measure):
    """A measure that compares n × n relations, with the function that forms them.

    Parameters
    ----------
    form
        ``form(values, eps, dtype, *parameters)``: from features `(n_stimuli, n_features)`, real,
        finite, not constant, float32 or float64, to a `Relation`. `eps` is the machine epsilon of
        the dtype that the features were stored in, `dtype` that of the blocks to be multiplied.
        Measures with the same `form` and equal parameters for it share relations. It is called
        ``form_WHAT``, where WHAT names what it forms in `relation`.
    formed_with
        The names of those parameters that `form` takes, in its order.
    """

    kind: Literal["relational"] = "relational"
    engine: Literal["dense"] = "dense"
    relation: tuple[str, ...] = field(init=False)
    symmetric: Literal[True] = True
    form: Callable[..., Relation] = field(repr=False)
    formed_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        what = self.form.__name__.removeprefix("form_")
        object.__setattr__(self, "relation", (what, *self.formed_with))
