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
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

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
_STEP, _EPOCH = "{step}", "{epoch}"
_ENDINGS = re.compile(r"(\.(pt|pth|th|ckpt|bin|safetensors))?(\.tar)?$")
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
    """A checkpoint file: safetensors, or what `torch.save` wrote; with {step} or {epoch}, many."""
    key: str | None = None
    """Which of several sets of weights in the file, such as `state_dict_ema`; dots go a level
    down, and '' is the top."""
    prefix: str | None = None
    """What comes before the names of the model's weights in the file, such as
    `module.encoder_q.`."""
    ignore: OneOrMany = ()
    """Globs of names: weights of the model that keep their initial values, and entries of the file
    that are left out."""
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
        if self.file is None and self.selection:
            raise ValueError(f"{' and '.join(self.selection)} need `file:`, which they are about.")
        return self

    @field_validator("prefix", mode="after")
    @classmethod
    def _ends_in_a_dot(cls, value: str | None) -> str | None:
        return f"{value}." if value and not value.endswith(".") else value

    @property
    def selection(self) -> dict[str, Any]:
        """What is taken from the file, where not all that is in it; JSON-able."""
        return self.model_dump(
            mode="json", include={"key", "prefix", "ignore"}, exclude_defaults=True
        )

    @property
    def kind(self) -> str:
        """`init`, `file` or `pretrained`."""
        return "init" if self.init else "file" if self.file else "pretrained"

    def absolute(self) -> Self:
        """Return the checkpoint with an absolute path."""
        if self.file is None:
            return self
        return self.model_copy(update={"file": str(Path(self.file).absolute())})


def _as_file(value: Any) -> Any:
    """Read a path as a checkpoint."""
    return {"file": value} if isinstance(value, str) else value


if TYPE_CHECKING:
    Checkpoints = str | dict[str, Checkpoint]
else:
    _FileOrCheckpoint = Annotated[
        Checkpoint, BeforeValidator(_as_file, json_schema_input_type=str | Checkpoint)
    ]
    Checkpoints = str | list[_FileOrCheckpoint] | dict[str, _FileOrCheckpoint]


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
    checkpoints: Checkpoints = Field(default_factory=dict)
    """A file template with {step} or {epoch}, a list of files, or a map label → file or checkpoint;
    default: the published weights."""
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
    def _labelled(cls, value: Any) -> Checkpoints:
        """Give the items of a list their labels, and check those of a map."""
        if isinstance(value, str):
            if _counter(value) is None:
                raise ValueError(
                    f"the template {value!r} needs {_STEP} or {_EPOCH} exactly once, in the place "
                    "of the number in the file names. A single file goes in a list: [FILE]."
                )
            return value
        labelled = value if isinstance(value, dict) else _labels(value)
        for label, checkpoint in labelled.items():
            _check_label(label, checkpoint)
        return labelled

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
        if not self.checkpoints:
            return {"pretrained": Checkpoint()}
        listed = self.checkpoints
        if isinstance(listed, str):
            listed = _labels([Checkpoint(file=listed)])
        found: dict[str, Checkpoint] = {}
        for label, checkpoint in listed.items():
            counter = None if checkpoint.file is None else _counter(checkpoint.file)
            if checkpoint.file is None or counter is None:
                self._check_exists(label, checkpoint.file)
                found[label] = checkpoint
                continue
            for number, file in self._files(checkpoint.file, counter, planned_steps).items():
                name = label.replace(counter, str(number))
                if name in found:
                    raise InputError(
                        f"model {self.id}: {found[name].file} and {file} would both have the label "
                        f"{name}. Write a map of labels, such as {{a-{counter}: …, "
                        f"b-{counter}: …}}."
                    )
                found[name] = checkpoint.model_copy(update={"file": file, "step": number})
        return found

    def _check_exists(self, label: str, file: str | None) -> None:
        if file and not Path(file).is_file():
            near = did_you_mean(Path(file).name, _names_beside(file))
            raise InputError(
                f"model {self.id}, checkpoint {label}: there is no file {file} (paths are relative "
                f"to {Path.cwd()}).{near}"
            )

    def _files(self, template: str, counter: str, planned_steps: Sequence[int]) -> dict[int, str]:
        """Return number → file of a template, in order of the numbers."""
        files: dict[int, str] = {}
        for file, number in _matches(template, counter):
            if number in files:
                raise InputError(
                    f"model {self.id}: {files[number]} and {file} are both {counter[1:-1]} "
                    f"{number}. Remove one, or name the checkpoints one by one (a map of label → "
                    "{file: …, step: …})."
                )
            files[number] = file
        for step in planned_steps:
            files.setdefault(step, template.replace(counter, str(step)))
        if not files:
            raise InputError(
                f"model {self.id}: the template {template} matches no file (paths are "
                f"relative to {Path.cwd()}; {counter} stands for digits). "
                + _what_is_there(template)
            )
        return dict(sorted(files.items()))


def read_json(path: str | Path, about: str) -> Any:
    """Read a JSON file that a spec names."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{about}: there is no file {path}.") from None
    except ValueError as error:
        raise InputError(f"{about}: {path} is not JSON: {error}.") from None


def _counter(file: str) -> str | None:
    """Return the placeholder whose number labels the files of a template; None for one file."""
    found = [p for p in (_STEP, _EPOCH) if file.count(p) == 1]
    return found[0] if found and not any(file.count(p) > 1 for p in (_STEP, _EPOCH)) else None


def _labels(listed: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """Label each file of a list by its name, and by as many folders as tell it from the others."""
    files = [checkpoint.file for checkpoint in listed if checkpoint.file is not None]
    if len(files) < len(listed):
        raise ValueError(
            "a list of checkpoints names files. Write a map of labels for others, such as "
            "{start: {init: {}}, end: FILE}."
        )
    names = [[_ENDINGS.sub("", p.name), *p.parts[-2::-1]] for p in map(Path, files)]
    labelled: dict[str, Checkpoint] = {}
    for file, name, checkpoint in zip(files, names, listed, strict=True):
        counter = _counter(file)
        n = next((n for n in range(1, len(name)) if _times(name[:n], names) == 1), len(name))
        label = f"{counter[1:-1]}{counter}" if counter else "-".join(name[:n][::-1])
        if label in labelled:
            raise ValueError(
                f"{labelled[label].file} and {file} would both have the label {label}. Write a map "
                f"of labels instead, such as {{a: {{file: {file}, key: …}}, b: …}}."
            )
        labelled[label] = checkpoint
    return labelled


def _times(beginning: list[str], names: list[list[str]]) -> int:
    return sum(name[: len(beginning)] == beginning for name in names)


def _check_label(label: str, checkpoint: Checkpoint) -> None:
    counter = None if checkpoint.file is None else _counter(checkpoint.file)
    plain = label if counter is None else label.replace(counter, "0")
    if counter is not None and (label.count(counter) != 1 or checkpoint.step is not None):
        raise ValueError(
            f"{checkpoint.file} stands for many files, so the label {label!r} needs {counter} "
            f"exactly once, as in {re.sub(r'[{}]', '', label)}-{counter}, and no `step:` beside it."
        )
    if not _LABEL.fullmatch(plain):
        raise ValueError(
            f"the checkpoint label {label!r} may only have letters, digits, dots, dashes and "
            "underscores, because it becomes part of a name in the store. Write a map of labels of "
            f"your own, {{label: {checkpoint.file or '…'}}}."
        )


def _matches(template: str, counter: str) -> list[tuple[str, int]]:
    path = Path(template)
    placeholder = re.compile(rf"({_STEP}|{_EPOCH})")
    at = next(i for i, part in enumerate(path.parts) if placeholder.search(part))
    pattern = re.escape(path.as_posix())
    for name in (_STEP, _EPOCH):
        pattern = pattern.replace(re.escape(name), rf"(?P<{name[1:-1]}>\d+)")
    root = Path(*path.parts[:at]) if at else Path()
    pieces = (placeholder.split(part) for part in path.parts[at:])
    wildcards = "/".join(
        "".join("*" if p in (_STEP, _EPOCH) else glob.escape(p) for p in part) for part in pieces
    )
    if not root.is_dir():
        return []
    files = (f for f in sorted(root.glob(wildcards)) if f.is_file())
    found = ((f, re.fullmatch(pattern, f.as_posix())) for f in files)
    return [(f.as_posix(), int(m[counter[1:-1]])) for f, m in found if m]


def _names_beside(file: str) -> list[str]:
    folder = Path(file).parent
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def _what_is_there(template: str) -> str:
    before = re.split(f"{_STEP}|{_EPOCH}", template)[0]
    folder = Path(before) if before.endswith("/") else Path(before).parent
    if not folder.is_dir():
        return f"There is no folder {folder}: correct the path, or train the model first."
    names = sorted(p.name for p in folder.iterdir())[:5]
    return f"The folder {folder} holds {', '.join(names) or 'nothing'}."
