"""The measures, described as data, and specifications with every convention resolved."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import InputError

Value = int | float | str | bool
"""What a parameter or a convention can be: always something JSON can hold."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a measure: its default and what is allowed.

    With `choices` the value is one of them; otherwise it is an integer of at least `minimum`.
    """

    name: str
    default: Value
    prose: str
    choices: tuple[Value, ...] = ()
    minimum: int = 1

    @property
    def allowed(self) -> str:
        """Say in words which values are allowed."""
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        return f"an integer of at least {self.minimum}"

    def accepts(self, value: object) -> bool:
        """Tell whether `value` is allowed; a bool is not an integer here."""
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        return isinstance(value, int) and not isinstance(value, bool) and value >= self.minimum


@dataclass(frozen=True)
class Measure:
    """A measure of similarity between two representations, as data.

    Parameters
    ----------
    name
        What a workflow or a call says.
    relation
        The n × n relation whose inner products give the score. It names what is prepared once per
        representation: ``"gram"`` or ``"neighbours"``.
    kind
        ``"relational"`` if real-valued relations of all pairs of stimuli are compared,
        ``"neighbour"`` if sets of nearest stimuli are.
    symmetric
        Whether the score of (x, y) is the score of (y, x).
    range
        Lowest and highest value.
    invariances
        Changes of one representation that leave the score as it is, among ``"translation"``,
        ``"isotropic scaling"``, ``"orthogonal transformation"`` and ``"row scaling"`` (by positive
        factors). Parameters can take some away or add some; `prose` says so.
    parameters
        What a caller may set.
    conventions
        What is fixed, and would change published numbers if it were otherwise.
    minimum_stimuli
        The fewest stimuli with which the score can tell two representations apart.
    grows_with
        The parameter, if any, whose value adds to `minimum_stimuli`.
    reference
        Paper and equation.
    prose
        What is estimated, for people.
    direction
        Higher is more alike.
    """

    name: str
    relation: Literal["gram", "neighbours"]
    kind: Literal["relational", "neighbour"]
    symmetric: bool
    range: tuple[float, float]
    invariances: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    conventions: tuple[tuple[str, Value], ...]
    minimum_stimuli: int
    reference: str
    prose: str
    grows_with: str | None = None
    direction: Literal["similarity"] = "similarity"


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
        grown = 0 if measure.grows_with is None else int(self[measure.grows_with])
        return measure.minimum_stimuli + grown

    def __getitem__(self, parameter: str) -> Value:
        return dict(self.parameters)[parameter]

    def conventions(self) -> dict[str, Value]:
        """Give everything that decides the number, able to be written as JSON.

        Returns
        -------
        dict
            ``measure``, each parameter, and each fixed convention of the measure.

        Examples
        --------
        >>> measure_spec("mutual_knn", k=5).conventions()["k"]
        5
        """
        return {"measure": self.name, **dict(self.parameters), **dict(self.measure.conventions)}

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.parameters)
        return f"{self.name}({inside})" if inside else self.name


_MEASURES = (
    Measure(
        name="cka",
        relation="gram",
        kind="relational",
        symmetric=True,
        range=(0.0, 1.0),
        invariances=("translation", "isotropic scaling", "orthogonal transformation"),
        parameters=(),
        conventions=(("kernel", "linear"), ("estimator", "biased"), ("centring", "features")),
        minimum_stimuli=3,
        reference="Kornblith et al. 2019, ICML, section 3 (HSIC and CKA with a linear kernel)",
        prose=(
            "Linear centred kernel alignment: the cosine between two doubly centred Gram matrices, "
            "diagonals included; the RV coefficient. Inflated when features outnumber stimuli."
        ),
    ),
    Measure(
        name="cka_debiased",
        relation="gram",
        kind="relational",
        symmetric=True,
        range=(-1.0, 1.0),
        invariances=("translation", "isotropic scaling", "orthogonal transformation"),
        parameters=(),
        conventions=(("kernel", "linear"), ("estimator", "debiased"), ("centring", "features")),
        minimum_stimuli=4,
        reference="Song et al. 2012, JMLR 13, eq. 5; Székely & Rizzo 2014, Ann. Stat. 42, eq. 2.4",
        prose=(
            "Linear CKA from the unbiased estimate of HSIC: the cosine between two U-centred Gram "
            "matrices with zero diagonals. Zero on average when rows do not correspond, so it can "
            "be negative."
        ),
    ),
    Measure(
        name="mutual_knn",
        relation="neighbours",
        kind="neighbour",
        symmetric=True,
        range=(0.0, 1.0),
        invariances=("isotropic scaling", "orthogonal transformation"),
        parameters=(
            Parameter("k", 10, "number of nearest neighbours"),
            Parameter(
                "neighbours",
                "cosine",
                "how nearness is ranked; cosine because the paper's code L2-normalises rows",
                choices=("cosine", "inner", "euclidean"),
            ),
        ),
        conventions=(("self_is_neighbour", False), ("ties", "lowest index")),
        minimum_stimuli=2,
        grows_with="k",
        reference="Huh et al. 2024, ICML, appendix A, eq. 11 (m_NN)",
        prose=(
            "The share of k nearest neighbours that two representations have in common, averaged "
            "over stimuli. With cosine neighbours also invariant to scaling of single rows, with "
            "Euclidean ones to translation."
        ),
    ),
)
_BY_NAME: Mapping[str, Measure] = {measure.name: measure for measure in _MEASURES}


def list_measures() -> list[Measure]:
    """List every measure there is, as records.

    Returns
    -------
    list of Measure
        In the order of the documentation.

    Examples
    --------
    >>> [measure.name for measure in list_measures()]
    ['cka', 'cka_debiased', 'mutual_knn']
    """
    return list(_MEASURES)


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
    if name in _BY_NAME:
        return _BY_NAME[name]
    near = difflib.get_close_matches(str(name), _BY_NAME, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    raise InputError(f"There is no measure {name!r}.{hint} Measures: {', '.join(_BY_NAME)}.")


def measure_spec(name: str, **parameters: Value) -> MeasureSpec:
    """Resolve a measure and its parameters, defaults included, and check them.

    Parameters
    ----------
    name
        A name that `list_measures` gives.
    **parameters
        Values for some or all of the measure's parameters.

    Returns
    -------
    MeasureSpec
        Hashable; two that give the same numbers are equal.

    Raises
    ------
    InputError
        If the measure, or a parameter of it, does not exist, or a value is not allowed.

    Examples
    --------
    >>> str(measure_spec("mutual_knn", k=5))
    "mutual_knn(k=5, neighbours='cosine')"
    """
    measure = get_measure(name)
    known = {parameter.name: parameter for parameter in measure.parameters}
    for given, value in parameters.items():
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            takes = ", ".join(f"{p.name} ({p.allowed})" for p in known.values()) or "none"
            raise InputError(
                f"The measure {name!r} has no parameter {given!r}.{hint} Its parameters: {takes}."
            )
        if not known[given].accepts(value):
            raise InputError(
                f"The parameter {given!r} of the measure {name!r} ({known[given].prose}) is "
                f"{value!r}; it must be {known[given].allowed}."
            )
    resolved = tuple((p.name, parameters.get(p.name, p.default)) for p in known.values())
    return MeasureSpec(name, resolved)
