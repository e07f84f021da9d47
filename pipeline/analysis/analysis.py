"""The record of an analysis. Its dataset is planned, computed, written, read and verified from it.

Analyses are pure functions of arrays (encoders, scores, nulls) and of other analyses' datasets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline.encoder import Encoder
from pipeline.schema import Variable
from pipeline.types import Float32, Float64

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ComparisonResults:
    """The results of one measure on one subset: layer scores and nulls of encoder pairs."""

    n_stimuli: int
    scores: Mapping[tuple[str, str], Float64]
    """(encoder x, encoder y) → scores `(layers of x, layers of y)`, NaN where undefined."""
    nulls: Mapping[tuple[str, str], Float64]
    """(encoder x, encoder y) → `(aggregate, permutation)`; pairs without one are not calibrated."""
    permuted: Collection[tuple[str, str]] = ()
    """Pairs whose null was estimated by permutation."""
    tails: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(encoder x, encoder y) → upper bound of p from moments; NaN or absent if there is none."""


@dataclass(frozen=True)
class Inputs:
    """What a dataset is computed from.

    Attributes
    ----------
    encoders
        All encoders that were compared; empty for an analysis with columns.
    columns
        Encoder id → column → measured value, of the analysis itself and of those that it needs.
    results
        Results of one measure, one for each subset; empty unless the analysis needs `scores`.
    datasets
        Name of a needed analysis → its dataset for the same measure.
    alpha
        Significance level of the calibration.
    maximum
        The measure's highest possible score, which is calibrated to 1.
    attributes
        Conventions of the measure, and settings of the calibration.
    """

    encoders: Sequence[Encoder]
    columns: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    results: Sequence[ComparisonResults] = ()
    datasets: Mapping[str, xr.Dataset] = field(default_factory=dict)
    alpha: float = 0.05
    maximum: float = 1.0
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Column(NamedTuple):
    """A value measured on the last layer of each encoder."""

    variable: Variable
    measure: Callable[[Float32, NDArray[np.int64]], float]
    """Function of activations `(n_stimuli, n_features)` and class numbers `(n_stimuli,)`."""


class Footprint(NamedTuple):
    """Cost of measuring the columns of some encoders, reading not included."""

    operations: float
    memory: float
    """Bytes added to an idle worker, at most."""


@dataclass(frozen=True)
class Analysis:
    """One kind of final dataset of the store.

    Attributes
    ----------
    name
        Name of the dataset, and of its group in the store.
    version
        Raised when the same inputs give other numbers; datasets of other versions are computed
        again.
    scope
        `subset`: one dataset per subset, for an analysis with columns. `measure`: one per measure
        on a subset, for the others.
    variables
        Declarations of the variables that the dataset must have.
    compute
        Computes the dataset.
    needs
        `scores`, for the layer scores and nulls of a measure, and names of earlier analyses.
    columns
        Values that workers measure of each encoder. Without any, the driver does all the work.
    footprint
        Number of stimuli, widths of the encoders → cost of measuring their columns.
    conventions
        Attributes that the dataset must have; with others, it is computed again.
    fault_of
        Returns what is wrong with a dataset, from its attributes; empty if nothing is.
    """

    name: str
    version: int
    scope: Literal["subset", "measure"]
    variables: Mapping[str, Variable]
    compute: Callable[[Inputs], xr.Dataset]
    needs: tuple[str, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    footprint: Callable[[int, NDArray[np.int64]], Footprint] = lambda n, widths: Footprint(0.0, 0.0)
    conventions: Mapping[str, str] = field(default_factory=dict)
    fault_of: Callable[[Mapping[str, Any]], str] = lambda attributes: ""

    def __post_init__(self) -> None:
        if bool(self.columns) != (self.scope == "subset"):
            raise ValueError(
                f"analysis {self.name!r}: columns of encoders make a dataset of a subset, and only "
                "these do."
            )

    def stamped(self, dataset: xr.Dataset) -> xr.Dataset:
        """Return a dataset with this analysis's version and conventions as attributes."""
        return dataset.assign_attrs(version=self.version, **self.conventions)

    def fault(self, attributes: Mapping[str, Any]) -> str:
        """Return why a stored dataset cannot be used, from its attributes; empty if it can."""
        version = attributes.get("version", 1)
        if version != self.version:
            return f"it is of version {version} of this analysis; the current one is {self.version}"
        for name, expected in self.conventions.items():
            if attributes.get(name) != expected:
                return f"its {name} is not this version's ({expected})"
        return self.fault_of(attributes)
