"""Building, loading and running open_clip's models. Importing this imports them and torch."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.hf_model import HFTextEncoder
from open_clip.model import convert_to_custom_text_state_dict

from pipeline.config.model import read_json
from pipeline.errors import InputError, ModelError, first_line
from pipeline.extraction.torch_source import RefuseResizing, Tokens, uninitialised
from pipeline.extraction.torch_timm import gives_prefix_tokens, timm_blocks
from pipeline.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

    from pipeline.config.model import Checkpoint, ModelSpec

_SHIPPED = frozenset(open_clip.list_models())
_TOKEN_EMBEDDINGS = (
    "token_embedding.weight",
    "word_embeddings.weight",
    "embed_tokens.weight",
    "shared.weight",
)
_ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514,
            "type_vocab_size": 1}  # fmt: skip
_XLM_ROBERTA = {**_ROBERTA, "model_type": "xlm-roberta", "vocab_size": 250002}
_MT5 = {"model_type": "mt5", "vocab_size": 250112, "is_encoder_decoder": True,
        "feed_forward_proj": "gated-gelu"}  # fmt: skip
_NLLB = {"model_type": "m2m_100", "vocab_size": 256206, "is_encoder_decoder": True,
         "d_model": 1024, "encoder_attention_heads": 16}  # fmt: skip
# the text towers of the hub that open_clip's architectures name, so that they can be described
# without a download
_HUB_SIZES: dict[str, dict[str, Any]] = {
    "roberta-base": _ROBERTA,
    "xlm-roberta-base": _XLM_ROBERTA,
    "xlm-roberta-large": {**_XLM_ROBERTA, "hidden_size": 1024, "intermediate_size": 4096,
                          "num_hidden_layers": 24, "num_attention_heads": 16},
    "google/mt5-base": {**_MT5, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "google/mt5-xl": {**_MT5, "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "facebook/nllb-200-distilled-600M": {**_NLLB, "encoder_layers": 12, "encoder_ffn_dim": 4096,
                                         "decoder_layers": 12, "decoder_ffn_dim": 4096},
    "facebook/nllb-200-distilled-1.3B": {**_NLLB, "encoder_layers": 24, "encoder_ffn_dim": 8192,
                                         "decoder_layers": 24, "decoder_ffn_dim": 8192},
}  # fmt: skip


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
                f"uses GELU. Use name: {name}-quickgelu."
            )
        if has and not wants and name.endswith("-quickgelu"):
            raise InputError(
                f"model {spec.id}: the weights {tag!r} were trained with GELU, but {name} uses "
                f"QuickGELU. Use name: {name.removesuffix('-quickgelu')}."
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
        # open_clip would load a text tower's weights from the hub even without its own
        return self._create(spec, device=device, load_weights=False, pretrained_text=False)

    def _create(self, spec: ModelSpec, device: str = "cpu", **keywords: Any) -> torch.nn.Module:
        if spec.config is not None:
            self._register(spec)
        preprocess = _preprocess_overrides(spec)
        text = _text_config(spec)
        _require_transformers(spec, text)
        try:
            with (
                torch.device(device),
                uninitialised(device),
                _quiet(),
                _known_sizes(text, device) as sizes,
            ):
                model: torch.nn.Module = open_clip.create_model(
                    spec.name,
                    device=device,
                    force_preprocess_cfg=preprocess or None,
                    **{**spec.arguments, **keywords, **sizes},
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

    def convert(self, model: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weights as `open_clip.load_checkpoint` has them.

        That is MobileCLIP's own format, text towers in the format before `CustomTextCLIP`, and
        scales of another shape. A missing `logit_bias`, which no activation depends on, is 0.
        """
        with RefuseResizing():
            weights = convert_state_dict(model, weights)
        if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
            weights = convert_to_custom_text_state_dict(weights)
        for name in ("logit_scale", "logit_bias"):
            scale = getattr(model, name)
            if name in weights and scale is not None and weights[name].numel() == 1:
                weights[name] = weights[name].reshape(scale.shape)
        if model.logit_bias is not None:
            weights.setdefault("logit_bias", torch.zeros(model.logit_bias.shape))
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
        except Exception as error:  # of any type: transformers and the hub have their own
            raise ModelError(
                f"model {spec.id}: its tokenizer cannot be loaded: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
        return lambda captions: tokenize(list(captions))

    def example(self, spec: ModelSpec, model: Any, tower: str) -> torch.Tensor:
        """Return one blank image or caption on the meta device."""
        if tower == "text":
            length = getattr(model, "context_length", 77)
            if _is_of_hub(model):  # the tokenizer's length, not the longest that the tower takes
                length = _text_config(spec).get("context_length", 77)
            return torch.zeros(1, length, dtype=torch.long, device="meta")
        size = self.preprocessing(spec, model)["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return torch.zeros(1, 3, height, width, device="meta")

    def blocks(self, model: Any, tower: str) -> list[str]:
        """Return every block of transformers, the stages of others."""
        if tower == "text":
            layers: Any = getattr(getattr(model, "text", model).transformer, "resblocks", ())
            if _is_of_hub(model):
                layers = _blocks_of_hub(model)
            return [f"blocks.{i}" for i in range(len(layers))]
        visual = model.visual
        if hasattr(visual, "trunk"):
            return timm_blocks(visual.trunk)
        if hasattr(visual, "transformer"):
            return [f"blocks.{i}" for i in range(len(visual.transformer.resblocks))]
        return ["stem", "layer1", "layer2", "layer3", "layer4"]

    def intermediates(
        self, model: Any, tower: str, inputs: torch.Tensor, *, embedding: bool = False
    ) -> list[Tokens]:
        """Run open_clip's `forward_intermediates`; the embedding is normalised."""
        if tower == "text":
            read = _tokens_of_hub if _is_of_hub(model) else _text_tokens
            return read(model, inputs, embedding)
        trunk = getattr(model.visual, "trunk", None)
        prefixed = trunk is None or gives_prefix_tokens(trunk)
        output = model.forward_intermediates(
            image=inputs, intermediates_only=not embedding, image_output_extra_tokens=prefixed
        )
        bodies = output["image_intermediates"]
        prefixes = output.get("image_intermediates_prefix") or [None] * len(bodies)
        last = [Tokens(output["image_features"])] if embedding else []
        return [
            Tokens(body, None if prefix is None else prefix[:, 0])
            for body, prefix in zip(bodies, prefixes, strict=True)
        ] + last

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
        embedding = sum(p.numel() for n, p in rest.items() if n.endswith(_TOKEN_EMBEDDINGS))
        return sum(p.numel() for p in rest.values()) - embedding, embedding


def _text_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the architecture says of the text tower."""
    if "text_cfg" in spec.arguments:
        return dict(spec.arguments["text_cfg"])
    if spec.folder is not None:
        path = spec.folder / "open_clip_config.json"
        config = read_json(path, f"model {spec.id}").get("model_cfg", {})
    else:
        config = open_clip.get_model_config(spec.name) or {}
    return dict(config.get("text_cfg", {}))


def _require_transformers(spec: ModelSpec, text: dict[str, Any]) -> None:
    if find_spec("transformers") is not None:
        return
    remedy = "Install it: pip install 'consilience[transformers]'."
    if text.get("hf_model_name"):
        raise ModelError(
            f"model {spec.id}: the text tower of {spec.name} is a model of the package "
            f"transformers, which is not installed. {remedy}"
        )
    if text.get("hf_tokenizer_name") and "text" in spec.towers:
        raise ModelError(
            f"model {spec.id}: the tokenizer of {spec.name} is one of the package transformers, "
            f"which is not installed. {remedy} Or extract the image tower alone: `towers: [image]`."
        )


@contextmanager
def _known_sizes(text: dict[str, Any], device: str) -> Iterator[dict[str, Any]]:
    """Give open_clip the sizes of a text tower of the hub, where no weights are made of them.

    A tower with weights takes its configuration from the hub, like its tokenizer.
    """
    sizes = _HUB_SIZES.get(text.get("hf_model_name", ""))
    if sizes is None or device != "meta":
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(sizes))
        yield {"text_cfg": {**text, "hf_model_name": folder, "hf_model_pretrained": False}}


def _is_of_hub(model: Any) -> bool:
    """Return whether the text tower is a model of the package transformers."""
    return isinstance(getattr(model, "text", None), HFTextEncoder)


def _blocks_of_hub(model: Any) -> torch.nn.ModuleList:
    """Return the blocks: the longest list of modules of a text tower of the hub."""
    modules = model.text.transformer.modules()
    return max((m for m in modules if isinstance(m, torch.nn.ModuleList)), key=len)


def _tokens_of_hub(model: Any, tokens: torch.Tensor, embedding: bool) -> list[Tokens]:
    """Return the outputs of the blocks of a text tower of the hub, which hides them."""
    outputs: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    def unmask(_module: torch.nn.Module, args: Any, keywords: dict[str, Any]) -> Any:
        return args, {**keywords, "attention_mask": None}

    handles = [block.register_forward_hook(keep) for block in _blocks_of_hub(model)]
    if tokens.is_meta:  # transformers looks at the values of the mask, and there are none
        handles.append(model.text.transformer.register_forward_pre_hook(unmask, with_kwargs=True))
    try:
        vectors = model.encode_text(tokens, normalize=True)
    finally:
        for handle in handles:
            handle.remove()
    last = [Tokens(vectors)] if embedding else []
    mask = tokens != model.text.config.pad_token_id
    first = getattr(model.text.pooler, "cls_token_position", None)
    if first is None:  # the tower reads out the mean or the maximum over its tokens
        return [Tokens(body, None, mask) for body in outputs] + last
    position = torch.full((len(tokens),), first, device=tokens.device)
    return [Tokens(body, body[:, first], mask, position) for body in outputs] + last


def _preprocess_overrides(spec: ModelSpec) -> dict[str, Any]:
    chosen = spec.preprocessing.model_dump(exclude_none=True)
    if "input_size" in chosen:
        chosen["size"] = chosen.pop("input_size")
    if "crop_pct" in chosen:
        raise InputError(f"model {spec.id}: open_clip's preprocessing has no crop_pct.")
    return chosen


def _text_tokens(model: Any, tokens: torch.Tensor, embedding: bool) -> list[Tokens]:
    """Return the outputs of the text tower's blocks, with the token that the tower reads out."""
    output = model.forward_intermediates(
        text=tokens, intermediates_only=not embedding, text_output_extra_tokens=True
    )
    last = [Tokens(output["text_features"])] if embedding else []
    bodies = output["text_intermediates"]
    text = getattr(model, "text", model)
    kind = getattr(text, "text_pool_type", getattr(text, "pool_type", "argmax"))
    mask = tokens != getattr(text, "pad_id", 0)
    if "text_intermediates_suffix" in output:  # CoCa appends a class token, and reads it out
        suffixes = output["text_intermediates_suffix"]
        return [Tokens(b, s[:, 0], mask) for b, s in zip(bodies, suffixes, strict=True)] + last
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
    return [Tokens(body, body[rows, position], mask, position) for body in bodies] + last


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
