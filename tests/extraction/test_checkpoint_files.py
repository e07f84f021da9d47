"""Checkpoint files of many formats: loaded equal to the bit, or refused with what to do."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import timm
import torch
from safetensors.torch import save_file
from towers import check_weights

from pipeline.config.model import Checkpoint, ModelSpec
from pipeline.errors import InputError, ModelError
from pipeline.extraction.checkpoint_files import read_checkpoint
from pipeline.extraction.describe import check_fit
from pipeline.extraction.torch_source import load_checkpoint, load_weights, seeded_build
from pipeline.extraction.torch_timm import SOURCE

VIT = {
    "num_classes": 5, "img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3,
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet18", {"num_classes": 5, "layers": [1, 1, 1, 1], "channels": [4, 6, 8, 10]}),
    "vit": ("vit_tiny_patch16_224", VIT),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {**VIT, "num_classes": 0}),
    "convnext": (
        "convnext_atto",
        {"num_classes": 5, "depths": [1, 1, 1, 1], "dims": [6, 8, 10, 12],
         "conv_mlp": False, "use_grn": False, "ls_init_value": 1e-6},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"num_classes": 5, "img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12,
         "depths": [1, 2], "num_heads": [2, 4]},
    ),
}  # fmt: skip
Weights = dict[str, torch.Tensor]


def spec(kind: str = "resnet", **changes: Any) -> ModelSpec:
    name, arguments = ARCHITECTURES[kind]
    entry = {"source": "timm", "id": f"timm/{kind}", "name": name, "arguments": arguments}
    return ModelSpec.model_validate({**entry, "checkpoints": {"a": {"init": {}}}, **changes})


def state(chosen: ModelSpec, seed: int = 7) -> Weights:
    """Give weights of which no two are equal, buffers included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: w + torch.rand(w.shape, generator=generator)
        if w.is_floating_point()
        else w + seed
        for name, w in seeded_build(SOURCE, chosen, seed).state_dict().items()
    }  # fmt: skip


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}{name}": w for name, w in weights.items()}


def trained(weights: Weights, name: str = "state_dict", **more: Any) -> dict[str, Any]:
    """Make what a training program saves."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    return {"epoch": 3, name: weights, "optimizer": optimizer.state_dict(), **more}


def refused(chosen: ModelSpec, message: str, checkpoint: Checkpoint) -> None:
    """Check that plan and extraction say the same."""
    with pytest.raises(InputError, match=message) as planned:
        check_fit(chosen, checkpoint)
    with pytest.raises(ModelError, match=message) as extracted:
        load_checkpoint(SOURCE, chosen, checkpoint)
    assert str(planned.value) == str(extracted.value)


def loaded(chosen: ModelSpec, file: Path, **choice: Any) -> Weights:
    checkpoint = Checkpoint(file=str(file), **choice)
    check_fit(chosen, checkpoint)
    return load_checkpoint(SOURCE, chosen, checkpoint).state_dict()


def same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0)


# where the weights are


LAYOUTS: dict[str, Callable[[Weights], Any]] = {
    "bare.pth": lambda w: w,
    "parameters.pt": lambda w: collections.OrderedDict(
        (k, torch.nn.Parameter(v) if v.is_floating_point() else v) for k, v in w.items()
    ),
    "timm.pth.tar": lambda w: trained(w, args=argparse.Namespace(lr=0.1)),
    "module.tar": lambda w: trained(prefixed("module.", w)),
    "compiled.pt": lambda w: trained(prefixed("_orig_mod.module.", w)),
    "model.bin": lambda w: trained(w, "model"),
    "model_state.th": lambda w: trained(w, "model_state_dict"),
    "net.ckpt": lambda w: trained(w, "net"),
    "network.pt": lambda w: trained(w, "network"),
    "teacher.pth": lambda w: {"teacher": prefixed("module.backbone.", w), "center": {}},
    "lightning.ckpt": lambda w: trained(
        {**prefixed("model.", w), "criterion.weight": torch.ones(5)}, hyper_parameters={"lr": 0.1}
    ),
    "nested.pt": lambda w: {"ema": {"module": w}},
    "averaged.pt": lambda w: {"n_averaged": torch.tensor(3), **prefixed("module.", w)},
    "simclr.pt": lambda w: {**prefixed("backbone.", w), "projector.0.weight": torch.ones(3, 3)},
    "beside_numbers.pt": lambda w: {"epoch": 3, "note": "", **w},
    "odd_keys.pt": lambda w: {0: "a", ("b", 1): {"c": torch.ones(2)}, "state_dict": w},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_load__layout(name: str, tmp_path: Path) -> None:
    chosen = spec()
    weights = state(chosen)
    torch.save(LAYOUTS[name](weights), tmp_path / name)
    same(loaded(chosen, tmp_path / name), weights)


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
def test_load__safetensors(prefix: str, tmp_path: Path) -> None:
    chosen = spec()
    weights = state(chosen)
    for name in ("w.safetensors", "w.bin"):  # by content, too
        save_file(prefixed(prefix, weights), tmp_path / name)
        same(loaded(chosen, tmp_path / name), weights)


def test_load__legacy_file(tmp_path: Path) -> None:
    chosen = spec()
    weights = state(chosen)
    torch.save(trained(weights), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    same(loaded(chosen, tmp_path / "w.pth"), weights)


def test_load__half_precision(tmp_path: Path) -> None:
    chosen = spec()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state(chosen).items()}
    torch.save(half, tmp_path / "w.pth")
    same(
        loaded(chosen, tmp_path / "w.pth"),
        {k: v.float() if v.is_floating_point() else v for k, v in half.items()},
    )


@pytest.mark.parametrize("kind", ["resnet", "vit", "convnext", "swin"])
def test_load__as_timm_does(kind: str, tmp_path: Path) -> None:
    chosen, file = spec(kind), tmp_path / "w.pth.tar"
    torch.save(trained(prefixed("module.", state(chosen))), file)
    model = SOURCE.build(chosen)
    timm.models.load_checkpoint(model, str(file))
    same(loaded(chosen, file), model.state_dict())


def test_load__into_a_model_that_had_other_weights(tmp_path: Path) -> None:
    chosen = spec()
    model = seeded_build(SOURCE, chosen, 1)
    for seed in (2, 3):
        torch.save(state(chosen, seed), tmp_path / "w.pth")
        load_weights(SOURCE, chosen, model, Checkpoint(file=str(tmp_path / "w.pth")))
        check_weights(model, state(chosen, seed))


# several sets of weights


def test_key__chooses(tmp_path: Path) -> None:
    chosen, file = spec(), tmp_path / "w.pth.tar"
    sets = [state(chosen, seed) for seed in range(5)]
    torch.save(
        {
            **sets[0],
            "state_dict": sets[1],
            "state_dict_ema": prefixed("module.", sets[2]),
            "ema": {"state_dict": sets[3], "updates": 3},
            "teacher": {"net": {"backbone": sets[4]}},
        },
        file,
    )
    keys = ["", "state_dict", "state_dict_ema", "ema.state_dict", "teacher.net"]
    with pytest.raises(InputError, match=r"has no weights under the key 'teacher.net'"):
        check_fit(chosen, Checkpoint(file=str(file), key="teacher.net"))
    torch.save({**torch.load(file), "teacher": {"net": sets[4]}}, file)
    for key, weights in zip(keys, sets, strict=True):
        same(loaded(chosen, file, key=key), weights)
    same(loaded(chosen, file, key="ema"), sets[3])  # the only ones below
    message = (
        r"model timm/resnet: the checkpoint /.*/w.pth.tar holds 5 different sets of weights that "
        r"fit resnet18, with the key '', 'state_dict', 'state_dict_ema', 'ema.state_dict', "
        r"'teacher.net'\. Choose one with `key:`, as in {file: '/.*', key: ''}\."
    )
    refused(chosen, message, Checkpoint(file=str(file)))


def test_key__average_beside_the_last_weights(tmp_path: Path) -> None:
    """timm itself takes the average, and does not say so."""
    chosen, file = spec(), tmp_path / "w.pth.tar"
    torch.save(trained(state(chosen, 1), state_dict_ema=state(chosen, 2)), file)
    refused(chosen, r"Choose one with `key:`, .* key: state_dict}\.", Checkpoint(file=str(file)))
    torch.save(trained(state(chosen, 1), state_dict_ema=state(chosen, 1)), file)
    same(loaded(chosen, file), state(chosen, 1))  # equal: there is nothing to choose
    almost = state(chosen, 1)
    almost["fc.bias"][2] = float(np.nextafter(np.float32(almost["fc.bias"][2]), np.float32(9)))
    torch.save(trained(state(chosen, 1), state_dict_ema=almost), file)
    refused(chosen, "Choose one with `key:`", Checkpoint(file=str(file)))


def test_key__copy_in_half_precision(tmp_path: Path) -> None:
    """Equal numbers of another type are another set: which of them was meant is not known."""
    chosen = spec()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state(chosen).items()}
    single = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    torch.save({"model": single, "half": half}, tmp_path / "w.pth")
    refused(chosen, "2 different sets of weights", Checkpoint(file=str(tmp_path / "w.pth")))


def test_key__of_a_template(tmp_path: Path) -> None:
    template = f"{tmp_path}/w-{{step}}.pth"
    chosen = spec(checkpoints=template)
    sets = {"a": state(chosen, 1), "b": state(chosen, 2)}
    torch.save(sets, tmp_path / "w-3.pth")
    (checkpoint,) = chosen.checkpoint_map().values()
    remedy = f"as in checkpoints: [{{file: '{template}', key: a}}]."
    refused(chosen, re.escape(remedy), checkpoint)
    followed = spec(checkpoints=[{"file": template, "key": "a"}])
    check_fit(followed, followed.checkpoint_map()["step3"])


def test_key__only_one_set_fits(tmp_path: Path) -> None:
    chosen = spec()
    other = state(spec(arguments={**ARCHITECTURES["resnet"][1], "num_classes": 7}))
    torch.save({"student": other, "teacher": state(chosen)}, tmp_path / "w.pth")
    same(loaded(chosen, tmp_path / "w.pth"), state(chosen))
    refused(
        chosen,
        r"does not fit the architecture resnet18: fc.weight is \(7, 10\) in the file.* The file "
        r"has under the key 'student' conv1.weight \(",
        Checkpoint(file=str(tmp_path / "w.pth"), key="student"),
    )


def test_key__wrong(tmp_path: Path) -> None:
    chosen, file = spec(), tmp_path / "w.pth"
    torch.save(trained(state(chosen), "teacher", student={"a": 3}), file)
    for key, near in (("techer", r" Did you mean 'teacher'\?"), ("student", ""), ("", "")):
        message = rf"w.pth has no weights under the key '{key}'\.{near} It has weights under 'teach"
        refused(chosen, message, Checkpoint(file=str(file), key=key))


def moco(chosen: ModelSpec) -> Weights:
    return {
        **prefixed("module.encoder_q.", state(chosen, 1)),
        **prefixed("module.encoder_k.", state(chosen, 2)),
        "module.queue": torch.zeros(3, 8),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }


def test_prefix__chooses(tmp_path: Path) -> None:
    chosen, file = spec(), tmp_path / "w.pth.tar"
    torch.save(trained(moco(chosen)), file)
    message = (
        r"holds 2 different sets of weights that fit resnet18, with the prefix "
        r"'module.encoder_q.', 'module.encoder_k.'\. Choose one with `prefix:`, as in {file: "
        r"'/.*', prefix: module.encoder_q.}\."
    )
    refused(chosen, message, Checkpoint(file=str(file)))
    same(loaded(chosen, file, prefix="module.encoder_q"), state(chosen, 1))
    same(loaded(chosen, file, prefix="module.encoder_k."), state(chosen, 2))
    refused(
        chosen,
        r"has no weights with the prefix 'encoder_q.'\. Did you mean "
        r"'module.encoder_q.' or 'module.encoder_k.'\? It has module.encoder_q.conv1",
        Checkpoint(file=str(file), prefix="encoder_q"),
    )


def test_prefix__none_beside_one(tmp_path: Path) -> None:
    chosen, file = spec(), tmp_path / "w.pth"
    torch.save({**state(chosen, 1), **prefixed("ema.", state(chosen, 2))}, file)
    refused(
        chosen,
        r"with the prefix '', 'ema.'\. Choose one with `prefix:`, as in .*, prefix: ''}\.",
        Checkpoint(file=str(file)),
    )
    same(loaded(chosen, file, prefix="ema."), state(chosen, 2))
    refused(
        chosen,
        r"ema.conv1.weight is in the file only; .*Leave these entries out, ignore: \[ema.conv1.\*, "
        r"ema.bn1.\*, ema.layer1.0.conv1.\*, …\], or correct `name:`",
        Checkpoint(file=str(file), prefix=""),
    )
    same(loaded(chosen, file, prefix="", ignore="ema.*"), state(chosen, 1))


# weights that are left out


def headless(weights: Weights) -> Weights:
    return {k: v for k, v in weights.items() if not k.startswith(("fc.", "head."))}


HEADS: dict[str, Weights] = {
    "absent": {},
    "of another size": {"fc.weight": torch.ones(7, 10), "fc.bias": torch.ones(7)},
    "a projection": {"fc.0.weight": torch.ones(10, 10), "fc.2.weight": torch.ones(3, 10)},
}


@pytest.mark.parametrize("kind", HEADS)
def test_ignore__head(kind: str, tmp_path: Path) -> None:
    chosen, file = spec(), tmp_path / "w.pth"
    weights = headless(state(chosen))
    torch.save({**weights, **HEADS[kind]}, file)
    remedy = (
        r"Set `arguments:` to those of the training run \(num_classes, img_size, …\), or leave "
        r"these weights at their initial values, ignore: \[fc\.\*"
    )
    refused(chosen, remedy, Checkpoint(file=str(file)))
    initial = seeded_build(SOURCE, chosen, chosen.initial_seed(0)).state_dict()
    expected = {**weights, **{n: initial[n] for n in ("fc.weight", "fc.bias")}}
    found = loaded(chosen, file, ignore="fc.*")
    same(found, {name: expected[name] for name in found})
    # the same where the model had another head
    model = seeded_build(SOURCE, chosen, 5)
    load_weights(SOURCE, chosen, model, Checkpoint(file=str(file), ignore=["fc.*"]))
    same(model.state_dict(), found)


def test_ignore__keeps_initial_values_beside_weights_that_would_fit(tmp_path: Path) -> None:
    chosen, file = spec(), tmp_path / "w.pth"
    torch.save(state(chosen), file)
    initial = seeded_build(SOURCE, chosen, chosen.initial_seed(0)).state_dict()
    found = loaded(chosen, file, ignore="fc.bias")
    same(found, {**state(chosen), "fc.bias": initial["fc.bias"]})


def test_ignore__what_layers_depend_on(tmp_path: Path) -> None:
    chosen, file = spec(), tmp_path / "w.pth"
    torch.save(state(chosen), file)

    def check(message: str | None, ignore: str, **changes: Any) -> None:
        checkpoint = Checkpoint(file=str(file), ignore=[ignore])
        if message is None:
            check_fit(spec(**changes), checkpoint)
        else:
            with pytest.raises(InputError, match=message):
                check_fit(spec(**changes), checkpoint)

    of = r"leaves out weights that layers of the image tower depend on "
    check(rf"ignore: \[layer4.\*\] {of}\(layer4\)\. Load these weights, or leave the", "layer4.*")
    check(rf"ignore: \[layer3.0.conv2.weight\] {of}\(layer3, layer4\)\.", "layer3.0.conv2.weight")
    check(rf"{of}\(act1, layer1, layer2, …\)\.", "bn1.running_mean")
    check(None, "layer3.*", layers=["layer1", "layer2"])
    check(rf"{of}\(layer3.0.conv2\)\.", "layer3.0.conv2.*", layers=["layer1", "layer3.0.conv2"])
    check(None, "layer3.0.bn2.*", layers=["layer1", "layer3.0.conv2"])


def test_ignore__unknown_names(tmp_path: Path) -> None:
    chosen, file = spec(), tmp_path / "w.pth"
    torch.save(state(chosen), file)
    refused(
        chosen,
        r"w.pth and the model resnet18 have no weights that match ignore: 'fc_bias'\. Did you mean "
        r"'fc.bias'",
        Checkpoint(file=str(file), ignore=["fc_bias"]),
    )
    refused(
        chosen,
        r"would load no weights, since `ignore:` leaves out all\.",
        Checkpoint(file=str(file), ignore=["*"]),
    )


def test_load__entries_of_the_file_alone(tmp_path: Path) -> None:
    chosen, file = spec("vit"), tmp_path / "w.pth"
    torch.save({**state(chosen), "decoder.0.weight": torch.ones(2), "mask": torch.ones(1)}, file)
    refused(
        chosen,
        r"decoder.0.weight is in the file only; mask is in the file only\. Leave these entries "
        r"out, ignore: \[decoder.0.\*, mask\], or correct `name:`\. The file has cls_token \(1, ",
        Checkpoint(file=str(file)),
    )
    same(loaded(chosen, file, ignore=["decoder.*", "mask"]), state(chosen))


def test_load__buffers_that_versions_have_or_lack(tmp_path: Path) -> None:
    chosen, file = spec("swin"), tmp_path / "w.pth"
    older = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
        "layers.1.blocks.1.attn_mask": torch.zeros(4, 16, 16),
    }
    assert not older.keys() & state(chosen).keys()
    torch.save({**state(chosen), **older}, file)
    same(loaded(chosen, file), state(chosen))
    chosen = spec("resnet")
    weights = {k: v for k, v in state(chosen).items() if not k.endswith("num_batches_tracked")}
    torch.save(weights, file)
    found = loaded(chosen, file)
    assert len(found) > len(weights)
    same({name: found[name] for name in weights}, weights)


# formats of other authors


def test_load__buffer_of_another_shape(tmp_path: Path) -> None:
    weights = state(spec())
    weights["bn1.num_batches_tracked"] = torch.zeros(2, dtype=torch.long)
    torch.save(weights, tmp_path / "w.pth")
    refused(
        spec(),
        r"bn1.num_batches_tracked is \(2,\) of int64 in the file, \(\) of int64 in the model",
        Checkpoint(file=str(tmp_path / "w.pth")),
    )


def test_load__dinov2_of_its_authors(tmp_path: Path) -> None:
    """The token's position is added to it, and registers have another name."""
    chosen, file = spec("dinov2"), tmp_path / "dinov2.pth"
    weights = state(chosen)
    raw = {**weights, "mask_token": torch.zeros(1, 12)}
    raw["register_tokens"] = raw.pop("reg_token")
    position = torch.rand(1, 1, 12)
    raw["pos_embed"] = torch.cat([position, weights["pos_embed"]], 1)
    torch.save(raw, file)
    found = loaded(chosen, file)
    same(found, {**weights, "cls_token": weights["cls_token"] + position})
    model = SOURCE.build(chosen)
    timm.models.load_checkpoint(
        model, str(file), filter_fn=timm.models.vision_transformer.checkpoint_filter_fn
    )
    same(found, model.state_dict())


def test_load__convnext_of_its_authors(tmp_path: Path) -> None:
    chosen, file = spec("convnext"), tmp_path / "convnext.pth"
    weights = state(chosen)
    names = [
        (r"stem\.(\d)", r"downsample_layers.0.\1"),
        (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc(\d)", r"pwconv\1"),
        (r"head\.norm", "norm"),
        (r"head\.fc", "head"),
    ]
    raw = {}
    for name, weight in weights.items():
        for here, there in names:
            name = re.sub(here, there, name)
        raw[name] = weight
    assert "stages.0.0.pwconv1.weight" in raw
    torch.save({"model": raw}, file)
    same(loaded(chosen, file), weights)


@pytest.mark.parametrize(("kind", "name"), [("vit", "pos_embed"), ("swin", "layers.0")])
def test_load__nothing_is_resized(kind: str, name: str, tmp_path: Path) -> None:
    """timm's filter would interpolate."""
    size = {"vit": {"img_size": 24}, "swin": {"window_size": 2}}[kind]
    other = spec(kind, arguments={**ARCHITECTURES[kind][1], **size})
    torch.save(state(other), tmp_path / "w.pth")
    refused(
        spec(kind),
        rf"does not fit .*: {name}\S* is \(.*\) in the file, .*Set `arguments:` to those of the "
        r"training run \(num_classes, img_size, …\)",
        Checkpoint(file=str(tmp_path / "w.pth")),
    )


# files that are none


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"model_state_dict": {"a": 5}, "epoch": 3}, "only 'model_state_dict', 'epoch'"),
        ({"state_dict": {"a": 5}}, "only 'state_dict'"),
        ({}, "and is empty"),
        ([torch.ones(2)], "but a list"),
        (torch.ones(2), "but a tensor"),
        (None, "but a single object"),
        ({"a": {"b": {"c": {"d": torch.ones(2)}}}}, "only 'a'"),
        ({"a": torch.ones(2).to_sparse(), "b": torch.ones(2, device="meta")}, "only 'a', 'b'"),
        (argparse.Namespace(a=torch.ones(2)), "but a single object"),
    ],
)
def test_load__no_weights(content: Any, what: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    message = (
        rf"model timm/resnet: the checkpoint /.*/w.pth holds no weights, {what}\. Save the stat"
    )
    refused(spec(), message, Checkpoint(file=str(tmp_path / "w.pth")))


def test_load__of_another_architecture(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"net": state(spec("vit"))}, file)
    refused(
        spec(),
        r"does not fit the architecture resnet18: conv1.weight is missing in the file; .*; and \d+ "
        r"more\. No weight has the name of one of the model's: the file is of another "
        r"architecture, or of another library\. Correct `name:` or the file\. The file "
        r"has under the key 'net' cls_token \(1, 1, 12\), pos_embed \(1, 17, 12\), "
        r"patch_embed.proj.weight \(12, 3, 4, 4\) and \d+ more\.",
        Checkpoint(file=str(file)),
    )
    torch.save(state(spec("vit", arguments={**VIT, "embed_dim": 9})), file)
    refused(
        spec("vit"),
        r"cls_token is \(1, 1, 9\) in the file, \(1, 1, 12\) in the model; .*Set `arguments:` .*, "
        r"or name the right file: if most names differ, it is of another architecture\.",
        Checkpoint(file=str(file)),
    )


def test_load__integers_are_no_weights(tmp_path: Path) -> None:
    weights = state(spec())
    weights["fc.weight"] = torch.ones(5, 10, dtype=torch.int8)
    torch.save(weights, tmp_path / "w.pth")
    refused(
        spec(),
        r"fc.weight is \(5, 10\) of int8 in the file, \(5, 10\) in the model",
        Checkpoint(file=str(tmp_path / "w.pth")),
    )


# safety


class Command:
    """Unpickling it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


class Custom:
    """A class of a training program."""


@pytest.mark.parametrize("legacy", [False, True])
def test_read_checkpoint__runs_no_code(legacy: bool, tmp_path: Path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "w.pth"
    content = trained(state(spec()), payload=Command(f"touch {mark}"))
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    refused(
        spec(),
        r"w.pth holds a pickled posix.system, which could run code when loaded\. Save the state "
        r"dict alone: torch.save\(model.state_dict\(\), …\)\.",
        Checkpoint(file=str(file)),
    )
    assert not mark.exists()
    torch.load(file, weights_only=False)  # the payload is a real one
    assert mark.exists()


def test_read_checkpoint__other_classes_are_refused(tmp_path: Path) -> None:
    for content, name in (
        (Custom(), "Custom"),
        (SOURCE.build(spec()), "timm.models.resnet.ResNet"),
    ):
        torch.save({**state(spec()), "more": content}, tmp_path / "w.pth")
        refused(
            spec(),
            rf"w.pth holds a pickled (\w+\.)*{name}, which could run code when loaded",
            Checkpoint(file=str(tmp_path / "w.pth")),
        )


def test_read_checkpoint__harmless_classes(tmp_path: Path) -> None:
    content = trained(
        state(spec()),
        args=argparse.Namespace(path=Path("a"), types=[int, list, str], dims=frozenset({3})),
        folder=pathlib.PurePosixPath("a/b"),
        drive=pathlib.PureWindowsPath("C:/a"),
        best=np.float64(0.7),
        losses=np.arange(3.0),
        names=np.array(["a", "b"]),
        meters=collections.defaultdict(list, {"loss": [1.0]}),
        counts=collections.Counter("abc"),
        random=np.random.default_rng(0).bytes(3),
        span=slice(3),
        torch=torch.__version__,
        began=datetime.datetime(2024, 1, 1),
        kinds=[np.float32, np.dtype("f4"), torch.float16],
    )
    torch.save(content, tmp_path / "w.pth")
    same(loaded(spec(), tmp_path / "w.pth"), state(spec()))
    found = read_checkpoint(tmp_path / "w.pth")
    assert found["meters"] == {"loss": [1.0]}
    assert type(found["args"]).__name__ == "_Inert"  # no class of the file was made
    assert not vars(found["args"])


def test_read_checkpoint__harmless_classes_are_allowed_here_alone(tmp_path: Path) -> None:
    torch.save(argparse.Namespace(), tmp_path / "w.pth")
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "w.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "w.pth", weights_only=True)


def test_read_checkpoint__paths_of_other_systems(tmp_path: Path) -> None:
    """The class is never looked up, so it need not exist here."""
    torch.save({**state(spec()), "args": pathlib.PureWindowsPath("C:/a")}, tmp_path / "own.pth")
    with (
        zipfile.ZipFile(tmp_path / "own.pth") as own,
        zipfile.ZipFile(tmp_path / "w.pth", "w") as theirs,
    ):
        for entry in own.namelist():
            theirs.writestr(entry, own.read(entry).replace(b"PureWindowsPath", b"WindowsPath"))
    same(loaded(spec(), tmp_path / "w.pth"), state(spec()))


@pytest.mark.parametrize(
    "write",
    [
        lambda file: torch.save({"a": torch.ones(2)}, file, pickle_protocol=4),
        lambda file: file.write_bytes(pickle.dumps({"a": np.ones(2)})),
        lambda file: file.write_text("<!DOCTYPE html><html>"),
    ],
)
def test_read_checkpoint__other_formats(write: Callable[[Path], Any], tmp_path: Path) -> None:
    """Without torch's advice to read them unsafely."""
    write(tmp_path / "w.pth")
    refused(
        spec(),
        r"w.pth cannot be read: UnpicklingError: it is not a whole file of torch.save with its "
        r"default pickle protocol\. Replace the file or drop the checkpoint\.$",
        Checkpoint(file=str(tmp_path / "w.pth")),
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_read_checkpoint__torchscript(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(2)).save(tmp_path / "w.pt")
    refused(
        spec(),
        r"w.pt is a TorchScript archive, which holds code\. Save its state dict alone: torch.sav",
        Checkpoint(file=str(tmp_path / "w.pt")),
    )


def test_read_checkpoint__compressed(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2**20)}, tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in whole.namelist():
            packed.writestr(entry, whole.read(entry))
    assert (tmp_path / "w.pth").stat().st_size < 20_000
    refused(
        spec(),
        r"w.pth has compressed entries \(whole/data.pkl\), which torch does not write and which "
        r"could unpack to any size\. Save",
        Checkpoint(file=str(tmp_path / "w.pth")),
    )


def test_load__expanded_tensors(tmp_path: Path) -> None:
    """Shapes of petabytes over four bytes; and one that fits is loaded."""
    huge = torch.zeros(1).expand(2**25, 2**25)
    weights = {**state(spec()), "fc.weight": torch.full((1,), 0.3).expand(5, 10)}
    torch.save(
        {"state_dict": weights, "more": {"fc.weight": huge}, "huge": huge}, tmp_path / "w.pt"
    )
    same(loaded(spec(), tmp_path / "w.pt"), weights)
    refused(
        spec(),
        r"fc.weight is \(33554432, 33554432\) in the file",
        Checkpoint(file=str(tmp_path / "w.pt"), key="more"),
    )


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_check_fit__reads_no_weights(name: str, tmp_path: Path) -> None:
    """200 MB beside the weights, of which nothing is read."""
    more = {f"more.{i}": torch.zeros(25 * 2**18) for i in range(8)}
    weights = prefixed("model.", state(spec()))
    if name == "w.pth":
        torch.save({"state_dict": weights, "optimizer": more}, tmp_path / name)
    else:
        save_file({**weights, **more}, tmp_path / name)
    del more
    check_fit(spec(), Checkpoint(file=str(tmp_path / name)))  # what else is imported or built
    before = psutil.Process().memory_info().rss
    kept = read_checkpoint(tmp_path / name)
    check_fit(spec(), Checkpoint(file=str(tmp_path / name)))
    assert psutil.Process().memory_info().rss - before < 50 * 2**20
    assert kept
