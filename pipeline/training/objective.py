"""What the training loop needs of a model, with one tower or two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipeline.stimuli.decode import as_image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image


@dataclass(frozen=True)
class Objective:
    """A model with its data, its loss and its accuracy."""

    model: torch.nn.Module
    n_stimuli: int
    loss: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
    """(Row numbers of a batch, generator that chooses captions) → loss."""
    after_step: Callable[[], None]
    """Clamps bounded parameters after an optimiser step."""
    accuracy: Callable[[], float]
    """Accuracy on the held-out stimuli."""


def image_tensor(
    images: Sequence[NDArray[Any]], transform: Callable[[Image], torch.Tensor]
) -> torch.Tensor:
    """Preprocess all images once, in the way extraction does."""
    return torch.stack([transform(as_image(image)) for image in images])
