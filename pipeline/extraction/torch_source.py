"""What every source of torch models provides, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from pipeline.errors import InputError, ModelError
from pipeline.sources import SOURCES

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.config.model import Checkpoint, ModelSpec


@dataclass(frozen=True)
class Tokens:
    """The output of one block for one batch.

    Attributes
    ----------
    body
        Patch tokens or text tokens `(batch, length, width)`, feature maps
        `(batch, channels, height, width)`, or vectors `(batch, width)`.
    summary
        The class token, or the token that the text tower reads out: `(batch, width)`; None where
        the model has none.
    mask
        For text: True at the tokens that count, `(batch, length)`.
    position
        For text: position of the summary in the sequence, `(batch,)`; None where it is not in it.
    """

    body: torch.Tensor
    summary: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    position: torch.Tensor | None = None


class NoEmbeddingError(Exception):
    """A model that is asked for an embedding and has none; says why, in a sentence."""


class TorchSource(Protocol):
    """A library that builds and runs models in torch."""

    def check(self, spec: ModelSpec) -> None:
        """Raise InputError where the library does not know the name or tag. Build nothing."""

    def build(self, spec: ModelSpec, device: str = "cpu") -> torch.nn.Module:
        """Return the architecture, initialised from torch's current seed."""

    def load_published(self, spec: ModelSpec, checkpoint: Checkpoint) -> torch.nn.Module:
        """Return the model on the CPU with published weights, in eval mode."""

    def read_weights(self, file: str) -> dict[str, torch.Tensor]:
        """Read a checkpoint file in the library's own formats, without free unpickling."""

    def image_transform(
        self, spec: ModelSpec, model: torch.nn.Module
    ) -> Callable[[Image], torch.Tensor]:
        """Return the evaluation preprocessing: an RGB image → `(channels, height, width)`."""

    def tokenizer(self, spec: ModelSpec) -> Callable[[Sequence[str]], torch.Tensor]:
        """Return the function captions → token ids `(n, context)`."""

    def example(self, spec: ModelSpec, model: torch.nn.Module, tower: str) -> torch.Tensor:
        """Return an input of the right shape, with batch size 1, on torch's meta device."""

    def blocks(self, model: torch.nn.Module, tower: str) -> list[str]:
        """Return the names of the outputs of `intermediates`, first to last."""

    def intermediates(
        self, model: torch.nn.Module, tower: str, inputs: torch.Tensor, *, embedding: bool = False
    ) -> list[Tokens]:
        """Run one forward pass and return the output of every block.

        Parameters
        ----------
        embedding
            Whether to return, after the blocks, the vector that the library gives for a stimulus.

        Raises
        ------
        NoEmbeddingError
            Where it gives none.
        """

    def modules(self, model: torch.nn.Module, tower: str) -> torch.nn.Module:
        """Return the module whose submodules may be named as layers, too."""

    def count_parameters(self, model: torch.nn.Module, tower: str) -> tuple[int, int]:
        """Return how many parameters tower (without classifier head) and token embedding have."""

    def preprocessing(self, spec: ModelSpec, model: torch.nn.Module) -> dict[str, Any]:
        """Return the preprocessing, as recorded in the store."""


def torch_source(name: str) -> TorchSource:
    """Import the library that an entry's `source:` names."""
    found: TorchSource = import_module(SOURCES[name].torch_module).SOURCE
    return found


class _SkipInPlace(TorchFunctionMode):
    """Skip in-place arithmetic, which takes time on the meta device and changes nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _IN_PLACE:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


_IN_PLACE = {"uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"}


def uninitialised(device: str) -> AbstractContextManager[Any]:
    """Skip the initialisation of weights on the meta device, which has none."""
    return _SkipInPlace() if device == "meta" else nullcontext()


def seeded_build(source: TorchSource, spec: ModelSpec, seed: int) -> torch.nn.Module:
    """Build with torch's CPU generator at `seed`, and restore the generator afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return source.build(spec)


def load_checkpoint(
    source: TorchSource, spec: ModelSpec, checkpoint: Checkpoint
) -> torch.nn.Module:
    """Return the model on the CPU with the checkpoint's weights, in eval mode."""
    if checkpoint.init is not None:
        return seeded_build(source, spec, spec.initial_seed(checkpoint.init.seed))
    if checkpoint.file is None:
        return source.load_published(spec, checkpoint)
    model = source.build(spec)
    load_weights(source, spec, model, checkpoint.file)
    return model


def load_weights(source: TorchSource, spec: ModelSpec, model: torch.nn.Module, file: str) -> None:
    """Load a checkpoint file into `model`; raise ModelError unless it has every weight."""
    if not Path(file).is_file():
        raise ModelError(f"model {spec.id}: the checkpoint {file} is gone.")
    try:
        weights = source.read_weights(file)
    except Exception as error:  # whatever safetensors, zipfile or torch raise on a broken file
        raise ModelError(
            f"model {spec.id}: the checkpoint {file} cannot be read: "
            f"{type(error).__name__}: {first_line(error)} Replace the file or drop the checkpoint."
        ) from None
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    misfit = differences(shapes, weights)
    if misfit:
        raise ModelError(misfit_message(spec, file, misfit))
    model.load_state_dict(weights, strict=True)


def differences(
    have: Mapping[str, tuple[int, ...]], weights: Mapping[str, torch.Tensor]
) -> list[str]:
    """Return how names and shapes of `weights` differ from a model's; empty if they fit."""
    given = {k: tuple(v.shape) for k, v in weights.items()}
    return (
        [
            f"{k} is {given[k]} in the file, {have[k]} in the model"
            for k in have
            if k in given and have[k] != given[k]
        ]
        + [f"{k} is missing in the file" for k in have if k not in given]
        + [f"{k} is in the file only" for k in given if k not in have]
    )


def misfit_message(spec: ModelSpec, file: str, misfit: list[str]) -> str:
    """Return a message on how a checkpoint does not fit, with the remedy."""
    shown = "; ".join(misfit[:3]) + (f"; and {len(misfit) - 3} more" if len(misfit) > 3 else "")
    return (
        f"model {spec.id}: the checkpoint {file} does not fit the architecture {spec.name}: "
        f"{shown}. Set `arguments:` to those of the training run (num_classes, img_size, …), "
        "or name the right file."
    )


def no_tower(spec: ModelSpec, tower: str) -> InputError:
    """Return the error for a tower that a source does not have."""
    return InputError(f"model {spec.id}: {spec.source} models have no {tower} tower.")


def first_line(error: Exception) -> str:
    """Return the first line of a message, with a full stop."""
    text = str(error).strip().split("\n")[0]
    return text if text.endswith(".") else text + "."
