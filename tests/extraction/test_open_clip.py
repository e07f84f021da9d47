"""open_clip's two towers, each layer checked against open_clip's own embeddings."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip import factory
from PIL import Image
from safetensors.torch import save_file
from towers import Touch, check_seed, check_weights, equal, hooked, randomised

from pipeline.config.model import Checkpoint, ModelSpec
from pipeline.errors import InputError, ModelError
from pipeline.extraction.describe import check_fit, describe
from pipeline.extraction.reader import LayerReader
from pipeline.extraction.torch_open_clip import SOURCE
from pipeline.extraction.torch_source import load_checkpoint, seeded_build
from pipeline.training.vocabulary import write_merges

CAPTIONS = ["a thin seven", "a bold handwritten seven", "seven", "a thin, thin, thin seven"]
VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 16, "patch_size": 8, "layers": 3, "width": 12, "head_width": 4},
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
    "timm": {"image_size": 16, "timm_model_name": "resnet18", "timm_model_pretrained": False,
             "timm_pool": "avg", "timm_proj": "linear"},
    "coca": {"image_size": 16, "patch_size": 8, "layers": 3, "width": 12, "head_width": 4,
             "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("open_clip")
    (made / "words").mkdir()
    write_merges(made / "words" / "bpe.txt.gz", CAPTIONS)
    return made


def spec(
    folder: Path,
    vision: str = "vit",
    text: dict[str, Any] | None = None,
    top: dict[str, Any] | None = None,
    **changes: Any,
) -> ModelSpec:
    """Write an architecture and return an entry with it."""
    size = write_merges(folder / "words" / "bpe.txt.gz", CAPTIONS)
    config = {
        "embed_dim": 8,
        "vision_cfg": VISION[vision],
        "text_cfg": {
            "context_length": 10,
            "vocab_size": size,
            "width": 12,
            "heads": 3,
            "layers": 2,
            "tokenizer_kwargs": {"bpe_path": "words/bpe.txt.gz"},
            **(text or {}),
        },
        **(top or {}),
    }
    content = json.dumps(config)
    name = f"tiny-{vision}-{abs(hash(content)) % 10**8}"
    (folder / f"{name}.json").write_text(content)
    entry = {
        "source": "open_clip",
        "id": "open_clip/tiny",
        "name": name,
        "config": str(folder / f"{name}.json"),
        "checkpoints": {"init": {"init": {}}},
        **changes,
    }
    return ModelSpec.model_validate(entry)


def random_model(chosen: ModelSpec) -> Any:
    return randomised(SOURCE, chosen, 0.1)


def pictures(size: int = 16) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))


# the image tower


@pytest.mark.parametrize("pool", ["auto", "cls", "mean", "max"])
def test_image__blocks_of_a_vit(folder: Path, pool: str) -> None:
    chosen = spec(folder, pool=pool)
    model = random_model(chosen)
    found = LayerReader(chosen, model, "image")(pictures())
    assert list(found) == ["blocks.0", "blocks.1", "blocks.2"]
    hooks = hooked(
        model.visual,
        [f"transformer.resblocks.{i}" for i in range(3)],
        lambda: model.encode_image(pictures()),
    )
    for i in range(3):
        tokens = hooks[f"transformer.resblocks.{i}"]
        assert tokens.shape == (3, 5, 12)
        expected = {
            "auto": tokens[:, 0],
            "cls": tokens[:, 0],
            "mean": tokens[:, 1:].mean(1),
            "max": tokens[:, 1:].amax(1),
        }
        equal(found[f"blocks.{i}"], expected[pool])


def test_image__last_block_leads_to_the_embedding(folder: Path) -> None:
    chosen = spec(folder, layers="last")
    model = random_model(chosen)
    found = LayerReader(chosen, model, "image")(pictures())["blocks.2"]
    with torch.no_grad():
        equal(model.visual.ln_post(found) @ model.visual.proj, model.encode_image(pictures()))


def test_image__stages_of_a_resnet(folder: Path) -> None:
    chosen = spec(folder, "resnet")
    model = random_model(chosen)
    found = LayerReader(chosen, model, "image")(pictures(32))
    names = ["layer1", "layer2", "layer3", "layer4"]
    assert list(found) == ["stem", *names]
    hooks = hooked(model.visual, [*names, "avgpool"], lambda: model.encode_image(pictures(32)))
    for name in names:
        equal(found[name], hooks[name].mean((2, 3)))
    equal(found["stem"], hooks["avgpool"].mean((2, 3)))


def test_image__trunk_of_timm(folder: Path) -> None:
    # once wrong: asking a CNN of timm's for extra tokens is a
    # TypeError (convnext_base_w and every other ConvNeXt CLIP, MobileCLIP-S1, …)
    chosen = spec(folder, "timm")
    model = random_model(chosen)
    found = LayerReader(chosen, model, "image")(pictures())
    names = ["act1", "layer1", "layer2", "layer3", "layer4"]
    assert list(found) == names
    hooks = hooked(model.visual.trunk, names, lambda: model.encode_image(pictures()))
    for name in names:
        equal(found[name], hooks[name].mean((2, 3)))


def test_image__trunk_of_timm_without_a_class_token(folder: Path) -> None:
    # once an UnboundLocalError within timm: PE-Core-bigG-14-448 was asked for tokens it has not
    chosen = spec(folder, "timm")
    model = random_model(chosen)
    trunk = timm.create_model(
        "eva02_tiny_patch14_224", img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=3,
        num_classes=0, class_token=False, global_pool="avg",
    ).eval()  # fmt: skip
    model.visual.trunk = trunk
    found = LayerReader(chosen, model, "image")(pictures())
    hooks = hooked(trunk, ["blocks.0", "blocks.1"], lambda: trunk(pictures()))
    assert list(found) == list(hooks)
    for name, tokens in hooks.items():
        equal(found[name], tokens.mean(1))


def test_image__finer_layers(folder: Path) -> None:
    chosen = spec(folder, layers=["blocks.1", "transformer.resblocks.1.ln_2"], pool="mean")
    model = random_model(chosen)
    assert list(LayerReader(chosen, model, "image")(pictures())) == [
        "blocks.1",
        "transformer.resblocks.1.ln_2",
    ]


# the text tower


def tokens_of(chosen: ModelSpec) -> torch.Tensor:
    return SOURCE.tokenizer(chosen)(CAPTIONS)


def test_tokenizer__of_the_config(folder: Path) -> None:
    tokens = tokens_of(spec(folder))
    assert tokens.shape == (4, 10)
    start, end = int(tokens.max()) - 1, int(tokens.max())
    assert tokens[2].tolist()[0::2][:2] == [start, end]  # start, seven, end
    assert (tokens[:, 0] == start).all()
    assert ((tokens == end).sum(1) == 1).all()
    assert (tokens != 0).sum(1).tolist() == [5, 6, 3, 9]  # commas are tokens, too


def test_text__pooled_at_the_end_of_text_by_hand(folder: Path) -> None:
    chosen = spec(folder)
    model, tokens = random_model(chosen), tokens_of(chosen)
    found = LayerReader(chosen, model, "text")(tokens)
    assert list(found) == ["blocks.0", "blocks.1"]
    with torch.no_grad():
        for row, caption in enumerate(tokens):
            end = caption.tolist().index(int(tokens.max()))
            x = (model.token_embedding(caption) + model.positional_embedding)[None, : end + 1]
            mask = torch.full((end + 1, end + 1), -torch.inf).triu(1)
            for i, block in enumerate(model.transformer.resblocks):
                x = block(x, attn_mask=mask)
                equal(found[f"blocks.{i}"][row], x[0, end])


TEXTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "argmax": ({}, {}),
    "custom": ({}, {"custom_text": True}),
    "last": ({"pool_type": "last", "no_causal_mask": True}, {"custom_text": True}),
    "first": ({"pool_type": "first", "no_causal_mask": True}, {"custom_text": True}),
    "eos": ({"pool_type": "eos", "eos_id": 5}, {"custom_text": True}),
    "eos_clip": ({"pool_type": "eos", "eos_id": 5}, {}),
    "last_clip": ({"pool_type": "last"}, {}),
    # once wrong: CoCa reads out an appended class token
    # (`text_intermediates_suffix`), and the end-of-text token is taken
    "class_token": ({"embed_cls": True, "pad_id": 0}, {"custom_text": True}),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_text__last_block_leads_to_the_embedding(folder: Path, kind: str) -> None:
    text, top = TEXTS[kind]
    chosen = spec(folder, text=text, top=top)
    model, tokens = random_model(chosen), tokens_of(chosen)
    if kind.startswith("eos"):  # a mark in the middle, which is not the highest number
        tokens[tokens == tokens.max()] = 5
    tower = getattr(model, "text", model)
    found = LayerReader(chosen, model, "text")(tokens)["blocks.1"]
    with torch.no_grad():
        equal(tower.ln_final(found) @ tower.text_projection, model.encode_text(tokens))


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_text__other_pools_leave_padding_out(folder: Path, pool: str) -> None:
    chosen = spec(folder, pool=pool)
    model, tokens = random_model(chosen), tokens_of(chosen)
    found = LayerReader(chosen, model, "text")(tokens)
    hooks = hooked(
        model.transformer, ["resblocks.0", "resblocks.1"], lambda: model.encode_text(tokens)
    )
    for i in range(2):
        for row, caption in enumerate(tokens):
            of_words = hooks[f"resblocks.{i}"][row, : int((caption != 0).sum())]
            expected = of_words.mean(0) if pool == "mean" else of_words.amax(0)
            equal(found[f"blocks.{i}"][row], expected)


def test_text__mean_where_the_first_token_is_read(folder: Path) -> None:
    # once wrong: the mask ends where the read-out is, so that
    # with pool_type: first the mean is over the first token alone
    chosen = spec(folder, text=TEXTS["first"][0], top=TEXTS["first"][1], pool="mean")
    model, tokens = random_model(chosen), tokens_of(chosen)
    found = LayerReader(chosen, model, "text")(tokens)["blocks.1"]
    first = LayerReader(chosen.model_copy(update={"pool": "auto"}), model, "text")(tokens)[
        "blocks.1"
    ]
    assert (found - first).abs().max() > 0.01


def test_text__finer_layers_pool_as_blocks_do(folder: Path) -> None:
    # once wrong: hooked layers of a text tower are averaged over padding
    chosen = spec(folder, layers=["blocks.0", "resblocks.1.ln_1"])
    model, tokens = random_model(chosen), tokens_of(chosen)
    found = LayerReader(chosen, model, "text")(tokens)
    with torch.no_grad():
        equal(found["resblocks.1.ln_1"], model.transformer.resblocks[1].ln_1(found["blocks.0"]))


@pytest.mark.parametrize("top", [{}, {"custom_text": True}])
def test_text__unknown_layer(folder: Path, top: dict[str, Any]) -> None:
    chosen = spec(folder, top=top, layers=["blocks.7"], towers=["text"])
    with pytest.raises(
        InputError,
        match=r"model open_clip/tiny: no layer of the text tower matches 'blocks.7'\. Did you mean "
        r"'blocks.\d'.* Blocks: blocks.0, blocks.1\.",
    ):
        describe(chosen)


# the embedding


COCA = {"custom_text": True,
        "multimodal_cfg": {"context_length": 10, "width": 12, "heads": 3, "layers": 1}}  # fmt: skip
TOWERS = [("vit", {}, "blocks.1"), ("vit", {"custom_text": True}, "blocks.1"),
          ("resnet", {}, "layer1"), ("timm", {"custom_text": True}, "layer1"),
          ("coca", COCA, "blocks.1")]  # fmt: skip


@pytest.mark.parametrize("pool", ["auto", ["mean", "max"]])
@pytest.mark.parametrize(("vision", "top", "block"), TOWERS)
def test_embedding__of_the_image_tower(
    folder: Path, vision: str, top: Any, block: str, pool: Any
) -> None:
    chosen = spec(folder, vision, top=top, layers=["embedding", block], pool=pool, towers=["image"])
    model = random_model(chosen)
    inputs = pictures(32 if vision == "resnet" else 16)
    found = LayerReader(chosen, model, "image")(inputs)
    assert list(found) == [*([f"{block}.mean", f"{block}.max"] if pool != "auto" else [block]),
                           "embedding"]  # fmt: skip
    with torch.no_grad():
        expected = model.encode_image(inputs, normalize=True)
    torch.testing.assert_close(found["embedding"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["embedding"].norm(dim=1), torch.ones(3))
    info = describe(chosen)["image"]
    assert info.layers == tuple(found)
    assert info.widths == tuple(v.shape[1] for v in found.values())


@pytest.mark.parametrize("kind", [*TEXTS, "coca"])
def test_embedding__of_the_text_tower(folder: Path, kind: str) -> None:
    text, top = TEXTS["class_token"] if kind == "coca" else TEXTS[kind]
    if kind == "coca":
        text, top = {**text, "output_tokens": True}, COCA
    chosen = spec(folder, text=text, top=top, layers=["blocks.*", "embedding"], towers=["text"])
    model, tokens = random_model(chosen), tokens_of(chosen)
    if kind.startswith("eos"):
        tokens[tokens == tokens.max()] = 5
    found = LayerReader(chosen, model, "text")(tokens)
    assert list(found) == ["blocks.0", "blocks.1", "embedding"]
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(found["embedding"], expected, rtol=1e-5, atol=1e-5)
    assert describe(chosen)["text"].widths == (12, 12, 8)


def test_text__several_read_outs(folder: Path) -> None:
    chosen = spec(folder, pool=["cls", "mean", "cls+mean"])
    model, tokens = random_model(chosen), tokens_of(chosen)
    found = LayerReader(chosen, model, "text")(tokens)
    for name in ("blocks.0", "blocks.1"):
        both = torch.cat([found[f"{name}.cls"], found[f"{name}.mean"]], 1)
        torch.testing.assert_close(found[f"{name}.cls+mean"], both, rtol=0, atol=0)
    for pool in ("cls", "mean"):
        alone = spec(folder, pool=pool)
        equal(found[f"blocks.1.{pool}"], LayerReader(alone, model, "text")(tokens)["blocks.1"])
    assert describe(chosen)["text"].pooling == "eot, mean, eot+mean"
    assert describe(chosen)["image"].pooling == "cls, mean, cls+mean"


# text towers of the hub


HUB: dict[str, dict[str, Any]] = {
    "roberta": {"model_type": "roberta", "vocab_size": 40, "hidden_size": 12,
                "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 24,
                "max_position_embeddings": 20, "pad_token_id": 1},
    "mt5": {"model_type": "mt5", "vocab_size": 40, "d_model": 12, "d_kv": 4, "d_ff": 24,
            "num_layers": 2, "num_heads": 3, "is_encoder_decoder": True,
            "feed_forward_proj": "gated-gelu", "pad_token_id": 0},
    "m2m_100": {"model_type": "m2m_100", "vocab_size": 40, "d_model": 12, "encoder_layers": 2,
                "encoder_attention_heads": 3, "encoder_ffn_dim": 24, "decoder_layers": 1,
                "decoder_attention_heads": 3, "decoder_ffn_dim": 24, "is_encoder_decoder": True,
                "max_position_embeddings": 20, "pad_token_id": 1},
}  # fmt: skip
HUB_BLOCKS = {
    "roberta": "transformer.encoder.layer",
    "mt5": "transformer.block",
    "m2m_100": "transformer.layers",
}


def hub_spec(folder: Path, kind: str, pooler: str, **changes: Any) -> ModelSpec:
    pytest.importorskip("transformers", reason="needs pip install 'consilience[transformers]'")
    (folder / kind).mkdir(exist_ok=True)
    (folder / kind / "config.json").write_text(json.dumps(HUB[kind]))
    text = {"hf_model_name": str(folder / kind), "hf_pooler_type": pooler,
            "hf_proj_type": "linear"}  # fmt: skip
    return spec(folder, text=text, **changes)


def hub_tokens(kind: str) -> torch.Tensor:
    tokens = torch.randint(5, 40, (3, 10), generator=torch.Generator().manual_seed(4))
    for row, length in enumerate((10, 6, 3)):
        tokens[row, length:] = HUB[kind]["pad_token_id"]
    return tokens


@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler"])
@pytest.mark.parametrize("kind", HUB)
def test_hub__blocks_and_embedding(folder: Path, kind: str, pooler: str) -> None:
    chosen = hub_spec(folder, kind, pooler, layers=["blocks.*", "embedding"], towers=["text"])
    model, tokens = random_model(chosen), hub_tokens(kind)
    found = LayerReader(chosen, model, "text")(tokens)
    assert list(found) == ["blocks.0", "blocks.1", "embedding"]
    outputs: dict[str, torch.Tensor] = {}
    for i in range(2):
        model.text.get_submodule(f"{HUB_BLOCKS[kind]}.{i}").register_forward_hook(
            lambda _m, _i, o, i=i: outputs.update(
                {f"blocks.{i}": o[0] if isinstance(o, tuple) else o}
            )
        )
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(found["embedding"], expected, rtol=1e-5, atol=1e-5)
    for name, output in outputs.items():
        for row, length in enumerate((10, 6, 3)):
            words = output[row, :length]
            equal(found[name][row], words.mean(0) if pooler == "mean_pooler" else words[0])
    info = describe(chosen)["text"]
    assert (info.layers, info.widths) == (tuple(found), (12, 12, 8))
    assert info.pooling == ("mean" if pooler == "mean_pooler" else "eot")
    assert info.flops > 0


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("roberta-ViT-B-32", 124.87),
        ("coca_roberta-ViT-B-32", 124.45),
        ("xlm-roberta-base-ViT-B-32", 278.27),
        ("xlm-roberta-large-ViT-H-14", 560.94),
        ("mt5-base-ViT-B-32", 277.86),
        ("mt5-xl-ViT-H-14", 1674.68),
        ("nllb-clip-base", 414.04),
        ("nllb-clip-large", 767.14),
    ],
)
def test_hub__described_without_a_download(
    monkeypatch: pytest.MonkeyPatch, name: str, millions: float
) -> None:
    """Compare with the parameters in open_clip's docs/model_profile.csv."""
    pytest.importorskip("transformers", reason="needs pip install 'consilience[transformers]'")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    entry = ModelSpec(source="open_clip", name=name, checkpoints={"a": {"init": {}}})
    text = describe(entry)["text"]
    assert text.n_parameters + text.n_embedding_parameters == pytest.approx(millions * 1e6, abs=2e4)


@pytest.mark.parametrize(
    ("name", "towers", "message"),
    [
        ("roberta-ViT-B-32", ["image"], r"the text tower of roberta-ViT-B-32 is a model of the "
         r"package transformers, which is not installed\. Install it: pip install "
         r"'consilience\[transformers\]'\."),
        ("ViT-B-16-SigLIP", ["image", "text"], r"the tokenizer of ViT-B-16-SigLIP is one of the "
         r"package transformers, which is not installed\. .*Or extract the image tower alone: "
         r"`towers: \[image\]`\."),
    ],
)  # fmt: skip
def test_hub__without_its_package(
    monkeypatch: pytest.MonkeyPatch, name: str, towers: Any, message: str
) -> None:
    monkeypatch.setattr("pipeline.extraction.torch_open_clip.find_spec", lambda _: None)
    entry = ModelSpec(
        source="open_clip", name=name, towers=towers, checkpoints={"a": {"init": {"seed": 3}}}
    )
    with pytest.raises(ModelError, match=rf"^model open_clip/{name}: {message}$"):
        describe(entry)


def test_hub__image_tower_needs_no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.extraction.torch_open_clip.find_spec", lambda _: None)
    entry = ModelSpec(
        source="open_clip",
        name="ViT-B-16-SigLIP",
        towers=("image",),
        checkpoints={"a": {"init": {}}},
    )
    assert describe(entry)["image"].layers[0] == "blocks.0"


# size


@pytest.mark.parametrize("top", [{}, {"custom_text": True}])
def test_describe__parameters_by_hand(folder: Path, top: dict[str, Any]) -> None:
    chosen = spec(folder, top=top)
    towers, model = describe(chosen), random_model(chosen)
    text = getattr(model, "text", model)
    embedding = text.token_embedding.weight.numel()
    everything = sum(p.numel() for p in model.parameters())
    assert towers["image"].n_parameters == sum(p.numel() for p in model.visual.parameters())
    assert towers["image"].n_embedding_parameters == 0
    assert towers["text"].n_embedding_parameters == embedding
    assert towers["text"].n_parameters == (
        everything - embedding - towers["image"].n_parameters - model.logit_scale.numel()
    )
    assert {k: (t.layers, t.widths, t.pooling) for k, t in towers.items()} == {
        "image": (("blocks.0", "blocks.1", "blocks.2"), (12, 12, 12), "cls"),
        "text": (("blocks.0", "blocks.1"), (12, 12), "eot"),
    }


def test_describe__published_figures() -> None:
    """Compare with open_clip's docs/model_profile.csv: ViT-B-32."""
    chosen = ModelSpec(source="open_clip", name="ViT-B-32", pretrained="laion2b_s34b_b79k")
    towers = describe(chosen)
    image, text = towers["image"], towers["text"]
    assert image.n_parameters == pytest.approx(87.85e6, abs=5e3)
    assert text.n_parameters + text.n_embedding_parameters == pytest.approx(63.43e6, abs=5e3)
    assert image.flops == pytest.approx(8.82e9, rel=1e-2)
    assert text.flops == pytest.approx(5.96e9, rel=1e-2)


def test_describe__decoder_is_no_part_of_the_text_tower() -> None:
    # once wrong: CoCa's decoder counts as text tower (139M)
    chosen = ModelSpec(source="open_clip", name="coca_ViT-B-32", pretrained="laion2b_s13b_b90k")
    text = describe(chosen)["text"]
    assert text.n_parameters + text.n_embedding_parameters == pytest.approx(63.56e6, rel=1e-2)


# names and tags


@pytest.mark.parametrize(
    ("name", "tag", "message"),
    [
        ("RN5", "openai", r"open_clip knows no architecture 'RN5'\. Did you mean 'RN50' .*"
         r"An architecture of your own needs `config:`, its JSON file\."),
        ("RN50", "opnai", r"open_clip has no weights 'opnai' for RN50\. Did you mean 'openai'\? "
         r"It has: openai, yfcc15m, cc12m\."),
        ("RN50", None, r"open_clip has no weights None for RN50\..* It has: openai"),
        ("RN50", "openai", r"the weights 'openai' were trained with QuickGELU, but RN50 uses GELU\."
         r" Use name: RN50-quickgelu\."),
        ("ViT-B-32", "laion400m_e32", r"trained with QuickGELU.* name: ViT-B-32-quickgelu\."),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "no weights 'laion2b_s34b_b79k' for ViT"),
    ],
)  # fmt: skip
def test_check__refused(name: str, tag: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SOURCE.check(ModelSpec(source="open_clip", name=name, pretrained=tag))


def test_check__quick_gelu_architecture_with_plain_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = ["mine"]
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: tags)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"url": "x"})
    with pytest.raises(
        InputError,
        match=r"the weights 'mine' were trained with GELU, but RN50-quickgelu uses QuickGELU\. "
        r"Use name: RN50\.",
    ):
        SOURCE.check(ModelSpec(source="open_clip", name="RN50-quickgelu", pretrained="mine"))


def test_check__remedy_is_another_name() -> None:
    # once wrong: roberta-ViT-B-32 is told to use
    # roberta-ViT-B-32 (its configuration says quick_gelu, its tag does not; there is no other)
    for name in open_clip.list_models():
        for tag in open_clip.list_pretrained_tags_by_model(name):
            try:
                SOURCE.check(ModelSpec(source="open_clip", name=name, pretrained=tag))
            except InputError as error:
                remedy = str(error).rpartition("Use name: ")[2].rstrip(".")
                assert remedy != name
                SOURCE.check(ModelSpec(source="open_clip", name=remedy, pretrained=tag))


@pytest.mark.parametrize("name", ["RN50-quickgelu", "ViT-B-32"])
def test_check__accepted(name: str) -> None:
    for tag in open_clip.list_pretrained_tags_by_model(name):
        if name.endswith("quickgelu") or tag.startswith("laion2b"):
            SOURCE.check(ModelSpec(source="open_clip", name=name, pretrained=tag))


def test_check__tags_of_checkpoints() -> None:
    def check(**checkpoints: Any) -> None:
        SOURCE.check(
            ModelSpec.model_validate(
                {"source": "open_clip", "name": "RN50", "pretrained": "cc", "id": "open_clip/a",
                 "checkpoints": checkpoints}
            )
        )  # fmt: skip

    with pytest.raises(InputError, match=r"no weights 'cc12' for RN50\. Did you mean 'cc12m'"):
        check(a={"pretrained": "cc12"}, b={"init": {}})
    with pytest.raises(InputError, match=r"no weights 'cc' for RN50"):
        check(a={})
    check(b={"init": {}}, c={"file": "x.pt"})
    SOURCE.check(ModelSpec(source="open_clip", name="RN50", checkpoints="runs/{step}.pt"))


@pytest.fixture
def known_architectures() -> Iterator[None]:
    """Put open_clip's list of architectures back."""
    paths = list(factory._MODEL_CONFIG_PATHS)
    yield
    factory._MODEL_CONFIG_PATHS[:] = paths
    factory._MODEL_CONFIGS.clear()
    factory._rescan_model_configs()


@pytest.mark.usefixtures("known_architectures")
def test_check__config_under_a_name_of_open_clips_own(folder: Path) -> None:
    # once wrong: a config named RN50 replaces open_clip's RN50 for
    # every other entry of the registry; refuse such a name
    own = open_clip.get_model_config("RN50")
    shadow = spec(folder, id="open_clip/a").model_copy(update={"name": "RN50"})
    with pytest.raises(InputError, match="RN50"):
        SOURCE.check(shadow)
    assert open_clip.get_model_config("RN50") == own


def test_check__config_is_missing(folder: Path) -> None:
    entry = {"source": "open_clip", "name": "a", "config": "none.json"}
    with pytest.raises(InputError, match=r"model open_clip/a: there is no file none.json"):
        SOURCE.check(ModelSpec.model_validate(entry))


def test_check__config_that_changed_is_read_anew(folder: Path) -> None:
    before = spec(folder, text={"width": 15})
    assert describe(before)["text"].widths == (15, 15)
    assert before.config is not None
    config = json.loads(Path(before.config).read_text())
    config["text_cfg"]["width"] = 18
    Path(before.config).write_text(json.dumps(config))
    assert describe(before)["text"].widths == (18, 18)


def test_check__local_folder(tmp_path: Path, folder: Path) -> None:
    entry = {"source": "open_clip", "name": f"local-dir:{tmp_path}", "id": "open_clip/mine"}
    chosen = ModelSpec.model_validate(entry)
    with pytest.raises(InputError, match=r"there is no /.*/open_clip_config.json"):
        SOURCE.check(chosen)
    of_folder = spec(folder)
    assert of_folder.config is not None
    config = json.loads(Path(of_folder.config).read_text())
    config["text_cfg"]["tokenizer_kwargs"]["bpe_path"] = str(folder / "words" / "bpe.txt.gz")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}})
    )
    towers = describe(chosen)
    assert towers["image"].widths == (12, 12, 12)
    assert towers["image"].preprocessing["mean"] == [0.1, 0.2, 0.3]
    torch.testing.assert_close(tokens_of(chosen), tokens_of(of_folder))


# building and weights


def test_build__wrong_arguments(folder: Path) -> None:
    with pytest.raises(
        ModelError,
        match=r"model open_clip/tiny: open_clip cannot build tiny-vit-\d+ with arguments "
        r"{'lairs': 3}: TypeError",
    ):
        describe(spec(folder, arguments={"lairs": 3}))


def test_build__is_quiet_and_leaves_logging_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    level = logging.getLogger().level
    seeded_build(SOURCE, spec(folder), 0)
    assert caplog.messages == []
    assert logging.getLogger().level == level


def test_load__seed(folder: Path) -> None:
    check_seed(SOURCE, spec(folder))


def training_checkpoint(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    """Make what open_clip's training saves."""
    return {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"{prefix}{k}": v for k, v in weights.items()},
        "optimizer": torch.optim.AdamW(torch.nn.Linear(2, 2).parameters()).state_dict(),
        "scaler": {"scale": 65536.0},
    }


@pytest.mark.parametrize("kind", ["safetensors", "bare", "training", "distributed"])
def test_load__file(folder: Path, tmp_path: Path, kind: str) -> None:
    chosen = spec(folder)
    weights = {k: v.clone() for k, v in seeded_build(SOURCE, chosen, 7).state_dict().items()}
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "epoch_3.pt")
    match kind:
        case "safetensors":
            save_file(weights, file)
        case "bare":
            torch.save(weights, file)
        case _:
            prefix = "module." if kind == "distributed" else ""
            torch.save(training_checkpoint(weights, prefix), file)
    check_fit(chosen, Checkpoint(file=str(file)))
    check_weights(load_checkpoint(SOURCE, chosen, Checkpoint(file=str(file))), weights)


def test_load__arbitrary_objects_are_not_unpickled(folder: Path, tmp_path: Path) -> None:
    mark, file = tmp_path / "touched", tmp_path / "w.pt"
    torch.save({"state_dict": {}, "extra": Touch(mark)}, file)
    with pytest.raises(
        ModelError, match=r"model open_clip/tiny: the checkpoint /.*w.pt holds a pickled"
    ):
        load_checkpoint(SOURCE, spec(folder), Checkpoint(file=str(file)))
    assert not mark.exists()


def test_load__misfit(folder: Path, tmp_path: Path) -> None:
    other = spec(folder, text={"width": 15})
    save_file(seeded_build(SOURCE, other, 0).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        ModelError,
        match=r"does not fit the architecture tiny-vit-\d+: positional_embedding is \(10, 15\) in "
        r"the file, \(10, 12\) in the model; .*; and \d+ more\. Set `arguments:`",
    ):
        load_checkpoint(SOURCE, spec(folder), Checkpoint(file=str(tmp_path / "w.safetensors")))


def older_scale(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "logit_scale": weights["logit_scale"].reshape(1)}


def no_bias(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in weights.items() if k != "logit_bias"}


def position_ids(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "text.transformer.embeddings.position_ids": torch.arange(10)[None]}


def text_at_the_top(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("text."): v for k, v in weights.items()}


CUSTOM = {"custom_text": True}
FORMATS: dict[str, tuple[dict[str, Any], Any]] = {
    "scale of one dimension": ({}, older_scale),
    "no bias": ({**CUSTOM, "init_logit_bias": -10.0}, no_bias),
    "no bias and one dimension": (
        {**CUSTOM, "init_logit_bias": -10.0}, lambda w: older_scale(no_bias(w)),
    ),
    "position_ids": (CUSTOM, position_ids),
    "text tower at the top": (CUSTOM, text_at_the_top),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", FORMATS)
def test_load__as_open_clip_does(folder: Path, tmp_path: Path, kind: str, prefix: str) -> None:
    top, change = FORMATS[kind]
    chosen, file = spec(folder, top=top), tmp_path / "epoch_3.pt"
    weights = {k: v.clone() for k, v in seeded_build(SOURCE, chosen, 7).state_dict().items()}
    torch.save(training_checkpoint(change(weights), prefix), file)
    expected = SOURCE.build(chosen)
    open_clip.load_checkpoint(expected, str(file))
    check_fit(chosen, Checkpoint(file=str(file)))
    found = load_checkpoint(SOURCE, chosen, Checkpoint(file=str(file)))
    check_weights(found, dict(expected.state_dict()))
    zero = {"logit_bias": torch.zeros(())} if kind.startswith("no bias") else {}
    check_weights(found, {**weights, **zero})


def test_load__another_size_is_not_resized(folder: Path, tmp_path: Path) -> None:
    """open_clip's own loader would interpolate."""
    other = spec(folder, text={"context_length": 8})
    save_file(seeded_build(SOURCE, other, 0).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        ModelError,
        match=r"positional_embedding is \(8, 12\) in the file, \(10, 12\) in the model\. "
        r"Set `arguments:` to those of the training run \(force_image_size, force_cont"
        r"ext_length, …\)\.",
    ):
        load_checkpoint(SOURCE, spec(folder), Checkpoint(file=str(tmp_path / "w.safetensors")))


def test_load__key_and_prefix(folder: Path, tmp_path: Path) -> None:
    chosen, file = spec(folder), tmp_path / "w.pt"
    first, second, third = (seeded_build(SOURCE, chosen, n).state_dict() for n in range(3))
    both = {f"{p}.{k}": v for p, w in (("a", first), ("b", second)) for k, v in w.items()}
    torch.save({"state_dict": both, "ema": third}, file)
    with pytest.raises(InputError, match=r"2 different sets .* key 'state_dict', 'ema'"):
        check_fit(chosen, Checkpoint(file=str(file)))
    with pytest.raises(InputError, match=r"2 different sets .* with the prefix 'a.', 'b.'\."):
        check_fit(chosen, Checkpoint(file=str(file), key="state_dict"))
    for choice, expected in (
        ({"key": "ema"}, third),
        ({"key": "state_dict", "prefix": "b"}, second),
        ({"prefix": "a"}, first),
    ):
        checkpoint = Checkpoint.model_validate({"file": str(file), **choice})
        check_weights(load_checkpoint(SOURCE, chosen, checkpoint), dict(expected))


def test_load__text_tower_left_out(folder: Path, tmp_path: Path) -> None:
    chosen, file = spec(folder, top=CUSTOM, towers=["image"]), tmp_path / "w.pt"
    weights = dict(seeded_build(SOURCE, chosen, 7).state_dict())
    torch.save({k: v for k, v in weights.items() if k.startswith("visual.")}, file)
    checkpoint = Checkpoint.model_validate({"file": str(file), "ignore": ["text.*", "logit_scale"]})
    check_fit(chosen, checkpoint)
    found = load_checkpoint(SOURCE, chosen, checkpoint).state_dict()
    initial = seeded_build(SOURCE, chosen, chosen.initial_seed(0)).state_dict()
    for name in weights:
        expected = weights if name.startswith("visual.") else initial
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)
    both = spec(folder, top=CUSTOM)
    with pytest.raises(
        InputError, match=r"layers of the text tower depend on \(blocks.0, blocks.1\)\. Load"
    ):
        check_fit(both, checkpoint)


def test_load__scale_left_out(folder: Path, tmp_path: Path) -> None:
    """No layer depends on it, though other weights at the top of the model are used by some."""
    chosen, file = spec(folder), tmp_path / "w.pt"
    weights = dict(seeded_build(SOURCE, chosen, 7).state_dict())
    del weights["logit_scale"]
    torch.save(weights, file)
    checkpoint = Checkpoint(file=str(file), ignore=["logit_scale"])
    check_fit(chosen, checkpoint)
    found = load_checkpoint(SOURCE, chosen, checkpoint).state_dict()
    for name in weights:
        torch.testing.assert_close(found[name], weights[name], rtol=0, atol=0)
    with pytest.raises(InputError, match=r"positional_embedding\] .* text tower depend on"):
        check_fit(
            chosen, Checkpoint(file=str(file), ignore=["logit_scale", "positional_embedding"])
        )


def test_load__revision(folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"model open_clip/tiny: open_clip's tags have no revision"
    ):
        load_checkpoint(SOURCE, spec(folder), Checkpoint(revision="abc"))


def test_load__published(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def create(name: str, **keywords: Any) -> torch.nn.Module:
        calls.append((name, keywords))
        return torch.nn.Identity()

    monkeypatch.setattr(open_clip, "create_model", create)
    chosen = ModelSpec(source="open_clip", name="RN50", pretrained="cc12m", arguments={"a": 1})
    load_checkpoint(SOURCE, chosen, Checkpoint())
    load_checkpoint(SOURCE, chosen, Checkpoint(pretrained="yfcc15m"))
    assert [(n, k["pretrained"], k["require_pretrained"], k["a"]) for n, k in calls] == [
        ("RN50", "cc12m", True, 1),
        ("RN50", "yfcc15m", True, 1),
    ]


def test_tokenizer__missing_vocabulary(folder: Path) -> None:
    chosen = spec(folder, text={"tokenizer_kwargs": {"bpe_path": "words/none.txt.gz"}})
    with pytest.raises(
        ModelError,
        match=r"model open_clip/tiny: its tokenizer cannot be loaded: FileNotFoundError: .*none",
    ):
        SOURCE.tokenizer(chosen)


# preprocessing


def test_preprocessing__overrides(folder: Path) -> None:
    given = {"input_size": 16, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7],
             "interpolation": "bilinear"}  # fmt: skip
    chosen = spec(folder, preprocessing=given)
    model = random_model(chosen)
    recorded = SOURCE.preprocessing(chosen, model)
    assert recorded["interpolation"] == "bilinear"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = SOURCE.image_transform(chosen, model)(Image.fromarray(pixels))
    expected = (pixels / 255 - np.array(given["mean"])) / np.array(given["std"])
    np.testing.assert_allclose(found.numpy(), expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("vision", "changes"),
    [
        ("vit", {"arguments": {"force_image_size": [24, 16]}}),
        ("timm", {"preprocessing": {"input_size": [24, 16]}}),
    ],
)
def test_preprocessing__size_of_the_input(folder: Path, vision: str, changes: Any) -> None:
    chosen = spec(folder, vision, **changes)
    info = describe(chosen)["image"]
    assert info.preprocessing["size"] == [24, 16]
    assert info.input_bytes == 3 * 24 * 16 * 4
    model = random_model(chosen)
    image = SOURCE.image_transform(chosen, model)(Image.new("RGB", (40, 50)))
    assert image.shape == (3, 24, 16)
    found = LayerReader(chosen, model, "image")(image[None])
    assert tuple(v.shape[1] for v in found.values()) == info.widths


def test_preprocessing__size_that_the_model_does_not_take(folder: Path) -> None:
    # once wrong: the check ran on the architecture's own size, and the extraction failed
    with pytest.raises(ModelError, match=r"an input of shape \(3, 24, 24\) fails"):
        describe(spec(folder, preprocessing={"input_size": 24}))


def test_preprocessing__no_crop(folder: Path) -> None:
    with pytest.raises(InputError, match=r"open_clip's preprocessing has no crop_pct"):
        describe(spec(folder, preprocessing={"crop_pct": 0.9}))


def test_example__is_what_the_towers_take(folder: Path) -> None:
    chosen = spec(folder, "resnet")
    model = random_model(chosen)
    image, text = (SOURCE.example(chosen, model, t) for t in ("image", "text"))
    assert (image.shape, image.dtype) == ((1, 3, 32, 32), torch.float32)
    assert (text.shape, text.dtype) == ((1, 10), torch.int64)
    assert image.device.type == text.device.type == "meta"
