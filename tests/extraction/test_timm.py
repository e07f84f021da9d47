"""timm models, each layer checked against hooks of the test's own."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from towers import Touch, check_seed, check_weights, equal, hooked, randomised

from pipeline.config.model import Checkpoint, ModelSpec
from pipeline.errors import InputError, ModelError
from pipeline.extraction.describe import check_fit, describe
from pipeline.extraction.reader import LayerReader
from pipeline.extraction.torch_source import (
    load_checkpoint,
    seeded_build,
    torch_source,
)
from pipeline.extraction.torch_timm import SOURCE

TINY: dict[str, Any] = {"num_classes": 5}
VIT = {**TINY, "img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 3}
ARCHITECTURES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", 16, VIT),
    "vit_mean": ("vit_tiny_patch16_224", 16, {**VIT, "class_token": False, "global_pool": "avg"}),
    "vit_registers": ("vit_tiny_patch16_224", 16, {**VIT, "reg_tokens": 2}),
    "vit_registers_mean": (
        "vit_tiny_patch16_224",
        16,
        {**VIT, "class_token": False, "reg_tokens": 2, "global_pool": "avg"},
    ),
    "eva": ("eva02_tiny_patch14_224", 16, VIT),
    "xcit": ("xcit_nano_12_p16_224", 16, {**VIT, "patch_size": 8, "num_heads": 4, "embed_dim": 16}),
    "resnet": ("resnet18", 16, {**TINY, "layers": [1, 1, 1, 1], "channels": [4, 6, 8, 10]}),
    "convnext": (
        "convnext_atto",
        32,
        {**TINY, "patch_size": 2, "depths": [1, 1, 1, 1], "dims": [6, 8, 10, 12]},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        32,
        {**TINY, "img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12,
         "depths": [1, 2], "num_heads": [2, 4]},
    ),
}  # fmt: skip


def spec(kind: str, **changes: Any) -> ModelSpec:
    name, size, arguments = ARCHITECTURES[kind]
    entry = {
        "source": "timm",
        "id": f"timm/{kind.replace('_', '-')}",
        "name": name,
        "arguments": arguments,
        "preprocessing": {"input_size": size},
        "checkpoints": {"init": {"init": {}}},
        **changes,
    }
    return ModelSpec.model_validate(entry)


def random_model(chosen: ModelSpec) -> torch.nn.Module:
    model: torch.nn.Module = randomised(SOURCE, chosen, 0.2)
    return model


def batch(kind: str, n: int = 3) -> torch.Tensor:
    size = ARCHITECTURES[kind][1]
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(2))


def seen(model: torch.nn.Module, names: list[str], inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    return hooked(model, names, lambda: model(inputs))


# layers, against hooks


POOLS: dict[str, dict[str, Any]] = {
    # kind → pool → how the output of a block becomes one vector
    "vit": {
        "auto": lambda t: t[:, 0],
        "cls": lambda t: t[:, 0],
        "mean": lambda t: t[:, 1:].mean(1),
        "max": lambda t: t[:, 1:].amax(1),
        "flatten": lambda t: t[:, 1:].transpose(1, 2).flatten(1),
    },
    "vit_mean": {"auto": lambda t: t.mean(1), "max": lambda t: t.amax(1)},
    "vit_registers": {"auto": lambda t: t[:, 0], "mean": lambda t: t[:, 3:].mean(1)},
    "vit_registers_mean": {"auto": lambda t: t[:, 2:].mean(1)},
    "eva": {"auto": lambda t: t[:, 0], "mean": lambda t: t[:, 1:].mean(1)},
    "xcit": {"auto": lambda t: t.mean(1), "max": lambda t: t.amax(1)},
    "resnet": {
        "auto": lambda t: t.mean((2, 3)),
        "mean": lambda t: t.mean((2, 3)),
        "max": lambda t: t.amax((2, 3)),
        "flatten": lambda t: t.flatten(1),
    },
    "convnext": {"auto": lambda t: t.mean((2, 3))},
    "swin": {"auto": lambda t: t.mean((1, 2)), "max": lambda t: t.amax((1, 2))},  # channels last
}
BLOCKS = {
    "resnet": ["act1", "layer1", "layer2", "layer3", "layer4"],
    "convnext": ["stages.0", "stages.1", "stages.2", "stages.3"],
    "swin": ["layers.0", "layers.1"],
}


@pytest.mark.parametrize(("kind", "pool"), [(k, p) for k in POOLS for p in POOLS[k]])
def test_blocks__equal_hooks_pooled_by_hand(kind: str, pool: str) -> None:
    chosen = spec(kind, pool=pool)
    model = random_model(chosen)
    names = BLOCKS.get(kind, ["blocks.0", "blocks.1", "blocks.2"])
    found = LayerReader(chosen, model, "image")(batch(kind))
    assert list(found) == names
    expected = seen(model, names, batch(kind))
    for name in names:
        equal(found[name], POOLS[kind][pool](expected[name]))
    differ = [(found[a] - found[b]).abs().max() for a, b in pairwise(names)
              if found[a].shape == found[b].shape]  # fmt: skip
    assert all(d > 0.1 for d in differ)  # layers are not all one


@pytest.mark.parametrize("kind", POOLS)
def test_describe__is_what_the_model_gives(kind: str) -> None:
    chosen = spec(kind)
    info = describe(chosen)["image"]
    found = LayerReader(chosen, random_model(chosen), "image")(batch(kind))
    assert dict(zip(info.layers, info.widths, strict=True)) == {
        n: v.shape[1] for n, v in found.items()
    }
    auto_is_cls = kind in {"vit", "vit_registers", "eva"}
    assert info.pooling == ("cls" if auto_is_cls else "mean")
    assert info.n_embedding_parameters == 0
    assert info.preprocessing["input_size"] == [3, *2 * [ARCHITECTURES[kind][1]]]


def test_layer_reader__cls_without_a_class_token() -> None:
    for kind in ("resnet", "vit_mean", "vit_registers_mean"):
        with pytest.raises(
            InputError,
            match=rf"model timm/{kind.replace('_', '-')}, layer \w+.*: pool: cls needs a class "
            r"token, and there is none\. Use pool: mean, or auto\.",
        ):
            describe(spec(kind, pool="cls"))


READ_OUTS = ["cls", "mean", "cls+mean", "max", "auto"]


def test_pool__several_read_outs_of_one_pass() -> None:
    chosen = spec("vit_registers", pool=READ_OUTS)
    model, names = random_model(chosen), ["blocks.0", "blocks.1", "blocks.2"]
    passes: list[int] = []
    model.get_submodule("patch_embed").register_forward_hook(lambda *_: passes.append(1))
    found = LayerReader(chosen, model, "image")(batch("vit_registers"))
    assert len(passes) == 1
    assert list(found) == [f"{name}.{pool}" for name in names for pool in READ_OUTS]
    tokens = seen(model, names, batch("vit_registers"))
    for name in names:
        cls, patches = tokens[name][:, 0], tokens[name][:, 3:]  # without two registers
        equal(found[f"{name}.cls"], cls)
        equal(found[f"{name}.auto"], cls)
        equal(found[f"{name}.mean"], patches.mean(1))
        equal(found[f"{name}.max"], patches.amax(1))
        equal(found[f"{name}.cls+mean"], torch.cat([cls, patches.mean(1)], 1))
    info = describe(chosen)["image"]
    assert info.layers == tuple(found)
    assert info.widths == (12, 12, 24, 12, 12) * 3
    assert info.pooling == "cls, mean, cls+mean, max, cls"


@pytest.mark.parametrize("pool", READ_OUTS)
def test_pool__a_list_gives_what_single_ones_give(pool: str) -> None:
    model = random_model(spec("vit"))
    alone = LayerReader(spec("vit", pool=pool), model, "image")(batch("vit"))
    assert list(alone) == ["blocks.0", "blocks.1", "blocks.2"]
    listed = LayerReader(spec("vit", pool=[pool]), model, "image")(batch("vit"))
    assert list(listed) == [f"{name}.{pool}" for name in alone]
    for name, values in alone.items():
        torch.testing.assert_close(listed[f"{name}.{pool}"], values, rtol=0, atol=0)


@pytest.mark.parametrize("pool", ["cls+mean", ["mean", "cls+mean"]])
def test_pool__both_without_a_class_token(pool: Any) -> None:
    with pytest.raises(
        InputError,
        match=r"model timm/resnet, layer act1: pool: cls\+mean needs a class token, and there is "
        r"none\. Use pool: mean, or auto\.",
    ):
        describe(spec("resnet", pool=pool))


# the embedding


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_embedding__is_what_the_classifier_takes(kind: str) -> None:
    chosen = spec(kind, layers=["embedding", BLOCKS.get(kind, ["blocks.0"])[0]])
    model: Any = random_model(chosen)
    found = LayerReader(chosen, model, "image")(batch(kind))
    assert list(found) == [BLOCKS.get(kind, ["blocks.0"])[0], "embedding"]
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(batch(kind)), pre_logits=True)
        equal(model.get_classifier()(found["embedding"]), model(batch(kind)))
    torch.testing.assert_close(found["embedding"], expected, rtol=1e-5, atol=1e-5)
    info = describe(chosen)["image"]
    assert info.layers == tuple(found)
    assert info.widths == tuple(v.shape[1] for v in found.values())


def test_embedding__in_the_pass_of_the_blocks_and_not_pooled() -> None:
    chosen = spec("vit", layers=["blocks.?", "embedding"], pool=["mean", "max"])
    model = random_model(chosen)
    passes: list[int] = []
    model.get_submodule("patch_embed").register_forward_hook(lambda *_: passes.append(1))
    found = LayerReader(chosen, model, "image")(batch("vit"))
    assert len(passes) == 1
    names = [f"blocks.{i}.{pool}" for i in range(3) for pool in ("mean", "max")]
    assert list(found) == [*names, "embedding"]
    alone = spec("vit", layers="embedding")
    equal(LayerReader(alone, model, "image")(batch("vit"))["embedding"], found["embedding"])
    assert describe(alone)["image"].pooling == "none"
    assert describe(chosen)["image"].pooling == "mean, max"


@pytest.mark.parametrize("layers", ["blocks", "all", "last", "*", {"every": 1}, ["emb*", "*"]])
def test_embedding__only_where_it_is_named(layers: Any) -> None:
    chosen = spec("vit", layers=layers)
    if layers == ["emb*", "*"]:
        with pytest.raises(InputError, match=r"no layer of the image tower matches 'emb\*'"):
            describe(chosen)
    elif layers == "*":  # the dropout of a head that does not run
        assert "embedding" not in LayerReader(chosen, random_model(chosen), "image").layers
    else:
        assert "embedding" not in describe(chosen)["image"].layers


def test_embedding__of_a_head_that_does_not_pool() -> None:
    arguments = {**VIT, "global_pool": ""}
    with pytest.raises(
        ModelError,
        match=r"model timm/vit: vit_tiny_patch16_224 has no embedding: its head does not pool; see "
        r"`global_pool` among its arguments\. Leave `embedding` out of `layers:`\.",
    ):
        describe(spec("vit", arguments=arguments, layers=["blocks.0", "embedding"]))


def test_embedding__of_a_model_without_a_head() -> None:
    entry = {"source": "timm", "name": "gemma4_vit_167m_enc", "checkpoints": {"a": {"init": {}}},
             "arguments": {"depth": 1, "img_size": 48}, "layers": ["embedding"]}  # fmt: skip
    with pytest.raises(
        ModelError,
        match=r"model timm/gemma4_vit_167m_enc: gemma4_vit_167m_enc has no embedding: timm offers "
        r"no features before a classifier: .*[^.]\. Leave `embedding` out",
    ):
        describe(ModelSpec.model_validate(entry))


# which layers


def test_timm_blocks__of_one_module_or_none() -> None:
    # once wrong: CrossViT's first branch was lost under the names of its second, CoaT kept one of
    # three scales, and a stem without a name could not be stored
    def blocks(name: str) -> list[str]:
        return SOURCE.blocks(timm.create_model(name), "image")

    branches = ["blocks.0", "blocks.1", "blocks.2"]
    assert blocks("crossvit_tiny_240") == [*branches, *(f"{n}-2" for n in branches)]
    scales = ["parallel_blocks", "parallel_blocks-2", "parallel_blocks-3"]
    assert blocks("coat_tiny") == ["serial_blocks1", *scales]
    assert blocks("tresnet_m") == ["stem", *(f"body.layer{i}" for i in range(1, 5))]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("blocks", ["blocks.0", "blocks.1", "blocks.2"]),
        ("last", ["blocks.2"]),
        ({"every": 1}, ["blocks.0", "blocks.1", "blocks.2"]),
        ({"every": 2}, ["blocks.0", "blocks.2"]),
        ({"every": 3}, ["blocks.2"]),
        ({"every": 9}, ["blocks.2"]),
        (["blocks.2", "blocks.0"], ["blocks.0", "blocks.2"]),
        ("blocks.?", ["blocks.0", "blocks.1", "blocks.2"]),
        (["embedding", "blocks"], ["blocks.0", "blocks.1", "blocks.2", "embedding"]),
        (["blocks.0.mlp", "last"], ["blocks.0.mlp", "blocks.2"]),
        (["blocks.1.mlp.fc?", "blocks.[01]"],
         ["blocks.0", "blocks.1", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]),
        (["blocks.0", "blocks.*.mlp", "blocks.0.m*p"],
         ["blocks.0", "blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp"]),
    ],
)  # fmt: skip
def test_layer_reader__layers(layers: Any, expected: list[str]) -> None:
    chosen = spec("vit", layers=layers)
    assert list(describe(chosen)["image"].layers) == expected
    assert list(LayerReader(chosen, random_model(chosen), "image")(batch("vit"))) == expected


def test_layer_reader__every_counts_from_the_last() -> None:
    assert describe(spec("resnet", layers={"every": 2}))["image"].layers == (
        "act1", "layer2", "layer4",
    )  # fmt: skip


def test_layer_reader__all_layers_of_a_resnet_equal_hooks() -> None:
    chosen = spec("resnet", layers="all")
    model = random_model(chosen)
    found = LayerReader(chosen, model, "image")(batch("resnet"))
    # in the order of the modules; the head is not reached
    ran = [n for n, _ in model.named_modules() if n and not n.startswith(("global_pool", "fc"))]
    assert list(found) == ran
    expected = seen(model, ran, batch("resnet"))
    for name in ran:
        equal(found[name], expected[name].mean((2, 3)))
    assert list(describe(chosen)["image"].layers) == ran


def test_layer_reader__a_later_in_place_operation_overwrites_nothing() -> None:
    chosen = spec("resnet", layers=["bn1", "act1", "layer1.0.bn1"])
    model = random_model(chosen)
    assert model.get_submodule("act1").inplace  # else this test shows nothing
    found = LayerReader(chosen, model, "image")(batch("resnet"))
    by_hand = model.get_submodule("bn1")(model.get_submodule("conv1")(batch("resnet")))
    assert by_hand.min() < -0.1
    equal(found["bn1"], by_hand.mean((2, 3)))
    equal(found["act1"], by_hand.relu().mean((2, 3)))
    assert (found["layer1.0.bn1"] < 0).any()


def test_layer_reader__hooks_are_gone_afterwards() -> None:
    chosen = spec("vit", layers="*.mlp")
    model = random_model(chosen)
    reader = LayerReader(chosen, model, "image")
    reader(batch("vit"))
    with pytest.raises((RuntimeError, ValueError)):
        reader(torch.zeros(1, 3, 5, 5, 5))
    assert not any(m._forward_hooks for m in model.modules())


def test_layer_reader__unknown_layer() -> None:
    with pytest.raises(
        InputError,
        match=r"model timm/vit: no layer of the image tower matches 'block.3'\. Did you mean "
        r"'blocks.\d.*Blocks: blocks.0, blocks.1, blocks.2\.",
    ):
        describe(spec("vit", layers=["blocks.0", "block.3"]))


def test_layer_reader__layer_that_is_not_reached() -> None:
    with pytest.raises(
        ModelError, match=r"model timm/resnet: layers fc gave no output of one row per stimulus .*"
        r"Leave them out of `layers:`",
    ):  # fmt: skip
        describe(spec("resnet", layers=["layer1", "fc"]))


def test_layer_reader__hooked_channels_last() -> None:
    # once wrong: a hooked (batch, height, width, channels) is pooled
    # over width and channels, and rows of pixels come out as features
    chosen = spec("swin", layers=["layers.0.blocks.0"])
    model = random_model(chosen)
    expected = seen(model, ["layers.0.blocks.0"], batch("swin"))["layers.0.blocks.0"]
    assert expected.shape == (3, 16, 16, 12)
    equal(
        LayerReader(chosen, model, "image")(batch("swin"))["layers.0.blocks.0"],
        expected.mean((1, 2)),
    )


def test_layer_reader__hooked_rows_that_are_not_stimuli() -> None:
    # once wrong: windows pass for stimuli (48 rows of a batch of 3)
    chosen = spec("swin", layers=["layers.0.blocks.0.attn"])
    with pytest.raises(
        ModelError, match=r"layers layers.0.blocks.0.attn gave no output of one row"
    ):
        LayerReader(chosen, random_model(chosen), "image")(batch("swin"))


def test_layer_reader__hooked_class_token() -> None:
    # once wrong: `auto` is the class token for blocks, yet the mean over
    # all tokens, that one included, for hooked layers of the same model
    chosen = spec("vit", layers=["blocks.0", "blocks.1.norm1"])
    model = random_model(chosen)
    expected = seen(model, ["blocks.1.norm1"], batch("vit"))["blocks.1.norm1"]
    equal(LayerReader(chosen, model, "image")(batch("vit"))["blocks.1.norm1"], expected[:, 0])


class NoFeatures(torch.nn.Module):
    """A model that offers no blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3)
        self.pretrained_cfg: dict[str, Any] = {"input_size": (3, 8, 8)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.first(x).relu()
        return out


def test_layer_reader__model_without_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: NoFeatures())
    for i, layers in enumerate(["blocks", "last", {"every": 2}]):
        with pytest.raises(
            InputError, match=r"model timm/n: resnet18 does not offer its blocks\. Name modules"
        ):
            describe(spec("resnet", id="timm/n", arguments={"unknown": i}, layers=layers))
    model = NoFeatures().eval()
    found = LayerReader(spec("resnet", layers=["first"]), model, "image")(batch("resnet"))
    equal(found["first"], model.first(batch("resnet")).mean((2, 3)))


# size


def test_count_parameters__without_the_head() -> None:
    info = describe(ModelSpec(source="timm", name="vit_tiny_patch16_224.augreg_in21k"))["image"]
    assert info.n_parameters == 5_524_416  # 5.5M; 9.7M with the head of 21,843 classes
    with torch.device("meta"):
        whole = timm.create_model("vit_tiny_patch16_224.augreg_in21k")
    assert sum(p.numel() for p in whole.parameters()) - 193 * 21_843 == info.n_parameters


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_count_parameters__do_not_depend_on_classes(kind: str) -> None:
    name, _, arguments = ARCHITECTURES[kind]
    few = describe(spec(kind))["image"].n_parameters
    many = describe(spec(kind, arguments={**arguments, "num_classes": 500}))["image"].n_parameters
    none = timm.create_model(name, **{**arguments, "num_classes": 0})
    assert few == many == sum(p.numel() for p in none.parameters())


def test_count_parameters__two_heads() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", **VIT)
    heads = 2 * 5 * 13
    found = SOURCE.count_parameters(model, "image")
    assert found == (sum(p.numel() for p in model.parameters()) - heads, 0)


def test_describe__flops_by_hand() -> None:
    tokens, width = 17, 12
    patches = 16 * (3 * 4 * 4) * width
    attention = tokens * width * 3 * width + 2 * tokens * tokens * width + tokens * width * width
    mlp = 2 * tokens * width * 4 * width
    assert describe(spec("vit"))["image"].flops == 2 * (patches + 3 * (attention + mlp))


# names


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "resnet5"}, r"timm knows no architecture 'resnet5'\. Did you mean 'resnet50'"),
        (
            {"name": "resnet50.a1_in2k"},
            r"timm has no weights 'a1_in2k' for resnet50\. Did you mean 'a1_in1k'.* It has: .*a1_",
        ),
        ({"name": "vit_tiny_patch16_224.x"}, r"no weights 'x' for vit_tiny.* It has: augreg_in21k"),
    ],
)
def test_check__unknown_name(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SOURCE.check(ModelSpec.model_validate({"source": "timm", **entry}))


def unpublished() -> str:
    return next(n for n in timm.list_models("resnet*") if not timm.is_model_pretrained(n))


def test_check__nothing_published() -> None:
    name = unpublished()
    for checkpoints in ({}, {"a": {"init": {}}, "b": {}}):
        with pytest.raises(
            InputError,
            match=rf"timm has no published weights for '{name}'\. Name a checkpoint file "
            r"\(checkpoints: path/with/{step}.pth.tar\) or an initialisation",
        ):
            SOURCE.check(ModelSpec(source="timm", name=name, checkpoints=checkpoints))
    for enough in ("runs/{step}.pth", {"a": {"init": {}}}, {"a": {"file": "x.pth"}}):
        SOURCE.check(ModelSpec(source="timm", name=name, checkpoints=enough))


def test_build__wrong_arguments() -> None:
    with pytest.raises(
        ModelError,
        match=r"model timm/a: timm cannot build resnet18 with arguments {'lairs': 3}: TypeError: .*"
        r"'lairs'",
    ):
        describe(spec("resnet", id="timm/a", arguments={"lairs": 3}))


def test_build__arguments_that_do_not_go_together() -> None:
    # once wrong: an IndexError of timm's gets through as it is
    arguments = {"patch_size": 2, "depths": [1, 1], "dims": [6, 8]}
    with pytest.raises(ModelError, match=r"timm cannot build convnext_atto with arguments"):
        describe(spec("convnext", arguments=arguments))


def test_tokenizer__images_only() -> None:
    with pytest.raises(InputError, match=r"model timm/vit: timm models have no text tower"):
        torch_source("timm").tokenizer(spec("vit"))


# weights


def test_load__seed() -> None:
    check_seed(SOURCE, spec("vit"))


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What timm is asked to create; nothing is downloaded."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def create(name: str, **keywords: Any) -> torch.nn.Module:
        calls.append((name, keywords))
        return torch.nn.Identity()

    monkeypatch.setattr(timm, "create_model", create)
    return calls


def test_load__published(created: list[tuple[str, dict[str, Any]]]) -> None:
    chosen = ModelSpec(source="timm", name="resnet18.a1_in1k", arguments={"drop_rate": 0.1})
    load_checkpoint(SOURCE, chosen, Checkpoint())
    load_checkpoint(SOURCE, chosen, Checkpoint(revision="abc"))
    assert [c[0] for c in created] == 2 * ["resnet18.a1_in1k"]
    assert created[0][1] == {"drop_rate": 0.1, "pretrained": True, "pretrained_cfg_overlay": None}
    assert created[1][1]["pretrained_cfg_overlay"] == {"hf_hub_id": "timm/resnet18.a1_in1k@abc"}


def test_load__another_tag(created: list[tuple[str, dict[str, Any]]]) -> None:
    # once wrong: a checkpoint's `pretrained` is passed over, and
    # the entry's own weights are loaded under the other's name
    chosen = ModelSpec(
        source="timm",
        name="resnet18.a1_in1k",
        checkpoints={"fb": {"pretrained": "fb_ssl_yfcc100m_ft_in1k"}, "none": {"pretrained": "x"}},
    )
    with pytest.raises(InputError, match=r"timm has no weights 'x' for resnet18"):
        SOURCE.check(chosen)
    load_checkpoint(SOURCE, chosen, chosen.checkpoint_map()["fb"])
    assert created[0][0] == "resnet18.fb_ssl_yfcc100m_ft_in1k"


def state(chosen: ModelSpec, seed: int = 7) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in seeded_build(SOURCE, chosen, seed).state_dict().items()}


def training_checkpoint(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Make what timm's train.py saves."""
    model = torch.nn.Linear(2, 2)
    return {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": OrderedDict(weights),
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "version": 2,
        "args": argparse.Namespace(model="resnet18", lr=0.1, betas=(0.9, 0.99)),
        "metric": 71.3,
    }


def save(kind: str, weights: dict[str, torch.Tensor], folder: Path) -> Path:
    prefixed = {f"module.{k}": v for k, v in weights.items()}
    match kind:
        case "safetensors":
            save_file(weights, folder / "w.safetensors")
            return folder / "w.safetensors"
        case "bare":
            content: Any = weights
        case "timm":
            content = training_checkpoint(weights)
        case "module":
            content = {"state_dict": prefixed}
        case "model":
            content = {"model": weights, "epoch": 1}
    torch.save(content, folder / "w.pth.tar")
    return folder / "w.pth.tar"


@pytest.mark.parametrize("kind", ["safetensors", "bare", "timm", "module", "model"])
def test_load__file(kind: str, tmp_path: Path) -> None:
    chosen = spec("resnet")
    weights = state(chosen)
    file = str(save(kind, weights, tmp_path))
    check_fit(chosen, Checkpoint(file=file))
    model = load_checkpoint(SOURCE, chosen, Checkpoint(file=file))
    assert not model.training
    check_weights(model, weights)


def test_load__arbitrary_objects_are_not_unpickled(tmp_path: Path) -> None:
    mark, file = tmp_path / "touched", tmp_path / "w.pth"
    torch.save({"state_dict": {}, "extra": Touch(mark)}, file)
    with pytest.raises(
        ModelError,
        match=r"model timm/resnet: the checkpoint /.*w.pth holds a pickled getattr, which "
        r"could run code when loaded\. Save the state dict alone: torch.save\(model.state_dict",
    ):
        load_checkpoint(SOURCE, spec("resnet"), Checkpoint(file=str(file)))
    assert not mark.exists()
    with file.open("rb") as opened, pytest.raises((pickle.UnpicklingError, RuntimeError)):
        torch.load(opened, weights_only=True)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 broken zip"])
def test_load__unreadable_file(name: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(
        ModelError,
        match=r"model timm/resnet: the checkpoint /.*/w\.\w+ cannot be read: \w+: .*"
        r"Replace the file or drop the checkpoint\.",
    ):
        load_checkpoint(SOURCE, spec("resnet"), Checkpoint(file=str(file)))
    with pytest.raises(InputError, match=r"w\.\w+ cannot be read: \w+: .*drop the checkpoint\.$"):
        check_fit(spec("resnet"), Checkpoint(file=str(file)))


def test_load__file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model timm/resnet: the checkpoint /.*/w.pth is gone"):
        load_checkpoint(SOURCE, spec("resnet"), Checkpoint(file=str(tmp_path / "w.pth")))


MISFIT = (
    r"model timm/resnet: the checkpoint /.*/w.safetensors does not fit the architecture resnet18: "
    r"fc.weight is \(7, 10\) in the file, \(5, 10\) in the model; fc.bias is \(7,\) in the file, "
    r"\(5,\) in the model\. Set `arguments:` to those of the training run \(num_classes, "
)


def test_load__misfit(tmp_path: Path) -> None:
    arguments = {**ARCHITECTURES["resnet"][2], "num_classes": 7}
    file = str(save("safetensors", state(spec("resnet", arguments=arguments)), tmp_path))
    with pytest.raises(ModelError, match=MISFIT):
        load_checkpoint(SOURCE, spec("resnet"), Checkpoint(file=file))
    with pytest.raises(InputError, match=MISFIT):
        check_fit(spec("resnet"), Checkpoint(file=file))


def test_load__missing_and_unknown_weights(tmp_path: Path) -> None:
    weights = state(spec("resnet"))
    for name in ("fc.weight", "fc.bias"):
        weights[f"head.{name}"] = weights.pop(name)
    file = str(save("safetensors", weights, tmp_path))
    with pytest.raises(
        ModelError,
        match=r"resnet18: fc.weight is missing in the file; fc.bias is missing in the file; "
        r"head.fc.\w+ is in the file only; and 1 more\. Set",
    ):
        load_checkpoint(SOURCE, spec("resnet"), Checkpoint(file=file))


# preprocessing


def test_preprocessing__published() -> None:
    chosen = ModelSpec(source="timm", name="vit_tiny_patch16_224.augreg_in21k")
    config = SOURCE.preprocessing(chosen, SOURCE.build(chosen, device="meta"))
    assert config["input_size"] == (3, 224, 224)
    assert config["mean"] == (0.5, 0.5, 0.5)
    assert config["interpolation"] == "bicubic"
    assert config["crop_pct"] == 0.9


def test_preprocessing__overrides() -> None:
    given = {
        "input_size": 16,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.6, 0.7],
        "interpolation": "nearest",
        "crop_pct": 1.0,
    }
    chosen = spec("resnet", preprocessing=given)
    model = seeded_build(SOURCE, chosen, 0)
    transform = SOURCE.image_transform(chosen, model)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = transform(Image.fromarray(pixels))
    expected = (pixels / 255 - np.array(given["mean"])) / np.array(given["std"])
    np.testing.assert_allclose(found.numpy(), expected.transpose(2, 0, 1), atol=1e-5)
    assert SOURCE.example(chosen, model, "image").shape == (1, 3, 16, 16)
    assert SOURCE.example(chosen, model, "image").device.type == "meta"


def photo(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [24, [24, 24], [24, 16], [16, 24]])
@pytest.mark.parametrize("key", ["img_size", "input_size", "both"])
def test_preprocessing__size_of_the_input(size: Any, key: str) -> None:
    arguments = {**VIT, "img_size": size}
    if key == "input_size":
        arguments |= {"dynamic_img_size": True, "img_size": 16}
    preprocessing = {} if key == "img_size" else {"input_size": size}
    chosen = spec("vit", arguments=arguments, preprocessing=preprocessing)
    height, width = [size, size] if isinstance(size, int) else size
    info = describe(chosen)["image"]
    assert info.preprocessing["input_size"] == [3, height, width]
    model = random_model(chosen)
    found = torch.stack([SOURCE.image_transform(chosen, model)(photo(40, 30))])
    config = {**timm.data.resolve_model_data_config(model), "input_size": (3, height, width)}
    expected = timm.data.create_transform(**config)(photo(40, 30))[None]
    assert expected.shape == (1, 3, height, width)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    last = LayerReader(chosen, model, "image")(found)["blocks.2"]
    equal(last, seen(model, ["blocks.2"], expected)["blocks.2"][:, 0])


def test_preprocessing__input_size_outranks_img_size() -> None:
    arguments = {**VIT, "img_size": 24, "dynamic_img_size": True}
    chosen = spec("vit", arguments=arguments, preprocessing={"input_size": [8, 16]})
    assert describe(chosen)["image"].preprocessing["input_size"] == [3, 8, 16]


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vit_tiny_patch16_224.augreg_in21k"])
def test_preprocessing__grey_images(name: str) -> None:
    chosen = ModelSpec(source="timm", name=name, arguments={"in_chans": 1, "num_classes": 3})
    model = SOURCE.build(chosen)
    config = timm.data.resolve_model_data_config(model)
    mean, std = (float(np.mean(config[key])) for key in ("mean", "std"))
    transform = timm.data.create_transform(
        **{**config, "input_size": (1, 224, 224), "mean": (mean,), "std": (std,)}
    )
    expected = transform(photo(300, 260).convert("L"))
    found = SOURCE.image_transform(chosen, model)(photo(300, 260))
    assert found.shape == (1, 224, 224)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert describe(chosen)["image"].preprocessing["input_size"] == [1, 224, 224]
    first = dict(model.named_modules())["conv1" if "resnet" in name else "patch_embed.proj"]
    assert first.in_channels == 1
    assert all(
        v.isfinite().all() for v in LayerReader(chosen, model, "image")(found[None]).values()
    )


@pytest.mark.parametrize(
    ("arguments", "preprocessing", "message"),
    [
        ({"in_chans": 4}, {}, r"it takes 4 channels, and an image has 3, or 1 where it is grey\."),
        (
            {"in_chans": 1},
            {"mean": [0.1, 0.2, 0.3]},
            r"preprocessing.mean has 3 values\. Give one for each channel of .* input \(1\), or",
        ),
        (
            {},
            {"std": [0.1, 0.2]},
            r"preprocessing.std has 2 values\. .* input \(3\), or one for all",
        ),
    ],
)
def test_preprocessing__channels(arguments: Any, preprocessing: Any, message: str) -> None:
    chosen = spec("resnet", arguments={**TINY, **arguments}, preprocessing=preprocessing)
    with pytest.raises(InputError, match=f"model timm/resnet: {message}"):
        describe(chosen)


def test_preprocessing__crop() -> None:
    chosen = spec("resnet", preprocessing={"input_size": 8, "crop_pct": 0.5, "std": [1, 1, 1],
                                           "mean": [0, 0, 0]})  # fmt: skip
    transform = SOURCE.image_transform(chosen, seeded_build(SOURCE, chosen, 0))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = transform(Image.fromarray(pixels)).numpy()
    np.testing.assert_allclose(found, pixels[4:12, 4:12].transpose(2, 0, 1) / 255, atol=1e-6)
