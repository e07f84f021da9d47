"""What the training loop needs to know of a model: the same for one tower and for two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipeline.stimuli.images import as_image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image


@dataclass(frozen=True)
class Task:
    """A model with its data."""

    model: torch.nn.Module
    n_stimuli: int
    loss: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
    """Row numbers of a batch, and the generator that chooses captions, → the loss."""
    after_step: Callable[[], None]
    """Puts bounded parameters back into their bounds."""
    accuracy: Callable[[], float]
    """Accuracy on the held-out stimuli."""


def image_tensor(
    images: Sequence[NDArray[Any]], transform: Callable[[Image], torch.Tensor]
) -> torch.Tensor:
    """Preprocess all images once, as extraction will."""
    return torch.stack([transform(as_image(image)) for image in images])
