"""What a measure is, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

Value = int | float | str | bool
"""A value of a parameter or a convention: always something JSON can hold."""
EUCLIDEAN = ("translation", "isotropic scaling", "orthogonal transformation")
"""Invariances of measures that see Euclidean distances between stimuli, up to a factor."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a measure: its default and what is allowed.

    With `choices` the value is one of them. Otherwise it is a number: an integer of at least
    `minimum` where the default is one, else a real number between `minimum` and `maximum`.
    """

    name: str
    default: Value
    prose: str
    choices: tuple[Value, ...] = ()
    minimum: float = 1
    maximum: float = math.inf

    @property
    def allowed(self) -> str:
        """Say in words which values are allowed."""
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        kind = "an integer" if isinstance(self.default, int) else "a number"
        if self.maximum < math.inf:
            return f"{kind} from {self.minimum:g} to {self.maximum:g}"
        return f"{kind} of at least {self.minimum:g}"

    def accepts(self, value: object) -> bool:
        """Tell whether `value` is allowed; a bool is not an integer here."""
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        if isinstance(self.default, int) and not isinstance(value, Integral):
            return False
        return math.isfinite(value) and self.minimum <= float(value) <= self.maximum

    def resolved(self, value: Value) -> Value:
        """Give the value as it is kept, so that 1, 1.0 and numpy's 1 are one measure."""
        return value if self.choices else type(self.default)(value)


@dataclass(frozen=True)
class Measure:
    """A measure of similarity between two representations, as data.

    Parameters
    ----------
    name
        What a workflow or a call says.
    kind
        ``"relational"`` if real-valued relations of all pairs of stimuli are compared,
        ``"neighbour"`` if each stimulus's nearest are, ``"subspace"`` if directions of feature
        space are, ``"sampled"`` if it is an estimate from samples of the stimuli.
    relation
        What is prepared of a representation: a name, and the parameters that distinguish what
        goes by it. Measures with equal relations share them, and their products.
    engine
        How pairs are scored: ``"dense"``, as inner products of n × n relations; ``"neighbours"``,
        as products of sparse ones; ``"pairwise"``, one pair of representations after the other.
    symmetric
        Whether the score of (x, y) is the score of (y, x).
    range
        Lowest and highest value.
    invariances
        Changes of one representation that leave the score as it is, among ``"translation"``,
        ``"isotropic scaling"``, ``"orthogonal transformation"``, ``"invertible linear
        transformation"``, ``"permutation of features"`` and ``"row scaling"`` (by positive
        factors). Parameters can take some away or add some; `prose` says so.
    parameters
        What a caller may set.
    conventions
        What is fixed, and would change published numbers if it were otherwise.
    minimum_stimuli
        The fewest stimuli with which the score can tell two representations apart.
    reference
        Paper and equation.
    prose
        What it estimates, in words.
    elsewhere
        Code that computes something else under this name or the paper's: whose, and what.
    grows_with
        The parameter, if any, whose value the number of stimuli has to exceed.
    beyond
        By at least how many.
    direction
        Higher values mean more similar.
    version
        Of the numbers: raised whenever the same features give another score. A store keeps it, and
        scores of an older one are refused.
    changed
        What this version does differently from the one before.
    has_preset
        Whether presets apply to it: not if the code that they follow computes something else under
        this name, which `elsewhere` then says.
    preset_defaults
        Defaults under a preset, where they differ.
    ratio_of_hsic
        Whether it is a ratio of HSIC, to whose denominator presets add a small number.
    """

    name: str
    kind: Literal["relational", "neighbour", "subspace", "sampled"]
    relation: tuple[str, ...]
    engine: Literal["dense", "neighbours", "pairwise"]
    symmetric: bool
    range: tuple[float, float]
    invariances: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    conventions: tuple[tuple[str, Value], ...]
    minimum_stimuli: int
    reference: str
    prose: str
    elsewhere: tuple[tuple[str, str], ...] = ()
    grows_with: str | None = None
    beyond: int = 0
    direction: Literal["similarity"] = "similarity"
    version: int = 1
    changed: str = ""
    has_preset: bool = True
    preset_defaults: tuple[tuple[str, Value], ...] = ()
    ratio_of_hsic: bool = False
