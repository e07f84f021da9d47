"""The workflow file: what to train, extract, compare, calibrate, and where."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from dask.utils import parse_bytes
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.calibration import check_level
from pipeline.cluster import AnyCluster, Device, LocalSpec
from pipeline.cluster.spec import Size
from pipeline.config.yaml import Document, OneOrMany, Spec, as_many, load_yaml, validate
from pipeline.errors import InputError
from pipeline.measures import MeasureSpec, measure_spec
from pipeline.stimuli import StimuliSpec, SubsetSpec
from pipeline.stimuli.digits import DigitsSpec
from pipeline.workflow.representations import Budget


def _check_not_reserved(label: str) -> str:
    if label in RESERVED:
        raise ValueError(f"{label!r} is a name that the store reserves; choose another label.")
    return label


PairKind = Literal["all", "final", "init", "same_step", "within_model"]
PairKinds = Annotated[
    tuple[PairKind, ...],
    BeforeValidator(as_many, json_schema_input_type=PairKind | list[PairKind]),
]
RESERVED = ("row", "c", "zarr.json")
"""Names of arrays beside the measures in a store, and names with a meaning in Zarr."""
Label = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), AfterValidator(_check_not_reserved)
]


class Selection(Spec):
    """Which models of the registry to use: the union of all that is named."""

    sets: OneOrMany = ()
    """Names of sets."""
    families: OneOrMany = ()
    """Names of families."""
    ids: OneOrMany = ()
    """Model ids, or globs such as timm/vit_*."""

    @model_validator(mode="after")
    def _check_not_empty(self) -> Selection:
        if not (self.sets or self.families or self.ids):
            raise ValueError("name at least one of sets, families, ids.")
        return self


class CompareSpec(Spec):
    """Which measures to compute, on which pairs of encoders."""

    measures: dict[Label, dict[str, Any]]
    """Label → {measure: NAME, parameter: value, …}; `measure` defaults to the label."""
    pairs: PairKinds = ("final",)
    """Which pairs of encoders to compare: the union of the kinds."""
    device: Device = "auto"
    """Device for multiplying relation matrices; `auto`: a GPU if the worker has one."""
    memory: Size = "512 MiB"
    """Memory limit of each worker's cache of prepared representations."""
    scratch: Size = "16 GiB"
    """Disk limit of the cache that a machine's workers share, so that none prepares twice."""

    @field_validator("measures")
    @classmethod
    def _check_measures(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not value:
            raise ValueError("name at least one measure, for example cka: {}.")
        for label, options in value.items():
            _measure(label, options)
        return value

    @property
    def budget(self) -> Budget:
        """Limits of the cache of prepared representations, in bytes."""
        return Budget(parse_bytes(self.memory), parse_bytes(self.scratch))

    @property
    def specs(self) -> dict[str, MeasureSpec]:
        """Label → measure with all its parameters."""
        return {label: _measure(label, options) for label, options in self.measures.items()}


def _measure(label: str, options: dict[str, Any]) -> MeasureSpec:
    parameters = dict(options)
    name = parameters.pop("measure", label)
    try:
        return measure_spec(name, **parameters)
    except InputError as error:
        raise ValueError(f"{label}: {error}") from None


class CalibrateSpec(Spec):
    """How scores are calibrated against their null distribution."""

    method: Literal["permutation", "analytic"] = "permutation"
    """`permutation`: permute the stimuli of one encoder. `analytic`: sample from exact moments.

    Permutation is also used for measures without exact moments, and for pairs whose null the
    moments do not determine.
    """
    n_permutations: int | None = Field(default=None, ge=19)
    """Permutations or samples; default: 199 or 999. The smallest p is 1 / (n_permutations + 1)."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Significance level of the threshold; at least 1 / (n_permutations + 1)."""
    pairs: PairKinds = ("final", "init")
    """Which pairs of encoders to calibrate: the union of the kinds."""
    seed: int = 0
    """Seed of the permutations."""

    def null_method(self, measure: MeasureSpec) -> tuple[str, int]:
        """Return the method for a measure's null, `permutation` or `analytic`, and its size."""
        analytic = self.method == "analytic" and measure.measure.engine != "pairwise"
        method = "analytic" if analytic else "permutation"
        return method, self.n_permutations or (999 if analytic else 199)


class ExtractSpec(Spec):
    """How activations are extracted."""

    batch_size: int = Field(default=256, ge=1)
    """Stimuli per forward pass; halved if memory runs out."""
    device: Device = "auto"
    """`auto`: a GPU if the worker has one."""


class Workflow(Spec):
    """A whole workflow file. Paths are relative to the working directory."""

    store: str
    """The store: a folder whose name ends in .zarr, or a URL (s3://bucket/name.zarr)."""
    wait: float = Field(default=0, ge=0)
    """Seconds to wait for another run on the store to end; 0: refuse at once."""
    registry: OneOrMany
    """Registry files, which declare the models; `builtin` is the one that comes with the package,
    of published models."""
    train: str | None = None
    """A registry file whose reference models are trained first."""
    models: Selection
    """Which models to use."""
    stimuli: StimuliSpec = DigitsSpec()
    """The stimuli that the models see."""
    subset: SubsetSpec = SubsetSpec()
    """The rows to compare on."""
    extract: ExtractSpec = ExtractSpec()
    """How activations are extracted."""
    compare: CompareSpec
    """Which measures to compute, on which pairs."""
    calibrate: CalibrateSpec | None = CalibrateSpec()
    """How scores are calibrated; null: not at all."""
    cluster: AnyCluster = LocalSpec()
    """Where tasks run."""

    @field_validator("calibrate")
    @classmethod
    def _check_level_attainable(
        cls, value: CalibrateSpec | None, info: ValidationInfo
    ) -> CalibrateSpec | None:
        compare: CompareSpec | None = info.data.get("compare")
        if value is not None and compare is not None:
            counts = {label: value.null_method(spec)[1] for label, spec in compare.specs.items()}
            smallest = min(counts, key=counts.__getitem__)
            counts_differ = len(set(counts.values())) > 1
            try:
                check_level(value.alpha, counts[smallest], smallest if counts_differ else "")
            except InputError as error:
                raise ValueError(str(error)) from None
        return value


def load_workflow(
    path: str | Path, *, settings: Iterable[str] = (), store: str | None = None
) -> tuple[Workflow, Document]:
    """Read and validate a workflow file.

    Parameters
    ----------
    settings
        `key=value` overrides from the command line, with dots for depth.
    store
        Overrides the store of the file.

    Returns
    -------
    tuple
        The workflow, and the YAML document with the overrides applied.

    Raises
    ------
    InputError
        If the file or a setting is not valid; with file, line, key and remedy.
    """
    document = load_yaml(path)
    for setting in settings:
        _apply(document, setting)
    if store is not None:
        document.data["store"] = store
    return validate(Workflow, document.data, document), document


def _apply(document: Document, setting: str) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise InputError(
            f"--set {setting}: expected key=value with dots for depth, like "
            "--set calibrate.n_permutations=99."
        )
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise InputError(f"--set {setting}: {text!r} is not a YAML value: {error}.") from None
    node: Any = document.data
    *path, last = key.split(".")
    for part in path:
        if not isinstance(node, dict):
            raise InputError(f"--set {setting}: {part!r} is below a value, not a mapping.")
        node = node.setdefault(part, {})
    if not isinstance(node, dict):
        raise InputError(f"--set {setting}: {last!r} is below a value, not a mapping.")
    node[last] = value
    document.settings[(*path, last)] = f"--set {setting}"
