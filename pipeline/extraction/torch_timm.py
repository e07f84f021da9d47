"""Building, loading and running timm's models. Importing this imports timm and torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import Compose, Grayscale

from pipeline.errors import InputError, ModelError, first_line
from pipeline.extraction.torch_source import (
    NoEmbeddingError,
    RefuseResizing,
    Tokens,
    no_tower,
    uninitialised,
)
from pipeline.suggest import did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.config.model import Checkpoint, ModelSpec


class TorchTimm:
    """timm's models."""

    def check(self, spec: ModelSpec) -> None:
        """Raise InputError where timm knows no such architecture or pretrained tag."""
        architecture, _, tag = spec.name.partition(".")
        if not timm.is_model(architecture):
            raise InputError(
                f"model {spec.id}: timm knows no architecture {architecture!r}."
                f"{did_you_mean(architecture, timm.list_models())}"
            )
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
        checkpoints = spec.checkpoints
        others = checkpoints.values() if isinstance(checkpoints, dict) else ()
        for asked in (tag, *(c.pretrained for c in others)):
            if asked and asked not in tags:
                raise InputError(
                    f"model {spec.id}: timm has no weights {asked!r} for {architecture}."
                    f"{did_you_mean(asked, tags)} It has: {', '.join(tags) or 'none'}."
                )
        published = isinstance(checkpoints, dict) and (
            not checkpoints
            or any(c.kind == "pretrained" and not c.pretrained for c in checkpoints.values())
        )
        if published and not timm.is_model_pretrained(spec.name):
            raise InputError(
                f"model {spec.id}: timm has no published weights for {spec.name!r}. Name a "
                "checkpoint file (checkpoints: path/with/{step}.pth.tar) or an initialisation "
                "(checkpoints: {init: {init: {seed: 0}}})."
            )

    def build(self, spec: ModelSpec, device: str = "cpu") -> torch.nn.Module:
        """Return the architecture, initialised from torch's current seed."""
        return self._create(spec, device=device)

    def _create(
        self, spec: ModelSpec, device: str = "cpu", name: str | None = None, **keywords: Any
    ) -> torch.nn.Module:
        try:
            with torch.device(device), uninitialised(device):
                model: torch.nn.Module = timm.create_model(
                    name or spec.name, **{**spec.arguments, **keywords}
                )
        except Exception as error:  # of any type: a user's arguments, timm's checks
            raise ModelError(
                f"model {spec.id}: timm cannot build {spec.name} with arguments "
                f"{spec.arguments}: {type(error).__name__}: {first_line(error)}"
            ) from error
        return model.eval()

    def load_published(self, spec: ModelSpec, checkpoint: Checkpoint) -> torch.nn.Module:
        """Return the model with published weights, in eval mode."""
        name = spec.name
        if checkpoint.pretrained is not None:
            name = f"{spec.name.partition('.')[0]}.{checkpoint.pretrained}"
        overlay = None
        if checkpoint.revision is not None:
            hub_id = timm.get_pretrained_cfg(name).hf_hub_id
            overlay = {"hf_hub_id": f"{hub_id}@{checkpoint.revision}"}
        return self._create(spec, name=name, pretrained=True, pretrained_cfg_overlay=overlay)

    def convert(
        self, model: torch.nn.Module, weights: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the weights of a model's authors as timm's filter for the architecture has them.

        The filter is the one that timm applies to published weights.
        """
        with RefuseResizing():
            module: Any = import_module(type(model).__module__)
            filtered: dict[str, torch.Tensor] = module.checkpoint_filter_fn(weights, model)
        return filtered

    def preprocessing(self, spec: ModelSpec, model: torch.nn.Module) -> dict[str, Any]:
        """Return timm's data configuration with the spec's overrides.

        Size and channels of the input are those that the model was built for. A model of one
        channel is given grey images, normalised by the average over the channels that its
        pretrained configuration has.

        Raises
        ------
        InputError
            Where an image has no such channels.
        """
        config: dict[str, Any] = resolve_data_config(model=model, use_test_size=False)
        chosen = spec.preprocessing.model_dump(exclude_none=True)
        channels, *size = config["input_size"]
        channels = spec.arguments.get("in_chans", channels)
        if channels not in (1, 3):
            raise InputError(
                f"model {spec.id}: it takes {channels} channels, and an image has 3, or 1 where it "
                "is grey. Set `arguments: {in_chans: …}` to 3 or 1."
            )
        for key in ("mean", "std"):
            if len(chosen.get(key, ())) not in (0, 1, channels):
                raise InputError(
                    f"model {spec.id}: preprocessing.{key} has {len(chosen[key])} values. Give one "
                    f"for each channel of the model's input ({channels}), or one for all."
                )
            if channels == 1:
                config[key] = (sum(config[key]) / len(config[key]),)
        size = chosen.pop("input_size", spec.arguments.get("img_size", size))
        height, width = (size, size) if isinstance(size, int) else size
        return {**config, **chosen, "input_size": (channels, height, width)}

    def image_transform(
        self, spec: ModelSpec, model: torch.nn.Module
    ) -> Callable[[Image], torch.Tensor]:
        """Return timm's evaluation transform."""
        config = self.preprocessing(spec, model)
        steps = create_transform(**config, is_training=False).transforms
        if config["input_size"][0] == 1:
            steps = [Grayscale(), *steps]  # first, where timm's data sets convert images
        transform: Callable[[Image], torch.Tensor] = Compose(steps)
        return transform

    def tokenizer(self, spec: ModelSpec) -> Callable[[Sequence[str]], torch.Tensor]:
        """Raise InputError: timm's models take images only."""
        raise no_tower(spec, "text")

    def example(self, spec: ModelSpec, model: torch.nn.Module, tower: str) -> torch.Tensor:
        """Return one blank image on the meta device."""
        return torch.zeros(1, *self.preprocessing(spec, model)["input_size"], device="meta")

    def blocks(self, model: torch.nn.Module, tower: str) -> list[str]:
        """Return every block of ViT-likes, the stages of others, by timm's feature names."""
        return timm_blocks(model)

    def intermediates(
        self, model: Any, tower: str, inputs: torch.Tensor, *, embedding: bool = False
    ) -> list[Tokens]:
        """Run timm's `forward_intermediates`, and the head up to the classifier."""
        if not hasattr(model, "forward_intermediates"):  # can be read by hooks only
            if embedding:
                return [_embedding(model, model.forward_features(inputs))]
            model(inputs)
            return []
        keywords: dict[str, Any] = {"intermediates_only": not embedding}
        forward: Any = model.forward_intermediates
        prefixed = gives_prefix_tokens(model)
        if prefixed:
            keywords["return_prefix_tokens"] = True
        if type(model).__module__ == "timm.models.gemma4_vit":
            # its feature maps take their shape from values, which the meta device does not have
            keywords["output_fmt"] = "NLC"
        outputs = forward(inputs, **keywords)
        last = []
        if embedding:
            features, outputs = outputs
            last = [_embedding(model, features)]
        if not prefixed:
            return [Tokens(o) for o in outputs] + last
        has_class_token = getattr(model, "cls_token", None) is not None
        return [
            Tokens(body, prefix[:, 0] if has_class_token else None) for body, prefix in outputs
        ] + last

    def modules(self, model: torch.nn.Module, tower: str) -> torch.nn.Module:
        """Return the whole model."""
        return model

    def count_parameters(self, model: torch.nn.Module, tower: str) -> tuple[int, int]:
        """Return how many parameters there are without classifier head, and 0 for embeddings."""
        timm_model: Any = model
        head = timm_model.get_classifier() if hasattr(model, "get_classifier") else None
        heads = head if isinstance(head, tuple | list) else (head,)
        in_head = {id(p) for h in heads if isinstance(h, torch.nn.Module) for p in h.parameters()}
        return sum(p.numel() for p in model.parameters() if id(p) not in in_head), 0


def _embedding(model: Any, features: Any) -> Tokens:
    """Return what the classifier takes: pooled features, one vector for an image."""
    try:
        vectors = model.forward_head(features, pre_logits=True)
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise NoEmbeddingError(
            f"timm offers no features before a classifier: {first_line(error)}"
        ) from None
    if vectors.ndim != 2:
        raise NoEmbeddingError("its head does not pool; see `global_pool` among its arguments.")
    return Tokens(vectors)


def timm_blocks(model: torch.nn.Module) -> list[str]:
    """Name the outputs of a timm model's `forward_intermediates`.

    By the module that timm says they come from. Where several come from one (the branches of
    CrossViT, the scales of CoaT), the second is MODULE-2, and so on; one of no module is `stem`.
    """
    if not hasattr(model, "forward_intermediates"):
        return []
    features: Any = model.feature_info
    modules = [str(info["module"]) or "stem" for info in features]
    earlier = [modules[:i].count(name) for i, name in enumerate(modules)]
    return [f"{m}-{n + 1}" if n else m for m, n in zip(modules, earlier, strict=True)]


def gives_prefix_tokens(model: torch.nn.Module) -> bool:
    """Return whether a timm model can return its class or register tokens.

    Some architectures fail when they are asked for tokens that they were built without.
    """
    forward: Any = model.forward_intermediates
    return bool(getattr(model, "num_prefix_tokens", 0)) and (
        "return_prefix_tokens" in inspect.signature(forward).parameters
    )


SOURCE = TorchTimm()
