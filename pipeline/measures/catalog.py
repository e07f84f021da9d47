"""The measures by name, and specifications with all conventions resolved."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError
from pipeline.measures import dense, neighbours, pairwise
from pipeline.measures.measure import Measure, Parameter, Value
from pipeline.measures.presets import ADDED, CONVENTIONS, HUH, PRESETS

MEASURES: tuple[Measure, ...] = (*dense.MEASURES, *neighbours.MEASURES, *pairwise.MEASURES)
"""All records, in the order of the documentation."""

PRESET = Parameter(
    "preset",
    "",
    "conventions of published code: layers clipped, rows of unit length, denominators",
    choices=PRESETS,
)
"""Parameter of nearly all measures; left out of a spec where it is not given."""


@dataclass(frozen=True)
class MeasureSpec:
    """A measure with every parameter resolved: hashable, and equal when the numbers are.

    Build one with `measure_spec`, which checks; the constructor does not.
    """

    name: str
    parameters: tuple[tuple[str, Value], ...] = ()

    @property
    def measure(self) -> Measure:
        """The measure's record."""
        return get_measure(self.name)

    @property
    def minimum_stimuli(self) -> int:
        """The fewest stimuli with which the score can tell two representations apart."""
        measure = self.measure
        if measure.grows_with is None:
            return measure.minimum_stimuli
        return max(measure.minimum_stimuli, int(self[measure.grows_with]) + measure.beyond)

    @property
    def relation(self) -> tuple[str | float, ...]:
        """Key of what is prepared of a representation: equal for measures that share it."""
        name, *parameters = self.measure.relation
        values = dict(self.parameters)
        return (self.preset, name, *(values[p] for p in parameters))

    @property
    def preset(self) -> str:
        """The preset, or an empty name."""
        return str(dict(self.parameters).get("preset", ""))

    @property
    def ties_by_index(self) -> bool:
        """Whether ties among neighbours go to the lowest index instead of being shared."""
        return bool(self.preset)

    @property
    def added(self) -> float:
        """The number added to the denominator, in units of the HSIC of the features."""
        return ADDED if self.preset and self.measure.ratio_of_hsic else 0.0

    @property
    def u_centred_only(self) -> bool:
        """Whether only the U-centred relations are compared, without row effects."""
        return self.conventions().get("estimator") == "debiased"

    def __getitem__(self, parameter: str) -> Value:
        return dict(self.parameters)[parameter]

    def identity(self) -> dict[str, Any]:
        """Give what identifies scores of this measure in a store, as JSON can hold it."""
        parameters = dict(self.parameters)
        return {"name": self.name, "parameters": parameters, "version": self.measure.version}

    def conventions(self) -> dict[str, Value]:
        """Give everything that decides the score, as JSON can hold it.

        Returns
        -------
        dict
            ``measure``, each parameter, and each fixed convention of the measure.

        Examples
        --------
        >>> measure_spec("mutual_knn", k=5).conventions()["k"]
        5
        """
        found = {"measure": self.name, **dict(self.parameters), **dict(self.measure.conventions)}
        if self.preset:
            found |= CONVENTIONS[self.preset] | {
                "rows": "scaled to unit length, so that inner products are cosines"
            }
            found |= {"added_to_denominator": self.added}
            if self.measure.kind == "neighbour":
                found |= {"ties": "lowest index"}
        return found

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.parameters)
        return f"{self.name}({inside})" if inside else self.name


def check_version(stored: Mapping[str, Any], label: str) -> None:
    """Refuse stored scores of an earlier version of their measure.

    Parameters
    ----------
    stored
        `MeasureSpec.identity` when they were computed; the first stores have no version.
    label
        What a workflow calls the measure.

    Raises
    ------
    InputError
        Saying what has changed since, and how to recompute them.
    """
    measure = get_measure(str(stored["name"]))
    version = stored.get("version", 1)
    if version == measure.version:
        return
    since = f": {measure.changed}" if version < measure.version else ""
    raise InputError(
        f"measure {label!r}: its scores in this store are of version {version} of {measure.name}, "
        f"and this is version {measure.version}{since}. Compute them again from the stored "
        f"activations: consilience run WORKFLOW --replace {label}"
    )


_BY_NAME: Mapping[str, Measure] = {measure.name: measure for measure in MEASURES}


def list_measures() -> list[Measure]:
    """List every measure there is, as records.

    Returns
    -------
    list of Measure
        In the order of the documentation.

    Examples
    --------
    >>> import pipeline
    >>> [measure.name for measure in pipeline.list_measures()][:3]
    ['cka', 'cka_debiased', 'cka_rbf']
    """
    return list(MEASURES)


def get_measure(name: str) -> Measure:
    """Look up one measure by name.

    Parameters
    ----------
    name
        A name that `list_measures` gives.

    Returns
    -------
    Measure
        The record.

    Raises
    ------
    InputError
        If there is no such measure; the nearest names are given.

    Examples
    --------
    >>> get_measure("cka").range
    (0.0, 1.0)
    """
    if isinstance(name, str) and name in _BY_NAME:
        return _BY_NAME[name]
    near = difflib.get_close_matches(str(name), _BY_NAME, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    raise InputError(f"There is no measure {name!r}.{hint} Measures: {', '.join(_BY_NAME)}.")


def settable(measure: Measure) -> tuple[Parameter, ...]:
    """Give the parameters of a measure that a caller may set, the preset included."""
    return (*measure.parameters, PRESET) if measure.has_preset else measure.parameters


def measure_spec(name: str, **parameters: Value) -> MeasureSpec:
    """Resolve a measure and its parameters, defaults included, and check them.

    Parameters
    ----------
    name
        A name that `list_measures` gives.
    **parameters
        Values for some or all of the measure's parameters, and ``preset`` for any measure but
        ``svcca``: ``"prh"`` or ``"prh_rowwise"``, the conventions of the code of Huh et al. 2024.

    Returns
    -------
    MeasureSpec
        Hashable; two that give the same numbers are equal.

    Raises
    ------
    InputError
        If the measure, or a parameter of it, does not exist, a value is not allowed, or the code
        that a preset follows computes something else by the measure's name.

    Examples
    --------
    >>> str(measure_spec("mutual_knn", k=5))
    "mutual_knn(k=5, neighbours='cosine')"
    """
    measure = get_measure(name)
    known = {parameter.name: parameter for parameter in settable(measure)}
    for key, value in parameters.items():
        if key == PRESET.name and not measure.has_preset:
            raise InputError(
                f"The measure {name!r} has no preset: the code of Huh et al. 2024, which presets "
                "follow, computes something else under this name. There, "
                f"{dict(measure.elsewhere)[HUH]}. Leave the preset out, or run that code for its "
                "numbers."
            )
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            takes = ", ".join(f"{p.name} ({p.allowed})" for p in known.values()) or "none"
            raise InputError(
                f"The measure {name!r} has no parameter {key!r}.{hint} Its parameters: {takes}."
            )
        if not known[key].accepts(value):
            raise InputError(
                f"The parameter {key!r} of the measure {name!r} ({known[key].prose}) is "
                f"{value!r}; it must be {known[key].allowed}."
            )
    preset = parameters.get("preset")
    given = dict(measure.preset_defaults) | parameters if preset else parameters
    resolved = [(p.name, p.resolved(given.get(p.name, p.default))) for p in measure.parameters]
    if preset:
        resolved.append(("preset", preset))
    return MeasureSpec(name, tuple(resolved))


def recorded_spec(name: str, parameters: Mapping[str, Value]) -> MeasureSpec:
    """Give the spec of stored scores, even if their preset no longer exists."""
    own = {key: value for key, value in parameters.items() if key != PRESET.name}
    preset = tuple((PRESET.name, value) for key, value in parameters.items() if key == PRESET.name)
    return MeasureSpec(name, measure_spec(name, **own).parameters + preset)
