"""What an analysis is: a record from which its dataset is planned, made, written, read and checked.

Analyses are pure: they see encoders, scores and nulls as arrays, and other analyses' datasets.
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
    """One subset's results: which encoder pairs, their layer scores, their nulls."""

    n_stimuli: int
    scores: Mapping[tuple[str, str], Float64]
    """(encoder x, encoder y) → layer × layer scores."""
    nulls: Mapping[tuple[str, str], Float64]
    """(encoder x, encoder y) → `(aggregate, permutation)`; pairs without one are not calibrated."""
    permuted: Collection[tuple[str, str]] = ()
    """Pairs whose null was estimated by permutation."""
    tails: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(encoder x, encoder y) → upper bound of p from moments; NaN, or not there, without one."""


@dataclass(frozen=True)
class Inputs:
    """What a dataset is made from.

    Attributes
    ----------
    encoders
        All that were compared, or measured.
    columns
        Encoder id → column → what was measured of the encoder, by every analysis that has columns.
    results
        Of one measure, for each subset: empty for an analysis of a whole subset.
    datasets
        Name of an analysis that is needed → its dataset, for the same measure.
    alpha
        Level of the calibration.
    maximum
        The highest score of the measure, which calibrates to 1.
    attributes
        The measure's conventions and the settings of the calibration.
    """

    encoders: Sequence[Encoder]
    columns: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    results: Sequence[ComparisonResults] = ()
    datasets: Mapping[str, xr.Dataset] = field(default_factory=dict)
    alpha: float = 0.05
    maximum: float = 1.0
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Column(NamedTuple):
    """What is measured of each encoder, on its last layer."""

    variable: Variable
    measure: Callable[[Float32, NDArray[np.int64]], float]
    """Takes activations `(stimulus, feature)` and class numbers `(stimulus,)`."""


class Footprint(NamedTuple):
    """What measuring the columns of some encoders takes, beside reading them."""

    operations: float
    memory: float
    """Bytes."""


@dataclass(frozen=True)
class Analysis:
    """One final dataset of the store.

    Attributes
    ----------
    name
        Of the dataset and of its part of the store.
    version
        Goes up where the same inputs give other numbers; other versions are made anew.
    scope
        One dataset for a subset, or one for each measure on it.
    variables
        Those that the dataset has to have, declared.
    compute
        Makes the dataset.
    needs
        `scores`, for the layer scores and nulls of a measure, and names of analyses that come
        before it.
    columns
        What workers measure of each encoder; the others are made by the driver alone.
    footprint
        Number of stimuli, widths of the encoders → what their columns take.
    conventions
        Attributes of the dataset: with others than these, it is made anew.
    fault_of
        Says what is wrong with a dataset by its attributes; empty where nothing is.
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

    def stamped(self, dataset: xr.Dataset) -> xr.Dataset:
        """Return a dataset with what tells this version of the analysis from others."""
        return dataset.assign_attrs(version=self.version, **self.conventions)

    def fault(self, attributes: Mapping[str, Any]) -> str:
        """Say why a stored dataset cannot be used, by its attributes; empty where it can."""
        version = attributes.get("version", 1)
        if version != self.version:
            return f"it is of version {version} of this analysis, and now there is {self.version}"
        for name, now in self.conventions.items():
            if attributes.get(name) != now:
                return f"its {name} is another than this version's ({now})"
        return self.fault_of(attributes)
