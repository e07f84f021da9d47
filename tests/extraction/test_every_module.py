"""One architecture of every timm module, with random weights, against hooks and timm's own head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

from pipeline.config.model import ModelSpec
from pipeline.extraction.describe import describe
from pipeline.extraction.reader import EMBEDDING, LayerReader
from pipeline.extraction.torch_source import seeded_build
from pipeline.extraction.torch_timm import SOURCE

# module → its smallest architecture, and what makes that one smaller still
SMALLEST: dict[str, tuple[str, dict[str, int]]] = {
    "beit": ("beit_base_patch16_224", {"img_size": 96, "depth": 2}),
    "byoanet": ("haloregnetz_b", {}),
    "byobnet": ("test_byobnet", {}),
    "cait": ("cait_xxs24_224", {"img_size": 96, "depth": 2}),
    "coat": ("coat_tiny", {"img_size": 64}),
    "convit": ("convit_tiny", {"img_size": 96, "depth": 2}),
    "convmixer": ("convmixer_1024_20_ks9_p14", {"input_size": 64}),
    "convnext": ("test_convnext", {}),
    "cpubone": ("cpubone_nano", {}),
    "crossvit": ("crossvit_tiny_240", {}),
    "csatv2": ("csatv2", {"input_size": 64}),
    "cspnet": ("cs3darknet_focus_s", {}),
    "cspnext": ("cspnext_tiny", {}),
    "davit": ("davit_tiny", {"input_size": 64}),
    "deepseek_vit": ("deepseek_vit_412m", {"depth": 2, "img_size": 42}),
    "deit": ("deit_tiny_patch16_224", {"img_size": 96, "depth": 2}),
    "densenet": ("densenet121", {"input_size": 64}),
    "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {"input_size": 64}),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l1", {}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientnet": ("tinynet_e", {}),
    "efficientvim": ("efficientvim_m1", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {}),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 96, "depth": 2}),
    "fasternet": ("fasternet_t0", {}),
    "fastvit": ("fastvit_t8", {}),
    "focalnet": ("focalnet_tiny_srf", {"input_size": 64}),
    "gcvit": ("gcvit_xxtiny", {"img_size": 64}),
    "gemma4_vit": ("gemma4_vit_167m", {"depth": 2, "img_size": 48}),
    "ghostnet": ("ghostnet_050", {}),
    "hardcorenas": ("hardcorenas_a", {}),
    "hgnet": ("hgnetv2_b0", {}),
    "hiera": ("hiera_tiny_224", {"img_size": 64}),
    "hieradet_sam2": ("hieradet_small", {"input_size": 64}),
    "hrnet": ("hrnet_w18_small", {}),
    "iformer": ("iformer_t", {}),
    "inception_next": ("inception_next_atto", {}),
    "inception_resnet_v2": ("inception_resnet_v2", {"input_size": 96}),
    "inception_v3": ("inception_v3", {"input_size": 96}),
    "inception_v4": ("inception_v4", {"input_size": 96}),
    "lcnetv2": ("lcnetv2_small", {}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("test_coatnet", {}),
    "metaformer": ("poolformer_s12", {"input_size": 64}),
    "mlp_mixer": ("mixer_s32_224", {}),
    "mobilenetv3": ("lcnet_035", {}),
    "mobilenetv5": ("mobilenetv5_base", {"input_size": 64}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {"img_size": 64}),
    "naflexvit": ("naflexvit_base_patch16_siglip", {"img_size": 96, "depth": 2}),
    "nasnet": ("nasnetalarge", {"input_size": 64}),
    "nest": ("nest_tiny", {"img_size": 64}),
    "nextvit": ("nextvit_small", {"input_size": 64}),
    "nfnet": ("test_nfnet", {}),
    "pit": ("pit_ti_224", {}),
    "pnasnet": ("pnasnet5large", {"input_size": 64}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("qwen3_vit_88m", {"img_size": 96, "depth": 2}),
    "rdnet": ("rdnet_tiny", {"input_size": 64}),
    "regnet": ("regnetx_002", {}),
    "repghost": ("repghostnet_050", {}),
    "repvit": ("repvit_m0_9", {}),
    "res2net": ("res2net50_48w_2s", {"input_size": 64}),
    "resnest": ("resnest14d", {"input_size": 64}),
    "resnet": ("test_resnet", {}),
    "resnetv2": ("resnetv2_18", {"input_size": 64}),
    "rexnet": ("rexnet_100", {}),
    "selecsls": ("selecsls42", {"input_size": 64}),
    "senet": ("legacy_seresnet18", {"input_size": 64}),
    "sequencer": ("sequencer2d_s", {"img_size": 64}),
    "shvit": ("shvit_s1", {}),
    "sknet": ("skresnet18", {"input_size": 64}),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {"img_size": 64}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", {"img_size": 64}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {"img_size": 64}),
    "tiny_vit": ("tiny_vit_5m_224", {"input_size": 64}),
    "tnt": ("tnt_s_legacy_patch16_224", {"img_size": 96, "depth": 2}),
    "tresnet": ("tresnet_m", {"input_size": 64}),
    "twins": ("twins_svt_small", {"img_size": 64}),
    "vgg": ("vgg11", {"input_size": 64}),
    "visformer": ("visformer_tiny", {"img_size": 96, "depth": 2}),
    "vision_transformer": ("test_vit", {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "vision_transformer_relpos": ("test_vit_relpos", {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", {"img_size": 96, "depth": 2}),
    "vitamin": ("vitamin_small_224", {"img_size": 96, "depth": 2}),
    "volo": ("volo_d1_224", {"img_size": 64}),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xception": ("legacy_xception", {"input_size": 64}),
    "xception_aligned": ("xception41", {"input_size": 64}),
    "xcit": ("xcit_nano_12_p16_224", {}),
}
UNHOOKED = {
    "coat": "scales are read in the middle of blocks that run together",
    "crossvit": "a block returns a list of branches",
    "efficientvim": "a stage returns features before and after its downsampling",
    "gemma4_vit": "names are those of the modules within `encoder`",
    "hrnet": "a stage returns a list of resolutions",
    "mvitv2": "timm names blocks that are no modules",
    "pit": "a block returns features and class tokens",
    "tnt": "a block returns pixel and patch tokens",
    "twins": "timm names blocks that are no modules",
}
"""Modules none of whose named blocks gives one tensor of tokens to a hook, and why."""


def test_smallest__is_every_module() -> None:
    assert set(SMALLEST) == set(timm.list_modules())
    for module, (name, _) in SMALLEST.items():
        assert name in timm.list_models(module=module)


@pytest.mark.parametrize("module", SMALLEST)
def test_layer_reader__one_architecture_of_every_module(module: str) -> None:
    name, changes = SMALLEST[module]
    arguments = {k: v for k, v in changes.items() if k != "input_size"}
    size = {k: v for k, v in changes.items() if k == "input_size"}
    entry = {"source": "timm", "name": name, "arguments": arguments, "preprocessing": size,
             "checkpoints": {"a": {"init": {}}}}  # fmt: skip
    model: Any = seeded_build(SOURCE, ModelSpec.model_validate(entry), 0)
    blocks = SOURCE.blocks(model, "image")
    assert len(set(blocks)) == len(blocks) > 0
    assert all(blocks)
    chosen = ModelSpec.model_validate({**entry, "layers": [*blocks, EMBEDDING]})
    info = describe(chosen)["image"]
    shape = info.preprocessing["input_size"]
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))

    found = LayerReader(chosen, model, "image")(inputs)
    assert {n: v.shape[1] for n, v in found.items()} == dict(
        zip(info.layers, info.widths, strict=True)
    )
    assert all(len(v) == 2 and v.isfinite().all() for v in found.values())
    assert all((v[0] - v[1]).abs().max() > 0 for v in found.values())  # they look at the input

    hooked: dict[str, Any] = {}
    modules = dict(model.named_modules())
    for block in set(blocks) & set(modules):
        modules[block].register_forward_hook(_keep(hooked, block))
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(inputs), pre_logits=True)
    torch.testing.assert_close(found[EMBEDDING], expected, rtol=1e-5, atol=1e-5)

    outputs = {n: o for n, o in hooked.items() if isinstance(o, torch.Tensor)}
    assert bool(outputs) == (module not in UNHOOKED)
    for block, output in outputs.items():
        assert any(
            vectors.shape == found[block].shape
            and torch.allclose(vectors, found[block], rtol=1e-4, atol=1e-5)
            for vectors in _pooled(output, getattr(model, "num_prefix_tokens", 0), info.pooling)
        ), block


def _keep(kept: dict[str, Any], name: str) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        kept[name] = output.clone() if isinstance(output, torch.Tensor) else output

    return hook


def _pooled(output: torch.Tensor, n_prefix: int, pooling: str) -> list[torch.Tensor]:
    """Pool tokens by hand, and feature maps with channels first and channels last."""
    if output.ndim == 4:
        return [output.mean((2, 3)), output.mean((1, 2))]
    if pooling == "cls":
        return [output[:, 0]]
    return [output[:, n_prefix:].mean(1), output.mean(1)]  # some get a class token later on
