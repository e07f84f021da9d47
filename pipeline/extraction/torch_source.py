"""What every source of torch models provides, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from pipeline.errors import InputError
from pipeline.extraction.checkpoint_files import CheckpointReader
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

    def convert(
        self, model: torch.nn.Module, weights: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return weights in an older or a foreign format as the library's own loader has them.

        Nothing is resized. Raises anything where the weights are in no such format.
        """

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


class RefuseResizing(TorchFunctionMode):
    """Raise where a library would interpolate weights, such as positional embeddings."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _RESIZE:
            raise ValueError("these weights are of another size.")
        return func(*args, **(kwargs or {}))


_RESIZE = {"interpolate", "grid_sample", "numpy"}
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
    load_weights(source, spec, model, checkpoint)
    return model


def load_weights(
    source: TorchSource, spec: ModelSpec, model: torch.nn.Module, checkpoint: Checkpoint
) -> None:
    """Load a checkpoint file into `model`.

    Weights that are ignored are those of `init: {seed: 0}`.

    Raises
    ------
    ModelError
        Where the file does not have every other weight.
    """
    reader = checkpoint_reader(source, spec, checkpoint, model)
    weights = reader.read()
    if reader.ignored:
        initial = seeded_build(source, spec, spec.initial_seed(0)).state_dict()
        weights |= {name: initial[name] for name in reader.ignored}
    model.load_state_dict(weights, strict=False)


def checkpoint_reader(
    source: TorchSource, spec: ModelSpec, checkpoint: Checkpoint, model: torch.nn.Module
) -> CheckpointReader:
    """Return what finds the model's weights in a checkpoint file."""
    have = {n: w for n, w in model.state_dict().items() if isinstance(w, torch.Tensor)}
    return CheckpointReader(spec, checkpoint, have, partial(source.convert, model))


def no_tower(spec: ModelSpec, tower: str) -> InputError:
    """Return the error for a tower that a source does not have."""
    return InputError(f"model {spec.id}: {spec.source} models have no {tower} tower.")
