"""Two-tower models trained on images with their captions (Radford et al. 2021)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch

from pipeline.errors import InputError
from pipeline.extraction.torch_source import torch_source
from pipeline.stimuli import index_stimuli
from pipeline.stimuli.digits import class_captions, pixels
from pipeline.training.objective import Objective, image_tensor
from pipeline.training.vocabulary import write_merges

if TYPE_CHECKING:
    from pipeline.training.recipe import TrainingRecipe

_MAX_LOG_SCALE = math.log(100)  # as in CLIP


def prepare(recipe: TrainingRecipe) -> Objective:
    """Write the vocabulary, build the two towers from torch's current seed, and load their data.

    Each image is paired, at random, with its own detailed caption or its class's plain one: from
    the detailed captions alone the towers learn less about the digits than about handwriting.
    """
    from open_clip.loss import ClipLoss

    options = recipe.options
    shown, held_out = (index_stimuli(spec) for spec in (options.stimuli, options.held_out))
    assert shown.labels is not None
    assert held_out.labels is not None
    plain = class_captions()
    captions = [str(c) for c in shown.columns["caption"]]
    _write_vocabulary(recipe, [*captions, *plain])
    source = torch_source(recipe.model.source)
    # the towers' methods and the scale are open_clip's, unknown to torch's own type
    model = cast(Any, source.build(recipe.model))
    tokenize = source.tokenizer(recipe.model)
    transform = source.image_transform(recipe.model, model)
    images = image_tensor(pixels(options.stimuli.part), transform)
    test_images = image_tensor(pixels(options.held_out.part), transform)
    detailed, classes = tokenize(captions), tokenize(plain)
    labels, test_labels = torch.from_numpy(shown.labels), torch.from_numpy(held_out.labels)
    contrast = ClipLoss()

    def loss(rows: torch.Tensor, choices: torch.Generator) -> torch.Tensor:
        use_plain = torch.rand(len(rows), generator=choices) < options.plain_captions
        tokens = torch.where(use_plain[:, None], classes[labels[rows]], detailed[rows])
        value: torch.Tensor = contrast(
            model.encode_image(images[rows], normalize=True),
            model.encode_text(tokens, normalize=True),
            model.logit_scale.exp(),
        )
        return value

    def after_step() -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(0, _MAX_LOG_SCALE)

    def accuracy() -> float:
        match = (
            model.encode_image(test_images, normalize=True)
            @ model.encode_text(classes, normalize=True).T
        )
        return float((match.argmax(1) == test_labels).double().mean())

    return Objective(model, len(shown), loss, after_step, accuracy)


def _write_vocabulary(recipe: TrainingRecipe, captions: list[str]) -> None:
    if recipe.model.vocabulary is None:
        return  # the architecture has a tokenizer of its own
    size = write_merges(recipe.model.vocabulary, captions)
    stated = recipe.vocabulary_size
    if stated != size:
        raise InputError(
            f"model {recipe.model.id}: {recipe.model.config} states text_cfg.vocab_size {stated}, "
            f"but the captions' vocabulary has {size} tokens. Set it to {size}."
        )
