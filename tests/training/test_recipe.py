"""What a registry file says of training, and what is refused before anything is trained."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.stimuli.digits import DigitsSpec
from pipeline.training import TrainingRecipe, load_recipes, planned_steps

ENTRY = (
    "source: timm, name: resnet18, id: timm/{id}, checkpoints: '{folder}/{id}/step-{{step}}{end}'"
)


def write(
    folder: Path,
    defaults: str = "{steps: 20}",
    training: str = "{seed: 1}",
    more: str = "",
    end: str = ".safetensors",
    ids: tuple[str, ...] = ("tiny",),
) -> Path:
    entries = [
        f"  - {{{ENTRY.format(id=i, folder=folder, end=end)}, training: {training}{more}}}"
        for i in ids
    ]
    path = folder / "registry.yaml"
    path.write_text("\n".join([f"training: {defaults}", "models:", *entries]) + "\n")
    return path


def one(path: Path) -> TrainingRecipe:
    (recipe,) = load_recipes(path)
    return recipe


def test_load_recipes__own_options_over_defaults(tmp_path: Path) -> None:
    options = one(write(tmp_path, "{steps: 20, seed: 5}", "{seed: 1}")).options
    assert (options.steps, options.seed, options.batch_size) == (20, 1, 64)


def test_load_recipes__entries_without_training_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text() + "  - {source: timm, name: resnet18.a1_in1k}\n")
    assert [r.model.id for r in load_recipes(path)] == ["timm/tiny"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"defaults": "{stepz: 3}"}, r"registry.yaml, line 1: unknown key 'stepz'. Did you mean "),
        ({"training": "{lr: 3}"}, r"registry.yaml, line 3: .*timm/tiny.*unknown key 'lr'"),
        ({"training": "{steps: 1}"}, r"line 3: .*'steps'.*greater than or equal to 2"),
        ({"training": "{seed: no}"}, r"line 3: .*'seed'"),
        ({"end": ".bin"}, r"line 3: entry 'timm/tiny': .*must end in .safetensors or .pth.tar"),
        ({"training": "{checkpoint_steps: [-1]}"}, r"checkpoint_steps: -1 is negative"),
        ({"training": "{stimuli: {part: all}}"}, r"tested on stimuli that it is trained on"),
        ({"training": "{held_out: {part: train}}"}, r"tested on stimuli that it is trained on"),
        ({"more": ", metadata: {samples_seen: 9}"}, r"samples_seen is 9, but 20 .* are 1280"),
    ],
)
def test_load_recipes__fault(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipes(write(tmp_path, **arguments))  # type: ignore[arg-type]


def test_load_recipes__checkpoints_without_template(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("models: [{source: timm, name: resnet18, training: {}}]\n")
    with pytest.raises(InputError, match=r"line 1: .*needs `checkpoints:` with a template"):
        load_recipes(path)


@pytest.mark.parametrize("template", ["a/{step}/w.safetensors", "a/{epoch}-{step}.safetensors"])
def test_load_recipes__no_template_of_steps(tmp_path: Path, template: str) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text(
        f"models: [{{source: timm, name: resnet18, checkpoints: '{template}', training: {{}}}}]\n"
    )
    with pytest.raises(InputError, match=r"template of file names"):
        load_recipes(path)


def test_load_recipes__shared_folder(tmp_path: Path) -> None:
    path = write(tmp_path, ids=("tiny", "other"))
    path.write_text(path.read_text().replace("/other/step", "/tiny/step"))
    with pytest.raises(InputError, match=r"line 4: .*'timm/other' saves to .*, as 'timm/tiny'"):
        load_recipes(path)


def test_load_recipes__nothing_to_train(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("models: [{source: timm, name: resnet18.a1_in1k}]\n")
    with pytest.raises(InputError, match=r"no entry has `training:`.*Add `training: "):
        load_recipes(path)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(20, (0, 1, 3, 10, 20)), (100, (0, 1, 3, 10, 30, 100)), (101, (0, 1, 3, 10, 30, 100, 101))],
)
def test_planned_steps__end_is_always_there(
    tmp_path: Path, steps: int, expected: tuple[int, ...]
) -> None:
    assert planned_steps(one(write(tmp_path, f"{{steps: {steps}}}"))) == expected


def test_digest__follows_what_weights_depend_on(tmp_path: Path) -> None:
    digest = one(write(tmp_path)).digest
    assert one(write(tmp_path, more=", layers: last, family: x, sets: [y]")).digest == digest
    for changed in (
        write(tmp_path, training="{seed: 2}").read_text(),
        write(tmp_path, more=", arguments: {num_classes: 10}").read_text(),
        write(tmp_path, more=", preprocessing: {input_size: 16}").read_text(),
    ):
        (tmp_path / "registry.yaml").write_text(changed)
        assert one(tmp_path / "registry.yaml").digest != digest


def test_seeds__of_each_use_and_recipe(tmp_path: Path) -> None:
    seeds = one(write(tmp_path)).seeds
    assert len(set(seeds.values())) == len(seeds) == 3
    for changed in (
        write(tmp_path, training="{seed: 2}").read_text(),
        write(tmp_path, more=", arguments: {num_classes: 10}").read_text(),
        write(tmp_path, more=", preprocessing: {input_size: 16}").read_text(),
        write(tmp_path, training="{seed: 1, learning_rate: 0.1}").read_text(),
    ):
        (tmp_path / "registry.yaml").write_text(changed)
        assert not set(one(tmp_path / "registry.yaml").seeds.values()) & set(seeds.values())


def test_seeds__do_not_change_with_what_is_saved_and_tested(tmp_path: Path) -> None:
    seeds = one(write(tmp_path)).seeds
    for same in (
        write(tmp_path, more=", layers: last, family: x, sets: [y]"),
        write(tmp_path, ids=("other",), end=".pth.tar"),
        write(tmp_path, training="{seed: 1, checkpoint_steps: [0, 7]}"),
    ):
        assert one(same).seeds == seeds
    recipe = one(write(tmp_path))
    options = recipe.options.model_copy(update={"held_out": DigitsSpec(part="all")})
    assert recipe.model_copy(update={"options": options}).seeds == seeds


def test_load_recipes__one_model_twice(tmp_path: Path) -> None:
    path = write(tmp_path, ids=("tiny", "other"))
    with pytest.raises(InputError, match=r"line 4: .*'timm/other' is trained by the same recipe"):
        load_recipes(path)
    path.write_text("seed: 2".join(path.read_text().rsplit("seed: 1", 1)))
    assert len(load_recipes(path)) == 2


def test_import__loads_no_torch() -> None:
    code = (
        "import sys; from pipeline.training import is_trained, load_recipes\n"
        "[is_trained(r) for r in load_recipes('workflows/reference.yaml')]\n"
        "assert not {'torch', 'timm', 'open_clip', 'sklearn'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
