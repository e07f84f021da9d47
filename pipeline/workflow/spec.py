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
from pipeline.stimuli import StimuliSpec
from pipeline.workflow.representations import Budget


def _free(label: str) -> str:
    if label in RESERVED:
        raise ValueError(f"{label!r} is a name that the store has for itself; take another label.")
    return label


PairKind = Literal["all", "final", "init", "same_step", "within_model"]
PairKinds = Annotated[
    tuple[PairKind, ...],
    BeforeValidator(as_many, json_schema_input_type=PairKind | list[PairKind]),
]
RESERVED = ("row", "c", "zarr.json")
"""What stands beside measures in a store, or means something to Zarr."""
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), AfterValidator(_free)]


class Selection(Spec):
    """Which entries of the registry take part: the union of what is named."""

    sets: OneOrMany = ()
    """Named sets."""
    families: OneOrMany = ()
    """Families."""
    ids: OneOrMany = ()
    """Model ids, or globs of them (timm/vit_*)."""

    @model_validator(mode="after")
    def _something(self) -> Selection:
        if not (self.sets or self.families or self.ids):
            raise ValueError("name at least one of sets, families, ids.")
        return self


class SubsetSpec(Spec):
    """Rows of the base set to compare on."""

    n: int | None = Field(default=None, ge=1)
    """Number of rows; default: all."""
    seed: int = 0
    """Seed of the draw, which is without replacement."""


class CompareSpec(Spec):
    """Which measures, on which pairs of encoders."""

    measures: dict[Label, dict[str, Any]]
    """Label → {measure: NAME, parameter: value, …}; `measure` defaults to the label."""
    pairs: PairKinds = ("final",)
    """Which encoders meet which: the union of the kinds."""
    device: Device = "auto"
    """Where relations are multiplied; `auto`: on a GPU where the worker has one."""
    memory: Size = "512 MiB"
    """What a worker may hold of prepared representations."""
    scratch: Size = "16 GiB"
    """What the workers of a machine may keep of them on local disk, so that none prepares twice."""

    @field_validator("measures")
    @classmethod
    def _known(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not value:
            raise ValueError("name at least one measure, for example cka: {}.")
        for label, options in value.items():
            _measure(label, options)
        return value

    @property
    def budget(self) -> Budget:
        """What a worker may hold, in bytes."""
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
    """How scores are calibrated against their null."""

    method: Literal["permutation", "analytic"] = "permutation"
    """Null by permuting the stimuli of one of the two encoders, or drawn from its exact moments.

    Pairs that moments do not determine, and measures without them, are permuted all the same.
    """
    n_permutations: int | None = Field(default=None, ge=19)
    """Permutations or draws; the smallest p is 1 / (n_permutations + 1). Default: 199, or 999."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Level at which the threshold lies; no less than 1 / (n_permutations + 1)."""
    pairs: PairKinds = ("final", "init")
    """Which pairs of encoders are calibrated."""
    seed: int = 0
    """Seed of the permutations."""

    def null_method(self, measure: MeasureSpec) -> tuple[str, int]:
        """Return by which method a measure's null is had, and its number of values."""
        analytic = self.method == "analytic" and measure.measure.engine != "pairwise"
        method = "analytic" if analytic else "permutation"
        return method, self.n_permutations or (999 if analytic else 199)


class ExtractSpec(Spec):
    """How activations are extracted."""

    batch_size: int = Field(default=256, ge=1)
    """Stimuli in one forward pass; halved where memory runs out."""
    device: Device = "auto"
    """`auto`: a GPU where the worker has one."""


class Workflow(Spec):
    """A whole workflow file. Paths are relative to the working directory."""

    store: str
    """The store: a folder that ends in .zarr, or a URL (s3://bucket/name.zarr)."""
    wait: float = Field(default=0, ge=0)
    """Seconds to wait for another run on the store to end; 0: refuse at once."""
    registry: OneOrMany
    """Registry files."""
    train: str | None = None
    """A registry file whose reference models are trained here first."""
    models: Selection
    """Which models take part."""
    stimuli: StimuliSpec = StimuliSpec()
    """What they are shown."""
    subset: SubsetSpec = SubsetSpec()
    """The rows to compare on."""
    extract: ExtractSpec = ExtractSpec()
    """How activations are extracted."""
    compare: CompareSpec
    """Which measures, on which pairs."""
    calibrate: CalibrateSpec | None = CalibrateSpec()
    """How scores are calibrated; null for not at all."""
    cluster: AnyCluster = LocalSpec()
    """Where tasks run."""

    @field_validator("calibrate")
    @classmethod
    def _level_within_reach(
        cls, value: CalibrateSpec | None, info: ValidationInfo
    ) -> CalibrateSpec | None:
        compared: CompareSpec | None = info.data.get("compare")
        if value is not None and compared is not None:
            counts = {label: value.null_method(spec)[1] for label, spec in compared.specs.items()}
            fewest = min(counts, key=counts.__getitem__)
            differ = len(set(counts.values())) > 1
            try:
                check_level(value.alpha, counts[fewest], fewest if differ else "")
            except InputError as error:
                raise ValueError(str(error)) from None
        return value


def load_workflow(
    path: str | Path, *, settings: Iterable[str] = (), store: str | None = None
) -> tuple[Workflow, Document]:
    """Read a workflow file, with `key=value` settings from the command line laid over it.

    Raises
    ------
    InputError
        With file, line, key and remedy.
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
            raise InputError(f"--set {setting}: {part!r} stands below a value, not a mapping.")
        node = node.setdefault(part, {})
    if not isinstance(node, dict):
        raise InputError(f"--set {setting}: {last!r} stands below a value, not a mapping.")
    node[last] = value
