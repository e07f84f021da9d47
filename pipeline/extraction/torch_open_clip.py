"""Building, loading and running open_clip's models. Importing this imports them and torch."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
import torch
from open_clip.factory import load_state_dict as read_open_clip_checkpoint

from pipeline.errors import InputError, ModelError
from pipeline.extraction.torch_source import Tokens, first_line, uninitialised
from pipeline.extraction.torch_timm import gives_prefix_tokens, timm_blocks
from pipeline.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

    from pipeline.config.model import Checkpoint, ModelSpec

_SHIPPED = frozenset(open_clip.list_models())


class TorchOpenClip:
    """open_clip's models."""

    def check(self, spec: ModelSpec) -> None:
        """Raise InputError for unknown names and tags, and for QuickGELU mismatches."""
        if spec.folder is not None:
            if not (spec.folder / "open_clip_config.json").is_file():
                raise InputError(
                    f"model {spec.id}: there is no {spec.folder}/open_clip_config.json."
                )
            return
        if spec.config is not None:
            self._register(spec)
        known = open_clip.list_models()
        if spec.name not in known:
            raise InputError(
                f"model {spec.id}: open_clip knows no architecture {spec.name!r}."
                f"{did_you_mean(spec.name, known)} An architecture of your own needs `config:`, "
                "its JSON file."
            )
        checkpoints = spec.checkpoints if isinstance(spec.checkpoints, dict) else {}
        tags = {
            c.pretrained or spec.pretrained for c in checkpoints.values() if c.kind == "pretrained"
        }
        if not spec.checkpoints:
            tags = {spec.pretrained}
        for tag in tags:
            self._check_tag(spec, tag)

    def _check_tag(self, spec: ModelSpec, tag: str | None) -> None:
        name = spec.name
        tags = open_clip.list_pretrained_tags_by_model(name)
        if tag not in tags:
            raise InputError(
                f"model {spec.id}: open_clip has no weights {tag!r} for {name}."
                f"{did_you_mean(tag or '', tags)} It has: {', '.join(tags) or 'none'}."
            )
        wants = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
        has = bool(open_clip.get_model_config(name).get("quick_gelu", False))
        if wants and not has:
            # open_clip only warns, and the activations would be wrong
            raise InputError(
                f"model {spec.id}: the weights {tag!r} were trained with QuickGELU, but {name} "
                "uses GELU. "
                f"Use name: {name}-quickgelu."
            )
        if has and not wants and name.endswith("-quickgelu"):
            raise InputError(
                f"model {spec.id}: the weights {tag!r} were trained with GELU, but {name} uses "
                "QuickGELU. "
                f"Use name: {name.removesuffix('-quickgelu')}."
            )

    def _register(self, spec: ModelSpec) -> None:
        """Register a user's architecture with open_clip under the spec's name."""
        if spec.name in _SHIPPED:
            raise InputError(
                f"model {spec.id}: {spec.name!r} is an architecture of open_clip's own, which "
                "`config:` would replace for every other entry. Give yours another `name:`."
            )
        config = spec.architecture
        if spec.vocabulary is not None:
            config["text_cfg"]["tokenizer_kwargs"]["bpe_path"] = str(spec.vocabulary)
        known = (
            open_clip.get_model_config(spec.name) if spec.name in open_clip.list_models() else None
        )
        if known == config:
            return
        # open_clip reads architectures only from files, which name them
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{spec.name}.json")
            path.write_text(json.dumps(config))
            open_clip.add_model_config(path)

    def build(self, spec: ModelSpec, device: str = "cpu") -> torch.nn.Module:
        """Return the architecture, initialised from torch's current seed."""
        return self._create(spec, device=device, load_weights=False)

    def _create(self, spec: ModelSpec, device: str = "cpu", **keywords: Any) -> torch.nn.Module:
        if spec.config is not None:
            self._register(spec)
        preprocess = _preprocess_overrides(spec)
        try:
            with torch.device(device), uninitialised(device), _quiet():
                model: torch.nn.Module = open_clip.create_model(
                    spec.name,
                    device=device,
                    force_preprocess_cfg=preprocess or None,
                    **{**spec.arguments, **keywords},
                )
        except Exception as error:  # of any type: the arguments are a user's
            raise ModelError(
                f"model {spec.id}: open_clip cannot build {spec.name} with arguments "
                f"{spec.arguments}: {type(error).__name__}: {first_line(error)}"
            ) from error
        return model.eval()

    def load_published(self, spec: ModelSpec, checkpoint: Checkpoint) -> torch.nn.Module:
        """Return the model with published weights, in eval mode."""
        if checkpoint.revision is not None:
            raise ModelError(f"model {spec.id}: open_clip's tags have no revisions.")
        tag = checkpoint.pretrained or spec.pretrained
        return self._create(spec, pretrained=tag, require_pretrained=True)

    def read_weights(self, file: str) -> dict[str, torch.Tensor]:
        """Read safetensors or open_clip's training checkpoints."""
        weights: dict[str, torch.Tensor] = read_open_clip_checkpoint(file, weights_only=True)
        return weights

    def preprocessing(self, spec: ModelSpec, model: torch.nn.Module) -> dict[str, Any]:
        """Return open_clip's preprocessing configuration, overrides applied."""
        return dict(open_clip.get_model_preprocess_cfg(model))

    def image_transform(
        self, spec: ModelSpec, model: torch.nn.Module
    ) -> Callable[[Image], torch.Tensor]:
        """Return open_clip's evaluation transform."""
        config = open_clip.transform.PreprocessCfg(**self.preprocessing(spec, model))
        transform: Callable[[Image], torch.Tensor] = open_clip.transform.image_transform_v2(
            config, is_train=False
        )
        return transform

    def tokenizer(self, spec: ModelSpec) -> Callable[[Sequence[str]], torch.Tensor]:
        """Return the architecture's tokenizer."""
        if spec.config is not None:
            self._register(spec)
        try:
            tokenize = open_clip.get_tokenizer(spec.name)
        except (OSError, ImportError) as error:
            raise ModelError(
                f"model {spec.id}: its tokenizer cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        return lambda captions: tokenize(list(captions))

    def example(self, spec: ModelSpec, model: Any, tower: str) -> torch.Tensor:
        """Return one blank image or caption on the meta device."""
        if tower == "text":
            length = getattr(model, "context_length", 77)
            return torch.zeros(1, length, dtype=torch.long, device="meta")
        size = self.preprocessing(spec, model)["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return torch.zeros(1, 3, height, width, device="meta")

    def blocks(self, model: Any, tower: str) -> list[str]:
        """Return every block of transformers, the stages of others."""
        if tower == "text":
            layers = getattr(getattr(model, "text", model).transformer, "resblocks", ())
            return [f"blocks.{i}" for i in range(len(layers))]
        visual = model.visual
        if hasattr(visual, "trunk"):
            return timm_blocks(visual.trunk)
        if hasattr(visual, "transformer"):
            return [f"blocks.{i}" for i in range(len(visual.transformer.resblocks))]
        return ["stem", "layer1", "layer2", "layer3", "layer4"]

    def intermediates(self, model: Any, tower: str, inputs: torch.Tensor) -> list[Tokens]:
        """Run open_clip's `forward_intermediates`."""
        if tower == "text":
            return _text_tokens(model, inputs)
        trunk = getattr(model.visual, "trunk", None)
        prefixed = trunk is None or gives_prefix_tokens(trunk)
        output = model.forward_intermediates(
            image=inputs, intermediates_only=True, image_output_extra_tokens=prefixed
        )
        bodies = output["image_intermediates"]
        prefixes = output.get("image_intermediates_prefix") or [None] * len(bodies)
        return [
            Tokens(body, None if prefix is None else prefix[:, 0])
            for body, prefix in zip(bodies, prefixes, strict=True)
        ]

    def modules(self, model: Any, tower: str) -> torch.nn.Module:
        """Return the tower."""
        if tower == "image":
            visual: torch.nn.Module = model.visual
            return visual
        text: torch.nn.Module = getattr(model, "text", None) or model.transformer
        return text

    def count_parameters(self, model: Any, tower: str) -> tuple[int, int]:
        """Return how many parameters the tower has without its token embedding, and in it."""
        if tower == "image":
            return sum(p.numel() for p in model.visual.parameters()), 0
        if hasattr(model, "text"):
            rest = dict(model.text.named_parameters())
        else:
            visual = {id(p) for p in model.visual.parameters()}
            scale = {"logit_scale", "logit_bias"}
            rest = {
                n: p for n, p in model.named_parameters() if id(p) not in visual and n not in scale
            }
        embedding = sum(
            p.numel()
            for n, p in rest.items()
            if n.endswith(("token_embedding.weight", "word_embeddings.weight"))
        )
        return sum(p.numel() for p in rest.values()) - embedding, embedding


def _preprocess_overrides(spec: ModelSpec) -> dict[str, Any]:
    chosen = spec.preprocessing.model_dump(exclude_none=True)
    if "input_size" in chosen:
        chosen["size"] = chosen.pop("input_size")
    if "crop_pct" in chosen:
        raise InputError(f"model {spec.id}: open_clip's preprocessing has no crop_pct.")
    return chosen


def _text_tokens(model: Any, tokens: torch.Tensor) -> list[Tokens]:
    """Return the outputs of the text tower's blocks, with the token that the tower reads out."""
    output = model.forward_intermediates(
        text=tokens, intermediates_only=True, text_output_extra_tokens=True
    )
    bodies = output["text_intermediates"]
    text = getattr(model, "text", model)
    kind = getattr(text, "text_pool_type", getattr(text, "pool_type", "argmax"))
    mask = tokens != getattr(text, "pad_id", 0)
    if "text_intermediates_suffix" in output:  # CoCa appends a class token, and reads it out
        suffixes = output["text_intermediates_suffix"]
        return [Tokens(b, s[:, 0], mask) for b, s in zip(bodies, suffixes, strict=True)]
    if kind == "first":
        position = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    elif kind == "last":
        position = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
    else:
        if kind == "eos":
            end = text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id
            position = tokens.eq(end).int().argmax(dim=-1)
        else:
            position = tokens.argmax(dim=-1)  # the end-of-text token has the highest id
        mask = torch.arange(tokens.shape[1], device=tokens.device) <= position[:, None]
    rows = torch.arange(len(tokens), device=tokens.device)
    return [Tokens(body, body[rows, position], mask, position) for body in bodies]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress open_clip's warning that an architecture was built without weights."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


SOURCE = TorchOpenClip()
