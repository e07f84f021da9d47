"""How a reference model is trained: `training:` of a registry file and of its entries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config.model import ModelSpec
from pipeline.config.registry import Entry, load_registry
from pipeline.config.yaml import Document, Spec, YamlPath, validate
from pipeline.errors import InputError
from pipeline.seeds import derived_seed
from pipeline.sources import SOURCES
from pipeline.stimuli.digits import DigitsSpec

STEP = "{step}"
SUFFIXES = (".safetensors", ".pth.tar")
# raised when a change of the training code gives other weights for the same recipe
_VERSION = 2


class TrainingOptions(Spec):
    """Stimuli, length and optimiser of one training run."""

    stimuli: DigitsSpec = DigitsSpec(part="train")
    """What the model is trained on."""
    held_out: DigitsSpec = DigitsSpec(part="test")
    """What its accuracy is measured on at the end."""
    seed: int = Field(default=0, ge=0)
    """Distinguishes trainings by one recipe. Weights, order of the stimuli and captions are drawn
    from the whole recipe, so that no two models share any of them."""
    steps: int = Field(default=300, ge=2)
    """Number of optimiser steps."""
    batch_size: int = Field(default=64, ge=2)
    """Stimuli per step."""
    checkpoint_steps: tuple[int, ...] = (0, 1, 3, 10, 30, 100)
    """Steps after which weights are saved, 0 at initialisation; the last one always is."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak of the one-cycle schedule of AdamW."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decay of weight matrices; biases, norms and scales have none."""
    warmup: float = Field(default=0.15, gt=0, lt=1)
    """Fraction of the steps in which the learning rate rises to its peak."""
    plain_captions: float = Field(default=0.5, ge=0, le=1)
    """Two-tower models: how often the class's plain caption replaces the detailed one."""


class TrainingRecipe(Spec):
    """A model and its training: everything that its weights depend on."""

    model: ModelSpec
    """The registry entry."""
    options: TrainingOptions
    """The file's defaults, overridden by the entry's own options."""

    @property
    def template(self) -> str:
        """Path of the checkpoints, with {step}."""
        assert isinstance(self.model.checkpoints, str)  # load_recipes lets nothing else through
        return self.model.checkpoints

    @property
    def directory(self) -> Path:
        """Folder of the checkpoints and of `training.json`."""
        return Path(self.template).parent

    def file(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return Path(self.template.replace(STEP, str(step)))

    @property
    def vocabulary_size(self) -> int | None:
        """Number of tokens that the model's config states."""
        return SOURCES[self.model.source].vocabulary_size(self.model)

    @property
    def _model(self) -> dict[str, Any]:
        preprocessing = self.model.preprocessing.model_dump(mode="json")
        return {**self.model.network, "preprocessing": preprocessing}

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the weights depend on, except library versions."""
        content = {
            "version": _VERSION,
            "model": self._model,
            "options": self.options.model_dump(mode="json"),
            "checkpoints": Path(self.template).name,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def seeds(self) -> dict[str, int]:
        """Seeds of the weights (and of dropout), of the order of the stimuli, and of captions.

        They do not depend on the checkpoints saved, on the held-out stimuli, on id or on folder.
        """
        options = self.options.model_dump(mode="json", exclude={"held_out", "checkpoint_steps"})
        content = {"model": self._model, "options": options}
        return {use: derived_seed(content, use) for use in ("weights", "order", "captions")}


def planned_steps(recipe: TrainingRecipe) -> tuple[int, ...]:
    """Return the steps whose weights are saved, ascending; the last is the end of the training."""
    options = recipe.options
    return (*sorted({s for s in options.checkpoint_steps if s < options.steps}), options.steps)


def load_recipes(registry_path: str | Path) -> list[TrainingRecipe]:
    """Read the entries of a registry file that are trained here.

    The file's top-level `training:` holds defaults, which an entry's own `training:` overrides
    key by key. Entries without one are left out.

    Parameters
    ----------
    registry_path
        A registry file. Paths in it are relative to the working directory.

    Returns
    -------
    list of TrainingRecipe
        In the order of the file.

    Raises
    ------
    InputError
        With file, line, entry and remedy; also where there is nothing to train.
    """
    registry = load_registry([registry_path])
    recipes: list[TrainingRecipe] = []
    taken: dict[Path, str] = {}
    drawn: dict[int, str] = {}
    for entry in registry.entries.values():
        if entry.spec.training is None:
            continue
        recipe = _recipe(entry)
        folder = recipe.directory
        if folder in taken:
            raise InputError(
                f"{entry.where}: entry {entry.spec.id!r} saves to {folder}, as {taken[folder]!r} "
                "does. Give each its own folder in `checkpoints:`."
            )
        taken[folder] = entry.spec.id
        weights = recipe.seeds["weights"]
        if weights in drawn:
            raise InputError(
                f"{entry.where}: entry {entry.spec.id!r} is trained by the same recipe as "
                f"{drawn[weights]!r}, and would be the same model twice. Give it another "
                "`training: {seed: …}`, or leave it out."
            )
        drawn[weights] = entry.spec.id
        recipes.append(recipe)
    if not recipes:
        raise InputError(
            f"{registry_path}: no entry has `training:`, so there is nothing to train. Add "
            "`training: {seed: 0}` to those that are trained here."
        )
    return recipes


def _recipe(entry: Entry) -> TrainingRecipe:
    spec, document = entry.spec, entry.document
    location: YamlPath = (*entry.location, "training")
    # each part is validated by itself, so that a fault is reported with its own line
    defaults = _section(document, ("training",), document.data.get("training", {}), None)
    overrides = _section(document, location, spec.training, spec.id)
    options = TrainingOptions.model_validate({**defaults, **overrides})
    recipe = TrainingRecipe(model=spec, options=options)
    fault = _fault(recipe)
    if fault:
        raise InputError(f"{entry.where}: entry {spec.id!r}: {fault}")
    return recipe


def _section(
    document: Document, location: YamlPath, value: Any, entry: str | None
) -> Mapping[str, Any]:
    return validate(TrainingOptions, value, document, location, entry).model_dump(
        exclude_unset=True
    )


def _fault(recipe: TrainingRecipe) -> str | None:
    spec, options = recipe.model, recipe.options
    template = spec.checkpoints
    if not isinstance(template, str) or STEP not in Path(template).name or "{epoch}" in template:
        return (
            "a model that is trained here needs `checkpoints:` with a template of file names "
            f"with {STEP}, such as store/reference/NAME/step-{STEP}.safetensors."
        )
    if not template.endswith(SUFFIXES):
        return f"checkpoints: {template} must end in {' or '.join(SUFFIXES)}."
    wrong = [s for s in options.checkpoint_steps if s < 0]
    if wrong:
        return f"checkpoint_steps: {wrong[0]} is negative; 0 is the initialisation."
    parts = {options.stimuli.part, options.held_out.part}
    if parts != {"train", "test"}:
        return (
            "it would be tested on stimuli that it is trained on (stimuli: "
            f"{options.stimuli.part}, held_out: {options.held_out.part}). Choose two parts that "
            "do not overlap."
        )
    seen = options.steps * options.batch_size
    if spec.metadata.get("samples_seen", seen) != seen:
        return (
            f"metadata.samples_seen is {spec.metadata['samples_seen']}, but {options.steps} steps "
            f"of {options.batch_size} stimuli are {seen}. Correct one of the two."
        )
    return None
