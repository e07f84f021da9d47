"""Classifiers trained on labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from pipeline.extraction.torch_source import torch_source
from pipeline.stimuli import index_stimuli
from pipeline.stimuli.digits import pixels
from pipeline.training.objective import Objective, image_tensor

if TYPE_CHECKING:
    from pipeline.training.recipe import TrainingRecipe


def prepare(recipe: TrainingRecipe) -> Objective:
    """Build the classifier from torch's current seed, and load its data."""
    source = torch_source(recipe.model.source)
    model = source.build(recipe.model)
    transform = source.image_transform(recipe.model, model)
    options = recipe.options
    shown, held_out = (index_stimuli(spec) for spec in (options.stimuli, options.held_out))
    assert shown.labels is not None
    assert held_out.labels is not None
    images = image_tensor(pixels(options.stimuli.part), transform)
    test_images = image_tensor(pixels(options.held_out.part), transform)
    labels, test_labels = torch.from_numpy(shown.labels), torch.from_numpy(held_out.labels)

    def loss(rows: torch.Tensor, choices: torch.Generator) -> torch.Tensor:
        return cross_entropy(model(images[rows]), labels[rows])

    def accuracy() -> float:
        return float((model(test_images).argmax(1) == test_labels).double().mean())

    return Objective(model, len(shown), loss, after_step=lambda: None, accuracy=accuracy)
