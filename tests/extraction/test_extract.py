"""The forward pass over stimuli: batches, blocks, memory, precision, what is known beforehand."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.model import Checkpoint, Init, ModelSpec
from pipeline.config.registry import load_registry
from pipeline.errors import InputError, ModelError
from pipeline.extraction import extract as extraction
from pipeline.extraction.describe import OperationCounter, _jsonable, check_fit, describe
from pipeline.extraction.extract import extract
from pipeline.extraction.reader import LayerReader
from pipeline.extraction.torch_source import load_checkpoint, torch_source
from pipeline.lru import LruCache
from pipeline.sources import TowerInfo
from pipeline.stimuli import memory
from pipeline.stimuli.decode import as_image
from pipeline.stimuli.digits import load_digits, pixels
from pipeline.stimuli.ids import hex_ids
from pipeline.stimuli.memory import PixelReader, table_of
from pipeline.training.vocabulary import write_merges

VIT = {"num_classes": 5, "img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2,
       "num_heads": 3}  # fmt: skip
Blocks = list[tuple[int, int]]


def spec(**changes: Any) -> ModelSpec:
    entry = {
        "source": "timm",
        "id": "timm/tiny",
        "name": "vit_tiny_patch16_224",
        "arguments": VIT,
        "preprocessing": {"input_size": 16},
        "checkpoints": {"init": {"init": {}}},
        **changes,
    }
    return ModelSpec.model_validate(entry)


def loaded(chosen: ModelSpec) -> torch.nn.Module:
    return load_checkpoint(torch_source(chosen.source), chosen, Checkpoint(init=Init(seed=0)))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return loaded(spec())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("extraction")
    size = write_merges(folder / "bpe.txt.gz", captions())
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 2, "width": 8, "head_width": 4},
        "text_cfg": {"context_length": 12, "vocab_size": size, "width": 12, "heads": 2, "layers": 2,
                     "tokenizer_kwargs": {"bpe_path": "bpe.txt.gz"}},
    }  # fmt: skip
    (folder / "clip.json").write_text(json.dumps(config))
    return ModelSpec.model_validate(
        {
            "source": "open_clip",
            "id": "open_clip/tiny",
            "name": "extraction-clip",
            "config": f"{folder}/clip.json",
            "checkpoints": {"init": {"init": {}}},
        }
    )


def images(n: int = 23) -> list[np.ndarray]:
    return pixels("test")[:n]


def captions(n: int = 23) -> list[str]:
    return [str(c) for c in load_digits("test").columns["caption"][:n]]


def in_memory(**items: Any) -> PixelReader:
    return PixelReader(table_of("few", {}, **items), lambda: items["images"])


def stimuli(n: int = 23) -> PixelReader:
    return in_memory(images=images(n), captions=captions(n))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> LruCache[Any, torch.Tensor]:
    """An empty cache for each test."""
    made: LruCache[Any, torch.Tensor] = LruCache(2**24, size=lambda batch: batch.nbytes)
    monkeypatch.setattr(extraction, "_inputs", made)
    return made


def run(
    chosen: ModelSpec, model: torch.nn.Module, tower: str = "image", blocks: Blocks | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
    base = options.pop("base", stimuli())
    parts = list(extract(chosen, model, tower, base, blocks or [(0, len(base.table))], **options))
    return {name: np.concatenate([p[name] for _, p in parts]) for name in parts[0][1]}


@pytest.fixture(scope="module")
def by_hand(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Run one stimulus at a time."""
    transform = torch_source("timm").image_transform(spec(), model)
    reader = LayerReader(spec(), model, "image")
    rows = [reader(transform(as_image(i))[None]) for i in images()]
    return {n: torch.cat([r[n] for r in rows]).numpy() for n in rows[0]}


# rows


@pytest.mark.parametrize("batch_size", [1, 2, 7, 23, 256])
def test_extract__rows_do_not_depend_on_batches(
    model: torch.nn.Module, by_hand: dict[str, np.ndarray], batch_size: int
) -> None:
    found = run(spec(), model, batch_size=batch_size)
    assert list(found) == ["blocks.0", "blocks.1"]
    for name, values in found.items():
        assert values.dtype == np.float32
        assert values.shape == (23, 12)
        np.testing.assert_allclose(values, by_hand[name], rtol=1e-4, atol=1e-5)
    assert len(np.unique(found["blocks.1"].round(5), axis=0)) == 23  # rows can be told apart


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cuts=st.lists(st.integers(1, 22), unique=True, max_size=4).map(sorted),
    batch_size=st.integers(4, 30),
)
def test_extract__blocks(
    model: torch.nn.Module, by_hand: dict[str, np.ndarray], cuts: list[int], batch_size: int
) -> None:
    edges = [0, *cuts, 23]
    blocks = list(pairwise(edges))
    found = list(extract(spec(), model, "image", stimuli(), blocks, batch_size=batch_size))
    assert [b for b, _ in found] == blocks
    for (start, stop), values in found:
        assert values["blocks.1"].shape == (stop - start, 12)
        np.testing.assert_allclose(
            values["blocks.1"], by_hand["blocks.1"][start:stop], rtol=1e-4, atol=1e-5
        )


def test_extract__only_the_blocks_asked_for(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    base = stimuli()
    read = base.read
    monkeypatch.setattr(base, "read", lambda m, rows: asked.append(rows.start) or read(m, rows))
    found = run(spec(), model, blocks=[(20, 23), (3, 8)], base=base, batch_size=3)
    assert asked == [20, 21, 22, *range(3, 8)]
    np.testing.assert_allclose(
        found["blocks.0"], run(spec(), model)["blocks.0"][[20, 21, 22, 3, 4, 5, 6, 7]], atol=1e-5
    )


def test_extract__is_lazy(model: torch.nn.Module) -> None:
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    counting = model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    stream = extract(spec(), model, "image", stimuli(), [(0, 5), (5, 10)])
    assert calls == []
    next(stream)
    assert len(calls) == 1
    handle.remove()
    counting.remove()


def test_extract__one_forward_pass_for_all_layers(model: torch.nn.Module) -> None:
    calls: list[int] = []
    handle = model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    run(spec(layers="all"), model, batch_size=10)
    handle.remove()
    assert len(calls) == 3


def test_extract__keeps_no_gradients(model: torch.nn.Module) -> None:
    output = LayerReader(spec(), model, "image")(torch.zeros(1, 3, 16, 16))
    assert all(not o.requires_grad for o in output.values())


def test_extract__keeps_what_was_pooled_and_no_more(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class token is a view: kept as it is, it keeps the tokens of every position of a block."""
    kept: list[np.ndarray] = []
    original = extraction._forward

    def forward(*arguments: Any) -> dict[str, np.ndarray]:
        found = original(*arguments)
        kept.extend(found.values())
        return found

    monkeypatch.setattr(extraction, "_forward", forward)
    for _ in extraction.extract(spec(), model, "image", stimuli(), [(0, 23)], batch_size=5):
        pass
    assert len(kept) == 5 * VIT["depth"]
    assert all(values.flags.owndata for values in kept)


def test_extract__deterministic(model: torch.nn.Module) -> None:
    one, two = run(spec(), model), run(spec(), model)
    np.testing.assert_array_equal(one["blocks.1"], two["blocks.1"])


@pytest.mark.parametrize("batch_size", [4, 256])
def test_extract__text(clip: ModelSpec, batch_size: int) -> None:
    two_towers = loaded(clip)
    found = run(clip, two_towers, "text", batch_size=batch_size)
    tokens = torch_source("open_clip").tokenizer(clip)(captions())
    expected = LayerReader(clip, two_towers, "text")(tokens)
    assert list(found) == ["blocks.0", "blocks.1"]
    for name, values in found.items():
        assert values.shape == (23, 12)
        np.testing.assert_allclose(values, expected[name].numpy(), rtol=1e-4, atol=1e-5)
    assert run(clip, two_towers, "image")["blocks.0"].shape == (23, 8)


def test_extract__text_without_captions(clip: ModelSpec) -> None:
    with pytest.raises(KeyError):  # a plan refuses it before
        run(clip, loaded(clip), "text", base=in_memory(images=images()))


def test_extract__precision(model: torch.nn.Module) -> None:
    exact = run(spec(), model)["blocks.1"]
    rough = run(spec(precision="bfloat16"), model)["blocks.1"]
    assert rough.dtype == np.float32
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.02
    assert np.corrcoef(rough.ravel(), exact.ravel())[0, 1] > 0.999


# what goes wrong


def poison(model: Any, pixels: list[float], value: float) -> None:
    """Spoil the patches of images whose first channel has one of these means."""

    def hook(_module: Any, inputs: Any, output: torch.Tensor) -> None:
        for pixel in pixels:
            output[inputs[0][:, 0].mean((1, 2)) == pixel] = value

    model.patch_embed.register_forward_hook(hook)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch_size", [2, 256])
def test_extract__not_finite(value: float, batch_size: int) -> None:
    poisoned: Any = loaded(spec())
    transform = torch_source("timm").image_transform(spec(), poisoned)
    base = stimuli()
    means = [float(transform(as_image(images()[r]))[0].mean()) for r in (12, 15)]
    poison(poisoned, means, value)
    named = hex_ids(base.table.ids_at("image", slice(12, 13)))[0]
    stream = extract(spec(), poisoned, "image", base, [(0, 10), (10, 23)], batch_size=batch_size)
    assert next(stream)[0] == (0, 10)  # a block without them is given
    with pytest.raises(
        ModelError,
        match=r"model timm/tiny, image tower, layer blocks.0: the activations of 2 stimuli are not "
        rf"finite, first row 12 \(stimulus {named}\)\. Look at the weights, or use "
        r"precision: float32",
    ):
        next(stream)


def test_extract__not_finite_text_names_the_caption(clip: ModelSpec) -> None:
    two_towers: Any = loaded(clip)
    with torch.no_grad():
        two_towers.transformer.resblocks[1].ln_1.weight.fill_(float("nan"))
    with pytest.raises(
        ModelError,
        match=r"open_clip/tiny, text tower, layer blocks.1: the activations of 23 stimuli .* first "
        rf"row 0 \(stimulus {hex_ids(stimuli().table.ids_at('text', slice(0, 1)))[0]}\)",
    ):
        run(clip, two_towers, "text")


def failing(monkeypatch: pytest.MonkeyPatch, largest: int, failures: int = 10**6) -> list[int]:
    """Let batches above a size run out of memory, so many times at most; return the sizes seen."""
    sizes: list[int] = []
    real = extraction._forward

    def forward(reader: LayerReader, inputs: torch.Tensor, precision: str) -> dict[str, Any]:
        sizes.append(len(inputs))
        if len(inputs) > largest and sum(s > largest for s in sizes) <= failures:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(reader, inputs, precision)

    monkeypatch.setattr(extraction, "_forward", forward)
    return sizes


def test_extract__out_of_memory_halves_the_batch(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(spec(), model)
    sizes = failing(monkeypatch, largest=0, failures=1)
    found = run(spec(), model, batch_size=16)
    assert sizes == [16, 8, 8, 7]
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5)


def test_extract__halved_for_good(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(spec(), model)
    sizes = failing(monkeypatch, largest=5)
    found = run(spec(), model, blocks=[(0, 9), (9, 23)], batch_size=20)
    # nine rows fail as often as a batch size of 20 is halved to 5
    assert sizes == [9, 9, 5, 4, 5, 5, 4]
    np.testing.assert_allclose(found["blocks.1"], expected["blocks.1"], rtol=1e-4, atol=1e-5)


def test_extract__not_even_one(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = failing(monkeypatch, largest=0)
    with pytest.raises(
        ModelError, match=r"model timm/tiny: one stimulus does not fit into the memory of cpu\."
    ):
        run(spec(), model, batch_size=4)
    assert sizes == [4, 2, 1]


# decoded inputs


def test_inputs__models_with_one_preprocessing_share_them(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    monkeypatch.setattr(memory, "as_image", lambda p: decoded.append(1) or as_image(p))
    run(spec(), model)
    assert len(decoded) == 23
    run(spec(id="timm/other", layers="last"), model)
    assert len(decoded) == 23
    run(spec(preprocessing={"input_size": 16, "mean": [0, 0, 0]}), model)
    assert len(decoded) == 46
    run(spec(), model, base=stimuli(22))  # other stimuli
    assert len(decoded) == 68
    run(spec(preprocessing={"input_size": 16, "mean": [1e-6, 0, 0]}), model)
    assert len(decoded) == 91


def test_inputs__captions_are_tokenised_once(
    clip: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = type(torch_source("open_clip"))
    calls: list[int] = []
    real = source.tokenizer
    monkeypatch.setattr(source, "tokenizer", lambda *a: calls.append(1) or real(*a))
    two_towers = loaded(clip)
    first = run(clip, two_towers, "text")
    run(clip, two_towers, "text")
    assert len(calls) == 1
    assert cache_of_other_captions_differs(clip, two_towers, first)
    assert len(calls) == 2


def test_extract__text_tower_of_stimuli_without_images(
    clip: ModelSpec, cache: LruCache[Any, torch.Tensor]
) -> None:
    two_towers = loaded(clip)
    words = in_memory(captions=captions())
    alone, beside = (run(clip, two_towers, "text", base=b) for b in (words, stimuli()))
    np.testing.assert_array_equal(alone["blocks.1"], beside["blocks.1"])


def cache_of_other_captions_differs(
    clip: ModelSpec, model: torch.nn.Module, first: dict[str, np.ndarray]
) -> bool:
    turned = in_memory(images=images(), captions=captions()[::-1])
    found = run(clip, model, "text", base=turned)["blocks.1"]
    np.testing.assert_allclose(found[::-1], first["blocks.1"], rtol=1e-4, atol=1e-5)
    return not np.allclose(found, first["blocks.1"])


def test_as_image__grey_and_colour() -> None:
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert as_image(grey).mode == "RGB"
    np.testing.assert_array_equal(np.asarray(as_image(grey)), np.stack([grey] * 3, axis=2))
    colour = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(as_image(colour)), colour)


# what is known beforehand


def test_describe__builds_once_for_entries_of_one_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    source = type(torch_source("timm"))
    built: list[int] = []
    real = source.build
    monkeypatch.setattr(source, "build", lambda *a, **k: built.append(1) or real(*a, **k))
    arguments = {**VIT, "embed_dim": 18}
    one = describe(spec(arguments=arguments))
    two = describe(spec(arguments=arguments, id="timm/b", checkpoints={"a": {"init": {"seed": 1}}}))
    assert one == two
    assert len(built) == 1
    describe(spec(arguments=arguments, pool="max"))
    assert len(built) == 2


def test_describe__makes_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: set[str] = set()
    source = type(torch_source("timm"))
    real = source.build

    def build(*given: Any, **keywords: Any) -> torch.nn.Module:
        model = real(*given, **keywords)
        devices.update(p.device.type for p in model.parameters())
        return model

    monkeypatch.setattr(source, "build", build)
    describe(spec(arguments={**VIT, "embed_dim": 24}))
    assert devices == {"meta"}


def test_describe__is_jsonable() -> None:
    info = describe(spec())["image"]
    assert json.loads(json.dumps(info.preprocessing)) == info.preprocessing


def test_describe__unknown_model() -> None:
    with pytest.raises(InputError, match="timm knows no architecture 'vit_tinny"):
        describe(spec(name="vit_tinny_patch16_224"))


def test_describe__input_that_the_model_does_not_take() -> None:
    with pytest.raises(
        ModelError,
        match=r"model timm/tiny: a forward pass with an input of shape \(3, 20, 20\) fails: "
        r"AssertionError: Input height.*Set `preprocessing: {input_size: …}` or `arguments:` to "
        "what the model takes",
    ):
        describe(spec(preprocessing={"input_size": 20}))


@pytest.mark.parametrize(
    ("name", "blocks", "multiply_adds"),
    [("pit_xs_224", 3, 1.4e9), ("tnt_s_legacy_patch16_224", 12, 5.2e9)],
)
def test_describe__weights_that_are_handed_from_module_to_module(
    name: str, blocks: int, multiply_adds: float
) -> None:
    # once an AttributeError: the counter of operations asked a token that is a weight for its
    # gradient; the numbers are of the papers (Heo et al. 2021, table 4; Han et al. 2021, table 3)
    info = describe(ModelSpec(source="timm", name=name, checkpoints={"a": {"init": {}}}))["image"]
    assert len(info.layers) == blocks
    assert info.flops == pytest.approx(2 * multiply_adds, rel=0.02)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "densenet121", "efficientnet_b0", "convnext_atto", "mixer_s16_224", "levit_128",
     "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "xcit_nano_12_p16_224",
     "beit_base_patch16_224", "eva02_tiny_patch14_224", "maxvit_tiny_tf_224"],
)  # fmt: skip
def test_operation_counter__counts_what_torch_counts(name: str) -> None:
    chosen = ModelSpec(source="timm", name=name, checkpoints={"a": {"init": {}}})
    source = torch_source("timm")
    model = source.build(chosen, device="meta").requires_grad_(False)
    example = source.example(chosen, model, "image")
    with torch.inference_mode(), FlopCounterMode(display=False) as expected:
        model(example)
    with torch.inference_mode(), OperationCounter() as found:
        model(example)
    assert found.total == expected.get_total_flops() > 1e8


@pytest.mark.parametrize("error", [AttributeError, IndexError, KeyError, UnboundLocalError])
@pytest.mark.parametrize(
    ("method", "doing"),
    [
        ("check", "its description"),
        ("build", "its description"),
        ("blocks", "reading the image tower"),
        ("example", "reading the image tower"),
        ("count_parameters", "reading the image tower"),
        ("intermediates", r"a forward pass with an input of shape \(3, 16, 16\)"),
    ],
)
def test_describe__whatever_a_library_raises(
    monkeypatch: pytest.MonkeyPatch, method: str, doing: str, error: type[Exception]
) -> None:
    monkeypatch.setattr("pipeline.extraction.describe._architectures", LruCache(1))

    def fail(*_: Any, **__: Any) -> Any:
        raise error("lost\nand more")

    monkeypatch.setattr(type(torch_source("timm")), method, fail)
    with pytest.raises(
        ModelError,
        match=rf"^model timm/tiny: {doing} fails: {error.__name__}: [^\n]*lost[^\n]*timm itself "
        r"does not support this architecture: leave the entry out\.$",
    ):
        describe(spec())


def test_describe__architecture_that_looks_at_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.extraction.describe._architectures", LruCache(1))

    def look(_self: Any, _model: Any, _tower: str, inputs: torch.Tensor, **_: Any) -> Any:
        return inputs.max().item()

    monkeypatch.setattr(type(torch_source("timm")), "intermediates", look)
    with pytest.raises(
        ModelError,
        match=r"model timm/tiny: vit_tiny_patch16_224 cannot be described without its "
        "weights, because its code branches on the values of its input: .*Leave the entry out",
    ):
        describe(spec())


def test_describe__pooling_is_recorded() -> None:
    for pool in ("cls", "mean", "max", "flatten"):
        info = describe(spec(pool=pool))["image"]
        assert info.pooling == pool
        assert info.widths == 2 * ((16 * 12,) if pool == "flatten" else (12,))


def test_check_fit__fits(tmp_path: Path, model: torch.nn.Module) -> None:
    torch.save(model.state_dict(), tmp_path / "w.pth")
    check_fit(spec(), Checkpoint(file=str(tmp_path / "w.pth")))
    with pytest.raises(
        InputError,
        match=r"model timm/tiny: the checkpoint /.*/w.pth does not fit the architecture \w+: "
        r"cls_token is \(1, 1, 12\) in the file, \(1, 1, 30\) in the model; .*; and \d+ more",
    ):
        check_fit(
            spec(arguments={**VIT, "embed_dim": 30}), Checkpoint(file=str(tmp_path / "w.pth"))
        )


def test_jsonable__anything() -> None:
    value = {"a": (1, 2.5, None, True), 3: [torch.float32], "b": {"c": "d"}}
    assert _jsonable(value) == {
        "a": [1, 2.5, None, True],
        "3": ["torch.float32"],
        "b": {"c": "d"},
    }


# models.yaml


HANDFUL = {
    "timm/vit_tiny_patch16_224.augreg_in21k": (12, 5.5e6, "cls"),
    "timm/vit_small_patch14_dinov2.lvd142m": (12, 22e6, "cls"),
    "timm/vit_base_patch16_siglip_224.webli": (12, 93e6, "mean"),
    "timm/resnet18.a1_in1k": (5, 11.2e6, "mean"),
    "timm/convnext_tiny.fb_in22k": (4, 27.8e6, "mean"),
    "timm/swin_tiny_patch4_window7_224.ms_in22k": (4, 27.5e6, "mean"),
    "timm/tf_efficientnet_b0.ns_jft_in1k": (5, 4e6, "mean"),
    "timm/eva02_tiny_patch14_224.mim_in22k": (12, 5.5e6, "cls"),
    "open_clip/RN50-quickgelu.openai": (5, 38.3e6, "mean"),
}


@pytest.mark.parametrize("model_id", HANDFUL)
def test_models_yaml__a_handful(model_id: str) -> None:
    chosen = load_registry(["models.yaml"])[model_id]
    layers, parameters, pooling = HANDFUL[model_id]
    towers = describe(chosen)
    assert set(towers) == set(chosen.towers)
    assert len(towers["image"].layers) == layers
    assert towers["image"].n_parameters == pytest.approx(parameters, rel=0.02)
    assert towers["image"].pooling == pooling
    if "text" in towers:
        assert len(towers["text"].layers) == 12
        assert towers["text"].pooling == "eot"


def check_tower(info: TowerInfo, tower: str) -> None:
    assert len(info.layers) == len(info.widths) == len(set(info.layers)) >= 4
    assert min(info.widths) >= 16
    assert info.n_parameters > 1e6
    assert info.flops > 1e8
    assert (info.n_embedding_parameters > 0) == (tower == "text")
    assert info.pooling in {"image": {"cls", "mean"}, "text": {"eot"}}[tower]


def test_models_yaml__every_entry_known() -> None:
    found = {s.id: describe(s) for s in load_registry(["models.yaml"])}
    for towers in found.values():
        for tower, info in towers.items():
            check_tower(info, tower)

    def sizes(*names: str) -> list[int]:
        return [found[n]["image"].n_parameters for n in names]

    resnets = sizes(*(f"timm/resnet{d}.a1_in1k" for d in (18, 34, 50, 101, 152)))
    assert resnets == sorted(resnets)
