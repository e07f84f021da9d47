"""One entry of the registry: a frozen model spec, with every check that needs no model.

One id is one recipe: architecture, arguments, preprocessing, layers, pooling, precision. A
recipe's digest is stored with the activations, so that a changed recipe is detected.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from pipeline.config.yaml import OneOrMany, Spec
from pipeline.errors import InputError
from pipeline.seeds import derived_seed
from pipeline.sources import SOURCES
from pipeline.suggest import did_you_mean

Tower = Literal["image", "text"]
Pool = Literal["auto", "cls", "mean", "cls+mean", "max", "flatten"]
if TYPE_CHECKING:
    SourceName = str
else:
    SourceName = Literal[tuple(SOURCES)]

_ID = re.compile(r"[a-z_]+/[A-Za-z0-9][A-Za-z0-9._-]*")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_STEP = "{step}"
# keys that describe or select a model but do not change its activations
_NOT_RECIPE = {
    "id",
    "family",
    "sets",
    "metadata",
    "checkpoints",
    "training",
    "towers",
    "same_weights_as",
    "initialised_from",
}


class Init(Spec):
    """Random initialisation."""

    seed: int = 0
    """Distinguishes initialisations of one architecture; two architectures are drawn independently
    even with the same seed."""


class Checkpoint(Spec):
    """Where the weights of a checkpoint come from; `{}` means the published ones."""

    init: Init | None = None
    """Freshly initialised weights."""
    file: str | None = None
    """A checkpoint file: safetensors, or timm's or open_clip's own format."""
    pretrained: str | None = None
    """A pretrained tag other than the entry's own."""
    revision: str | None = None
    """A revision of the hub repository."""
    step: int | None = Field(default=None, ge=0)
    """The training step, 0 at initialisation."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [k for k in ("init", "file", "pretrained") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: keep one of them.")
        return self

    @property
    def kind(self) -> str:
        """`init`, `file` or `pretrained`."""
        return "init" if self.init else "file" if self.file else "pretrained"

    def absolute(self) -> Self:
        """Return the checkpoint with an absolute path."""
        if self.file is None:
            return self
        return self.model_copy(update={"file": str(Path(self.file).absolute())})


class EveryN(Spec):
    """Every n-th block, counted from the last."""

    every: int = Field(ge=1)
    """1 takes every block; 2 the last, the third from last, and so on."""


class Preprocessing(Spec):
    """How an image becomes an input, where not by the model's own configuration."""

    input_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Side of the square input in pixels, or `[height, width]`."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, or of all, on pixels in [0, 1]."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, or of all, on pixels in [0, 1]."""
    interpolation: Literal["bicubic", "bilinear", "nearest"] | None = None
    """Resampling filter."""
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    """Fraction of the resized image that the centre crop keeps."""


class ModelSpec(Spec):
    """One registry entry."""

    source: SourceName
    """The library that builds the model."""
    name: str
    """Architecture, for timm with its pretrained tag (`resnet50.a1_in1k`)."""
    pretrained: str | None = None
    """open_clip's pretrained tag."""
    id: str = ""
    """Defaults to `SOURCE/NAME` or `SOURCE/NAME.PRETRAINED`."""
    config: str | None = None
    """open_clip: a JSON file with an architecture that the library does not have."""
    family: str | None = None
    """Groups models for analysis and for statistics; defaults to the id."""
    sets: OneOrMany = ()
    """Named selections that this model belongs to."""
    towers: tuple[Tower, ...] = ()
    """Defaults to image for timm, to image and text for open_clip."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Passed to `timm.create_model` or `open_clip.create_model`."""
    checkpoints: str | dict[str, Checkpoint] = Field(default_factory=dict)
    """A file template with {step}, or a map label → checkpoint; default: the published weights."""
    layers: Literal["blocks", "all", "last"] | EveryN | str | tuple[str, ...] = "blocks"
    """blocks | all | last | embedding | {every: n} | a glob | a list of these and of names."""
    pool: Pool | tuple[Pool, ...] = "auto"
    """How tokens or positions become one vector: auto | cls | mean | cls+mean (both, one after the
    other) | max | flatten. A list reads each layer out in several ways, as layers LAYER.POOL."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast of the forward pass."""
    preprocessing: Preprocessing = Preprocessing()
    """Overrides of the model's own preprocessing."""
    metadata: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Facts about the model: objective, training_data, samples_seen, …"""
    training: dict[str, Any] | None = None
    """How this project trains it (reference models only)."""
    same_weights_as: OneOrMany = ()
    """Entries with the same weights under another name."""
    initialised_from: OneOrMany = ()
    """Entries from whose weights this training started."""

    @field_validator("pool", mode="after")
    @classmethod
    def _distinct_pools(cls, value: Pool | tuple[Pool, ...]) -> Pool | tuple[Pool, ...]:
        if isinstance(value, str):
            return value
        if len(set(value)) < max(len(value), 1):
            raise ValueError(f"{list(value)} has a read-out twice, or none. List each once.")
        return value

    @field_validator("checkpoints", mode="after")
    @classmethod
    def _checkpoint_labels(cls, value: str | dict[str, Checkpoint]) -> str | dict[str, Checkpoint]:
        if isinstance(value, str):
            if value.count(_STEP) != 1:
                raise ValueError(
                    f"the template {value!r} needs {_STEP} exactly once, in the place of the "
                    "step's number in the file names."
                )
            return value
        for label in value:
            _check_label(label)
        return value

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not {"source", "name"} <= values.keys():
            return values
        values = dict(values)
        if not values.get("id"):
            name = ".".join(
                str(v) for v in (values["name"], values.get("pretrained")) if v is not None
            )
            values["id"] = f"{values['source']}/{re.sub(r'[/:]', '--', name)}"
        if not values.get("towers") and values["source"] in tuple(SOURCES):
            values["towers"] = SOURCES[values["source"]].towers
        values.setdefault("family", values["id"])
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not _ID.fullmatch(self.id):
            raise ValueError(
                f"the id {self.id!r} needs the form SOURCE/NAME with one slash and a NAME of "
                "letters, digits, dots, dashes and underscores. Set `id:` to one."
            )
        SOURCES[self.source].check_entry(self)
        return self

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that changes the activations, JSON-able."""
        recipe = self.model_dump(mode="json", exclude=_NOT_RECIPE)
        if self.config is not None:
            recipe["config"] = self.architecture
        if self.vocabulary is not None and self.vocabulary.is_file():
            recipe["vocabulary"] = hashlib.sha256(self.vocabulary.read_bytes()).hexdigest()
        return recipe

    @property
    def network(self) -> dict[str, Any]:
        """Everything that the untrained network is built from, JSON-able.

        Independent of where the files are. Preprocessing, layers, pooling and precision are left
        out, since they do not change the network; so is the `name` of an entry with `config:`,
        which is a mere label.
        """
        content = self.model_dump(mode="json", include={"source", "name", "arguments"})
        if self.config is not None:
            content["name"] = None
        elif self.folder is not None:
            content["name"] = SOURCES[self.source].folder_name(self.folder.name)
        return {**content, "config": self.architecture}

    def initial_seed(self, seed: int) -> int:
        """Return the seed of torch's generator for `init: {seed: …}`."""
        return derived_seed({"network": self.network, "seed": seed}, "weights")

    @property
    def architecture(self) -> dict[str, Any]:
        """The content of `config:`; empty where there is none."""
        if self.config is None:
            return {}
        content: dict[str, Any] = read_json(self.config, f"model {self.id}")
        return content

    @property
    def vocabulary(self) -> Path | None:
        """The file of the tokenizer's merges that `config:` names, if it does."""
        return SOURCES[self.source].vocabulary(self)

    @property
    def folder(self) -> Path | None:
        """The folder of weights and configuration that `name:` stands for, if it does."""
        return SOURCES[self.source].folder(self)

    def absolute(self) -> Self:
        """Return the spec with absolute paths, for a process that runs in another folder."""
        changes: dict[str, Any] = {}
        if self.config is not None:
            changes["config"] = str(Path(self.config).absolute())
        if self.folder is not None:
            changes["name"] = SOURCES[self.source].folder_name(self.folder.absolute())
        return self.model_copy(update=changes)

    @property
    def recipe_digest(self) -> str:
        """SHA-256 of the recipe."""
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()

    def checkpoint_map(self, planned_steps: Sequence[int] = ()) -> dict[str, Checkpoint]:
        """Return label → checkpoint: by step for a template, in its own order for a map.

        Parameters
        ----------
        planned_steps
            Steps that a training stage has yet to write; their files may be missing.

        Raises
        ------
        InputError
            Where a file is missing, or a template matches no file and no steps are planned.
        """
        if isinstance(self.checkpoints, dict):
            if not self.checkpoints:
                return {"pretrained": Checkpoint()}
            for label, checkpoint in self.checkpoints.items():
                if checkpoint.file and not Path(checkpoint.file).is_file():
                    near = did_you_mean(Path(checkpoint.file).name, _names_beside(checkpoint.file))
                    raise InputError(
                        f"model {self.id}, checkpoint {label}: there is no file "
                        f"{checkpoint.file} (paths are relative to {Path.cwd()})."
                        f"{near}"
                    )
            return dict(self.checkpoints)
        steps: dict[int, str] = {}
        for file, step in _matches(self.checkpoints):
            if step in steps:
                raise InputError(
                    f"model {self.id}: {steps[step]} and {file} are both step {step}. Remove one, "
                    "or name the checkpoints one by one (a map of label → {file: …, step: …})."
                )
            steps[step] = file
        for step in planned_steps:
            steps.setdefault(step, self.checkpoints.replace(_STEP, str(step)))
        if not steps:
            raise InputError(
                f"model {self.id}: the template {self.checkpoints} matches no file (paths are "
                f"relative to {Path.cwd()}; {_STEP} stands for digits). "
                + _what_is_there(self.checkpoints)
            )
        return {f"step{s}": Checkpoint(file=steps[s], step=s) for s in sorted(steps)}


def read_json(path: str | Path, about: str) -> Any:
    """Read a JSON file that a spec names."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{about}: there is no file {path}.") from None
    except ValueError as error:
        raise InputError(f"{about}: {path} is not JSON: {error}.") from None


def _check_label(label: str) -> None:
    if not _LABEL.fullmatch(label):
        raise ValueError(
            f"the checkpoint label {label!r} may only have letters, digits, dots, dashes and "
            "underscores, because it becomes part of a name in the store."
        )


def _matches(template: str) -> list[tuple[str, int]]:
    path = Path(template)
    at = next(i for i, part in enumerate(path.parts) if _STEP in part)
    pattern = re.compile(
        re.escape(path.as_posix()).replace(re.escape(_STEP), r"(?P<step>\d+)") + "$"
    )
    root = Path(*path.parts[:at]) if at else Path()
    pieces = (part.split(_STEP) for part in path.parts[at:])
    wildcards = "/".join("*".join(glob.escape(piece) for piece in part) for part in pieces)
    if not root.is_dir():
        return []
    found = ((f, pattern.match(f.as_posix())) for f in sorted(root.glob(wildcards)) if f.is_file())
    return [(f.as_posix(), int(m["step"])) for f, m in found if m]


def _names_beside(file: str) -> list[str]:
    folder = Path(file).parent
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def _what_is_there(template: str) -> str:
    before = template.split(_STEP)[0]
    folder = Path(before) if before.endswith("/") else Path(before).parent
    if not folder.is_dir():
        return f"There is no folder {folder}: correct the path, or train the model first."
    names = sorted(p.name for p in folder.iterdir())[:5]
    return f"The folder {folder} holds {', '.join(names) or 'nothing'}."
