"""Small reference models trained here, with checkpoints. Importing this imports no torch."""

from pipeline.training.checkpoints import is_trained, is_trained_otherwise
from pipeline.training.recipe import (
    TrainingOptions,
    TrainingRecipe,
    load_recipes,
    planned_steps,
)
from pipeline.training.zoo import Progress, train, train_all

__all__ = [
    "Progress",
    "TrainingOptions",
    "TrainingRecipe",
    "is_trained",
    "is_trained_otherwise",
    "load_recipes",
    "planned_steps",
    "train",
    "train_all",
]
