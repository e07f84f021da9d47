"""Training itself, on models small enough to be trained in a moment."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.model import Checkpoint, Init, ModelSpec
from pipeline.errors import InputError, ModelError
from pipeline.extraction.torch_source import load_checkpoint, seeded_build, torch_source
from pipeline.training import (
    Progress,
    TrainingOptions,
    TrainingRecipe,
    is_trained,
    load_recipes,
    planned_steps,
    train,
    train_all,
)
from pipeline.training.loop import _steps
from pipeline.training.objective import Objective

STEPS = (0, 1, 3, 4)


def tiny(folder: Path, end: str = ".safetensors", **options: Any) -> TrainingRecipe:
    spec = ModelSpec(
        source="timm",
        name="resnet18",
        id="timm/tiny",
        arguments={"num_classes": 10, "layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4]},
        preprocessing={"input_size": 8},
        checkpoints=f"{folder}/step-{{step}}{end}",
    )
    return TrainingRecipe(model=spec, options=TrainingOptions(**{"steps": 4, **options}))


def tiny_clip(folder: Path, vocabulary: int = 586, **options: Any) -> TrainingRecipe:
    config = json.loads(Path("workflows/open_clip/digits-clip-w16.json").read_text())
    config["vision_cfg"]["layers"] = 1
    config["text_cfg"] |= {
        "vocab_size": vocabulary,
        "tokenizer_kwargs": {"bpe_path": "words/bpe.txt.gz"},
    }
    folder.mkdir(exist_ok=True)
    (folder / "tiny-clip.json").write_text(json.dumps(config))
    spec = ModelSpec(
        source="open_clip",
        name=f"tiny-clip-{folder.name}",
        id="open_clip/tiny",
        config=f"{folder}/tiny-clip.json",
        checkpoints=f"{folder}/step-{{step}}.safetensors",
    )
    return TrainingRecipe(model=spec, options=TrainingOptions(**{"steps": 4, **options}))


def contents(recipe: TrainingRecipe) -> dict[int, bytes]:
    return {step: recipe.file(step).read_bytes() for step in planned_steps(recipe)}


@pytest.mark.parametrize("make", [tiny, tiny_clip, partial(tiny, end=".pth.tar")])
def test_train__files_and_record(tmp_path: Path, make: Any) -> None:
    recipe = make(tmp_path)
    seen: list[int] = []
    record = train(recipe, progress=seen.append)
    assert seen == [1, 2, 3, 4]
    assert set(recipe.model.checkpoint_map()) == {f"step{s}" for s in STEPS}
    assert json.loads((tmp_path / "training.json").read_text()) == record
    assert record["steps"] == list(STEPS)
    assert set(record["files"]) == {recipe.file(s).name for s in STEPS}
    assert set(record["losses"]) == {"1", "3", "4"}
    assert 0 <= record["held_out_accuracy"] <= 1
    assert record["samples_seen"] == 4 * 64
    assert not list(tmp_path.glob("**/*.partial"))


@pytest.mark.parametrize("make", [tiny, tiny_clip])
def test_train__step_0_is_a_fresh_seeded_build(tmp_path: Path, make: Any) -> None:
    recipe = make(tmp_path, seed=3)
    train(recipe)
    source = torch_source(recipe.model.source)
    fresh = seeded_build(source, recipe.model, recipe.seeds["weights"]).state_dict()
    saved = load_checkpoint(source, recipe.model, Checkpoint(file=str(recipe.file(0)))).state_dict()
    assert fresh.keys() == saved.keys()
    assert all(torch.equal(fresh[k], saved[k]) for k in fresh)
    last = load_checkpoint(source, recipe.model, Checkpoint(file=str(recipe.file(4)))).state_dict()
    assert any(not torch.equal(fresh[k], last[k]) for k in fresh)


@pytest.mark.parametrize("end", [".safetensors", ".pth.tar"])
def test_train__same_bytes_again(tmp_path: Path, end: str) -> None:
    first, second = tiny(tmp_path / "a", end), tiny(tmp_path / "b", end)
    records = [train(recipe) for recipe in (first, second)]
    assert contents(first) == contents(second)
    assert records[0]["files"] == records[1]["files"]
    assert records[0]["held_out_accuracy"] == records[1]["held_out_accuracy"]


def test_train__two_towers_same_bytes_again(tmp_path: Path) -> None:
    first, second = tiny_clip(tmp_path / "a"), tiny_clip(tmp_path / "b")
    for recipe in (first, second):
        train(recipe)
    assert contents(first) == contents(second)


def test_train__seeds_differ(tmp_path: Path) -> None:
    first, second = tiny(tmp_path / "a", seed=0), tiny(tmp_path / "b", seed=1)
    for recipe in (first, second):
        train(recipe)
    assert all(contents(first)[s] != contents(second)[s] for s in STEPS)


def test_steps__every_model_has_its_own_batches(tmp_path: Path) -> None:
    def batches(recipe: TrainingRecipe) -> list[list[int]]:
        seen: list[list[int]] = []

        def loss(rows: torch.Tensor, captions: torch.Generator) -> torch.Tensor:
            torch.rand(3, generator=captions)  # captions must not move the order
            seen.append(rows.tolist())
            return torch.zeros(())

        objective = Objective(torch.nn.Identity(), 100, loss, lambda: None, lambda: 0.0)
        list(_steps(objective, recipe))
        return seen

    recipes = tiny(tmp_path), tiny(tmp_path, seed=1), tiny_clip(tmp_path)
    first, *others = map(batches, recipes)
    assert batches(recipes[0]) == first
    assert len({tuple(rows) for seen in (first, *others) for rows in seen}) == 3 * 4
    generator = torch.Generator().manual_seed(recipes[0].seeds["order"])
    assert first[0] == torch.randperm(100, generator=generator).tolist()[:64]


@pytest.mark.parametrize("end", ["init", "file"])
def test_load_checkpoint__initialisations_share_no_stream(tmp_path: Path, end: str) -> None:
    """Two widths at the same seed, untrained (`init:`) or at step 0 of their trainings."""
    first, second = [], []
    for channels, into in ((4, first), (6, second)):
        recipe = tiny(tmp_path / str(channels))
        arguments = {**recipe.model.arguments, "channels": [channels] * 4}
        recipe = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"arguments": arguments})}
        )
        checkpoint = Checkpoint(init=Init(seed=0))
        if end == "file":
            train(recipe)
            checkpoint = Checkpoint(file=str(recipe.file(0)))
        model = load_checkpoint(torch_source("timm"), recipe.model, checkpoint)
        again = load_checkpoint(torch_source("timm"), recipe.model, checkpoint)
        assert torch.equal(model.conv1.weight, again.conv1.weight)  # type: ignore[union-attr, arg-type]
        into.append(model.conv1.weight.detach().flatten()[:20])  # type: ignore[union-attr, operator]
    cosine = torch.nn.functional.cosine_similarity(first[0], second[0], dim=0)
    assert abs(float(cosine)) < 0.9


def test_train__puts_torch_back(tmp_path: Path) -> None:
    torch.manual_seed(7)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(tiny(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_train__not_again_when_it_is_there(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    record = train(recipe)
    before = recipe.file(4).stat().st_mtime_ns
    seen: list[int] = []
    assert train(recipe, progress=seen.append) == record
    assert seen == []
    assert recipe.file(4).stat().st_mtime_ns == before


def test_train__changed_recipe(tmp_path: Path) -> None:
    train(tiny(tmp_path))
    changed = tiny(tmp_path, steps=2)
    assert not is_trained(changed)
    train(changed)
    assert is_trained(changed)
    assert not is_trained(tiny(tmp_path))
    # no checkpoint of the old recipe may be read as one of the new
    assert set(changed.model.checkpoint_map()) == {"step0", "step1", "step2"}


def test_train__missing_file(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    train(recipe)
    recipe.file(3).unlink()
    assert not is_trained(recipe)


def test_train__missing_vocabulary(tmp_path: Path) -> None:
    recipe = tiny_clip(tmp_path)
    train(recipe)
    assert recipe.model.vocabulary == tmp_path / "words/bpe.txt.gz"
    recipe.model.vocabulary.unlink()
    assert not is_trained(recipe)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_is_trained__broken_record(tmp_path: Path, text: str) -> None:
    recipe = tiny(tmp_path)
    (tmp_path / "training.json").write_text(text)
    assert not is_trained(recipe)


def test_train__interrupted(tmp_path: Path) -> None:
    whole, cut = tiny(tmp_path / "a"), tiny(tmp_path / "b")
    train(whole)

    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cut, progress=stop)
    assert cut.file(3).is_file()
    assert not (cut.directory / "training.json").exists()
    assert not is_trained(cut)
    (cut.directory / "step-4.safetensors.1.partial").write_bytes(b"left by a killed writer")
    train(cut)
    assert is_trained(cut)
    assert contents(cut) == contents(whole)
    assert not list(cut.directory.glob("*.partial"))


def test_train__loss_is_no_number(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, learning_rate=1e30, steps=10)
    with pytest.raises(ModelError, match=r"timm/tiny: the loss is not a number at step .*Lower"):
        train(recipe)
    assert not is_trained(recipe)


def test_train__wrong_vocabulary_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vocab_size 600, but .* has 586 tokens. Set it to 586"):
        train(tiny_clip(tmp_path, vocabulary=600))


def test_train__learns(tmp_path: Path) -> None:
    (entry,) = (
        r
        for r in load_recipes("workflows/reference.yaml")
        if r.model.id == "timm/ref-resnet-w12-s0"
    )
    model = entry.model.model_copy(update={"checkpoints": f"{tmp_path}/step-{{step}}.safetensors"})
    assert train(TrainingRecipe(model=model, options=entry.options))["held_out_accuracy"] >= 0.9


def test_train_all__goes_on_after_a_failure(tmp_path: Path) -> None:
    good = tiny(tmp_path / "good")
    there = tiny(tmp_path / "there")
    train(there)
    before = there.file(4).stat().st_mtime_ns
    bad = TrainingRecipe(
        model=good.model.model_copy(
            update={
                "id": "timm/bad",
                "arguments": {"no_such": 1},
                "checkpoints": f"{tmp_path}/bad/step-{{step}}.safetensors",
            }
        ),
        options=good.options,
    )
    events: list[Progress] = []
    with pytest.raises(ModelError, match=r"(?s)1 of 2 models.*timm/bad: ModelError.*no_such"):
        train_all([bad, good, there], workers=2, on_progress=events.append)
    assert is_trained(good)
    assert not is_trained(bad)
    assert contents(good) == contents(there)  # a worker process gives the same bytes as this one
    assert there.file(4).stat().st_mtime_ns == before
    assert events == [Progress("timm/tiny", 4, 4)]
    assert train_all([good, there]) == {}
