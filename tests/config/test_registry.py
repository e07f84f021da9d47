"""What a registry file says, and what is refused before any model is built."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.config.model import Checkpoint, EveryN, Init, ModelSpec, read_json
from pipeline.config.registry import Registry, load_registry, models_schema
from pipeline.errors import FaultyFileError, InputError

SHIPPED = ("models.yaml", "workflows/reference.yaml")
R18 = "  - source: timm\n    name: resnet18\n"


def write(folder: Path, entries: str, name: str = "models.yaml") -> Path:
    path = folder / name
    path.write_text(f"models:\n{entries}")
    return path


def load(folder: Path, entries: str) -> Registry:
    return load_registry([write(folder, entries)])


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec.model_validate({"source": "timm", "name": "resnet18", **changes})


# one entry


def test_model_spec__defaults() -> None:
    timm, clip = spec(), spec(source="open_clip", name="ViT-B-32", pretrained="openai")
    assert (timm.id, timm.family, timm.towers) == ("timm/resnet18", "timm/resnet18", ("image",))
    assert (clip.id, clip.towers) == ("open_clip/ViT-B-32.openai", ("image", "text"))
    assert timm.layers == "blocks"
    assert timm.pool == "auto"
    assert timm.precision == "float32"
    assert timm.checkpoint_map() == {"pretrained": Checkpoint()}


def test_model_spec__id_of_hub_names() -> None:
    assert spec(name="hf_hub:timm/resnet18").id == "timm/hf_hub--timm--resnet18"


def test_model_spec__one_or_many() -> None:
    many = spec(sets="a", same_weights_as="timm/x", initialised_from=["timm/y", "timm/z"])
    assert many.sets == ("a",)
    assert many.same_weights_as == ("timm/x",)
    assert many.initialised_from == ("timm/y", "timm/z")


@pytest.mark.parametrize(
    "name",
    ["a b", "timm/a/b", "timm/a@b", "timm/a#b", "timm/a=b", "nope", "timm/", "timm/-a", "Timm/a",
     "timm/.a", "/a", "timm/é"],
)  # fmt: skip
def test_model_spec__id_rules(tmp_path: Path, name: str) -> None:
    message = rf"models.yaml, line 2: entry '{name}': .*the id '{name}' needs the form SOURCE/NAME "
    with pytest.raises(InputError, match=message + r"with one slash.*Set `id:` to one\."):
        load(tmp_path, f"{R18}    id: '{name}'\n")


def test_model_spec__id_ends_where_the_name_ends(tmp_path: Path) -> None:
    # once wrong: `$` also matches before a last line end; fullmatch
    with pytest.raises(InputError, match=r"needs the form SOURCE/NAME"):
        load(tmp_path, f'{R18}    id: "timm/a\\n"\n')
    with pytest.raises(InputError, match=r"the checkpoint label"):
        load(tmp_path, f'{R18}    checkpoints: {{"a\\n": {{init: {{}}}}}}\n')


@settings(deadline=None)
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
def test_model_spec__every_id_of_the_rule(name: str) -> None:
    assert spec(id=f"timm/{name}").id == f"timm/{name}"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (R18 + "    nme: x\n", r"line 4: entry 'resnet18': unknown key 'nme'. Did you mean 'name'"),
        (
            R18 + "    preprocessing:\n      input_sise: 3\n",
            r"line 5: entry 'resnet18': unknown key 'preprocessing.input_sise'. Did you mean "
            r"'input_size'\? Known keys: crop_pct, input_size, interpolation, mean, std\.",
        ),
        (
            R18 + "    checkpoints:\n      a: {fil: x}\n",
            r"line 5: entry 'resnet18': unknown key 'checkpoints.a.fil'. Did you mean 'file'\?",
        ),
        (
            R18 + "    checkpoints:\n      a:\n        init: {sed: 1}\n",
            r"line 6: .*unknown key 'checkpoints.a.init.sed'. Did you mean 'seed'\? Known keys: ",
        ),
        (
            R18 + "    checkpoints: 3\n",
            r"line 4: .*'checkpoints': Input should be a valid string, or a valid list, or "
            r"a valid dict.*given: 3",
        ),
        (
            R18 + "    checkpoints:\n      a b: {}\n",
            r"line \d: .*the checkpoint label 'a b' may only have letters, digits, dots, dashes "
            r"and underscores, because it becomes part of a name in the store",
        ),
        (
            R18 + "    checkpoints:\n      a: {init: {}, file: x, pretrained: y}\n",
            r"line 5: .*checkpoints.a: init and file and pretrained exclude each other: keep one",
        ),
        (R18 + "    checkpoints:\n      a: {step: -1}\n", r"line 5: .*'checkpoints.a.step'.*to 0"),
        (
            R18 + "    checkpoints: runs/last.pth\n",
            r"line 4: .*the template 'runs/last.pth' needs {step} or {epoch} exactly once, in the "
            r"place of the number in the file names\. A single file goes in a list: \[FILE\]",
        ),
        (
            R18 + "    checkpoints: '{step}/{step}'\n",
            r"line 4: .*needs {step} or {epoch} exactly once",
        ),
        (
            R18 + "    checkpoints:\n      a: {init: {}, key: x, ignore: y}\n",
            r"line 5: .*checkpoints.a: key and ignore need `file:`, which they are about\.",
        ),
        (R18 + "    checkpoints:\n      - {kye: x}\n", r"line 5: .*key 'checkpoints.0.kye'.*'key'"),
        (R18 + "    checkpoints:\n      - 3\n", r"line 5: .*'checkpoints.0': .*given: 3"),
        (
            R18 + "    checkpoints: [{init: {}}]\n",
            r"line 4: .*a list of checkpoints names files\. Write a map of labels for others",
        ),
        (
            R18 + "    checkpoints: [a.pt, {file: a.pt, key: ema}]\n",
            r"a.pt and a.pt would both have the label a\. Write a map of labels instead, such as "
            r"{a: {file: a.pt, key: …}, b: …}\.",
        ),
        (
            R18 + "    checkpoints: [epoch=3-step=5.ckpt]\n",
            r"label 'epoch=3-step=5' may only have .* Write a map of labels of your own, "
            r"{label: epoch=3-step=5.ckpt}\.",
        ),
        (
            R18 + "    checkpoints: {ema: 'a-{step}.pt'}\n",
            r"checkpoints: a-{step}.pt stands for many files, so the label 'ema' needs {step} "
            r"exactly once, as in ema-{step}, and no `step:` beside it\.",
        ),
        (
            R18 + "    checkpoints: [{file: 'a-{epoch}.pt', step: 3}]\n",
            r"the label 'epoch{epoch}' needs {epoch} exactly once, .* and no `step:` beside it\.",
        ),
        (R18 + "    layers: {every: 0}\n", r"line 4: .*'layers.every'.*greater than or equal to 1"),
        (R18 + "    layers: {evry: 2}\n", r"unknown key 'layers.evry'. Did you mean 'every'\?"),
        (R18 + "    layers: 3\n", r"line 4: .*'layers': Input should be 'blocks', 'all' or 'last'"),
        (R18 + "    pool: clss\n", r"line 4: .*'pool': Input should be 'auto', 'cls', 'mean'"),
        (R18 + "    precision: float8\n", r"line 4: .*'precision': .*'float32', 'bfloat16' or"),
        (R18 + "    metadata:\n      a: [1]\n", r"line 5: .*'metadata.a': .*a valid string, or"),
        (R18 + "    towers: [image, txt]\n", r"line 4: .*'towers.1': Input should be 'image' or"),
        (R18 + "    towers: [text]\n", r"timm models have one tower: towers: \[image\]"),
        (
            R18 + "    pretrained: a1_in1k\n",
            r"timm names carry their tag: write name: resnet18.a1_in1k, without `pretrained`",
        ),
        (R18 + "    config: x.json\n", r"`config` is for open_clip; use `arguments` with timm"),
        ("  - source: tim\n    name: a\n", r"line 2: entry 'a': 'source': .*'timm' or 'open_clip'"),
        ("  - name: a\n", r"line 2: entry 'a': 'source' is missing\."),
        ("  - source: timm\n", r"line 2: 'name' is missing\."),
        ("  - 3\n", r"line 2: 'the entry': .*\(given: 3\)\."),
        (R18 + "    preprocessing: {crop_pct: 2}\n", r"'preprocessing.crop_pct': .*equal to 1"),
        (
            R18 + "    pool: [cls, cls]\n",
            r"line 4: entry 'resnet18': pool: \['cls', 'cls'\] has a read-out twice, or none\. "
            r"List each once\.",
        ),
        (R18 + "    pool: []\n", r"pool: \[\] has a read-out twice, or none\."),
        (R18 + "    pool: [cls, clss]\n", r"'pool.*(given: 'clss')"),
        (R18 + "    preprocessing: {input_size: [3, 4, 5]}\n", r"'preprocessing.input_size"),
        (R18 + "    preprocessing: {input_size: [0, 4]}\n", r"'preprocessing.input_size"),
        (R18 + "    name: resnet34\n", r"line 4: found duplicate key \"name\""),
    ],
)
def test_load_registry__fault(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(
        InputError, match=r"models.yaml, " + message if "line" in message[:5] else message
    ):
        load(tmp_path, entry)


@pytest.mark.parametrize("text", ["models: {}\n", "x: 1\n", "models: a\n", "models:\n"])
def test_load_registry__no_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(
        InputError, match=r"m.yaml: a registry needs `models:`, a list of entries \(- source: …"
    ):
        load_registry([tmp_path / "m.yaml"])


def test_load_registry__duplicate_id_in_one_file(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"models.yaml, line 4: the id 'timm/resnet18' is taken already by /.*models.yaml, "
        r"line 2\. Give one of the two another `id:`, or, .* make them checkpoints of one entry",
    ):
        load(tmp_path, R18 + R18)


def test_load_registry__duplicate_id_over_files(tmp_path: Path) -> None:
    first, second = write(tmp_path, R18, "a.yaml"), write(tmp_path, R18, "b.yaml")
    with pytest.raises(InputError, match=r"b.yaml, line 2: .* taken already by /.*a.yaml, line 2"):
        load_registry([first, second])


def test_load_registry__every_wrong_entry(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(
        "models:\n"
        "  - {source: timm, name: resnet18, pol: mean, towers: [smell]}\n"
        "  - {source: timm, name: resnet34}\n"
        "  - {source: timm, name: resnet34, same_weights_as: timm/resnet18}\n"
    )
    second.write_text("models:\n  - {name: resnet18}\n")
    (tmp_path / "c.yaml").write_text("modells: []\n")
    with pytest.raises(FaultyFileError) as raised:
        load_registry([first, second, tmp_path / "c.yaml"])
    lines = str(raised.value).splitlines()
    assert lines[0] == "5 faults:"
    for line, expected in zip(
        lines[1:],
        [
            rf"  {first}, line 2: entry 'resnet18': 'towers.0': .*given: 'smell'",
            rf"  {first}, line 2: entry 'resnet18': unknown key 'pol'\. Did you mean 'pool'",
            rf"  {first}, line 4: the id 'timm/resnet34' is taken already",
            rf"  {second}, line 2: entry 'resnet18': 'source' is missing\.",
            rf"  {tmp_path}/c.yaml: a registry needs `models:`",
        ],
        strict=True,
    ):
        assert re.match(expected, line), line
    assert pickle.loads(pickle.dumps(raised.value)).faults == raised.value.faults


def test_load_registry__relation_to_nothing(tmp_path: Path) -> None:
    for key in ("same_weights_as", "initialised_from"):
        with pytest.raises(
            InputError,
            match=r"models.yaml, line 2: entry 'timm/resnet18' names 'timm/resnet1' as a related "
            r"model, but there is no such entry\. Did you mean 'timm/resnet18'\?",
        ):
            load(tmp_path, f"{R18}    {key}: timm/resnet1\n")


def test_load_registry__relation_over_files(tmp_path: Path) -> None:
    first = write(tmp_path, f"{R18}    initialised_from: timm/resnet34\n", "a.yaml")
    second = write(tmp_path, "  - {source: timm, name: resnet34}\n", "b.yaml")
    registry = load_registry([first, second])
    assert registry.related() == {frozenset(("timm/resnet18", "timm/resnet34"))}


# checkpoints


def test_checkpoint__kind() -> None:
    assert Checkpoint().kind == "pretrained"
    assert Checkpoint(pretrained="x", revision="main").kind == "pretrained"
    assert Checkpoint(file="x").kind == "file"
    assert Checkpoint(init=Init()).kind == "init"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for step in (10, 9, 100):
        (tmp_path / "runs" / f"epoch{step}").mkdir(parents=True)
        (tmp_path / "runs" / f"step-{step}.pth").touch()
        (tmp_path / "runs" / f"epoch{step}" / "w.pth").touch()
    for name in ("step-.pth", "step-x.pth", "step-1.pth.bak", "a-step-1.pth"):
        (tmp_path / "runs" / name).touch()
    (tmp_path / "runs" / "step-7.pth").mkdir()
    return tmp_path


@pytest.mark.parametrize("template", ["runs/step-{step}.pth", "runs/epoch{step}/w.pth"])
@pytest.mark.parametrize("absolute", [False, True])
def test_checkpoint_map__template(runs: Path, template: str, absolute: bool) -> None:
    template = f"{runs}/{template}" if absolute else template
    assert list(spec(checkpoints=template).checkpoint_map().items()) == [
        (f"step{s}", Checkpoint(file=template.replace("{step}", str(s)), step=s))
        for s in (9, 10, 100)
    ]


def test_checkpoint_map__planned_steps_stand_in_for_files(runs: Path) -> None:
    found = spec(checkpoints="runs/step-{step}.pth").checkpoint_map([0, 10, 50])
    assert [c.step for c in found.values()] == [0, 9, 10, 50, 100]
    assert found["step50"].file == "runs/step-50.pth"
    assert list(spec(checkpoints="new/{step}.pth").checkpoint_map([3, 1])) == ["step1", "step3"]


def test_checkpoint_map__zero_padded_files_keep_their_names(runs: Path) -> None:
    (runs / "padded").mkdir()
    (runs / "padded" / "step-0010.pth").touch()
    found = spec(checkpoints="padded/step-{step}.pth").checkpoint_map()
    assert found == {"step10": Checkpoint(file="padded/step-0010.pth", step=10)}


def test_checkpoint_map__epochs(runs: Path) -> None:
    found = spec(checkpoints="runs/epoch{epoch}/w.pth").checkpoint_map()
    assert list(found.items()) == [
        (f"epoch{n}", Checkpoint(file=f"runs/epoch{n}/w.pth", step=n)) for n in (9, 10, 100)
    ]


def test_checkpoint_map__epochs_beside_steps(runs: Path) -> None:
    for name in ("epoch=1-step=20.ckpt", "epoch=0-step=10.ckpt", "epoch=x-step=30.ckpt"):
        (runs / name).touch()
    found = spec(checkpoints="epoch={epoch}-step={step}.ckpt").checkpoint_map()
    assert found == {
        "step10": Checkpoint(file="epoch=0-step=10.ckpt", step=10),
        "step20": Checkpoint(file="epoch=1-step=20.ckpt", step=20),
    }
    (runs / "epoch=2-step=20.ckpt").touch()
    with pytest.raises(InputError, match=r"epoch=1-step=20.ckpt and epoch=2.* are both step 20\."):
        spec(checkpoints="epoch={epoch}-step={step}.ckpt").checkpoint_map()
    with pytest.raises(InputError, match=r"w{epoch} matches no file .*; {epoch} stands for digits"):
        spec(checkpoints="w{epoch}").checkpoint_map()


def test_checkpoint_map__list(runs: Path) -> None:
    files = ["runs/epoch9/w.pth", "runs/epoch10/w.pth", "last.pth.tar", "best.safetensors", "a.b"]
    for file in files[2:]:
        (runs / file).touch()
    found = spec(checkpoints=[*files[:4], {"file": "a.b", "key": "ema", "step": 3}])
    assert list(found.checkpoint_map().items()) == [
        ("epoch9-w", Checkpoint(file=files[0])),
        ("epoch10-w", Checkpoint(file=files[1])),
        ("last", Checkpoint(file=files[2])),
        ("best", Checkpoint(file=files[3])),
        ("a.b", Checkpoint(file="a.b", key="ema", step=3)),
    ]
    with pytest.raises(InputError, match=r"checkpoint b: there is no file b.pt \(paths"):
        spec(checkpoints=["last.pth.tar", "b.pt"]).checkpoint_map()


def test_checkpoint_map__templates_in_a_list(runs: Path) -> None:
    (runs / "last.pth").touch()
    step = {"file": "runs/step-{step}.pth", "key": "ema"}
    found = spec(checkpoints=["last.pth", step, "runs/epoch{epoch}/w.pth"]).checkpoint_map()
    assert list(found) == [
        "last", "step9", "step10", "step100", "epoch9", "epoch10", "epoch100",
    ]  # fmt: skip
    assert found["step9"] == Checkpoint(file="runs/step-9.pth", key="ema", step=9)
    (runs / "step9.pth").touch()
    with pytest.raises(
        InputError,
        match=r"model timm/resnet18: step9.pth and runs/step-9.pth would both have the label "
        r"step9\. Write a map of labels, such as {a-{step}: …, b-{step}: …}\.",
    ):
        spec(checkpoints=["step9.pth", step]).checkpoint_map()


def test_checkpoint_map__map_of_files_and_templates(runs: Path) -> None:
    (runs / "last.pth").touch()
    found = spec(
        checkpoints={
            "end": "last.pth",
            "raw-{step}": "runs/step-{step}.pth",
            "ema-{step}": {"file": "runs/step-{step}.pth", "prefix": "ema"},
            "start": {"init": {}},
        }
    ).checkpoint_map()
    steps = (9, 10, 100)
    assert list(found.items()) == [
        ("end", Checkpoint(file="last.pth")),
        *((f"raw-{n}", Checkpoint(file=f"runs/step-{n}.pth", step=n)) for n in steps),
        *((f"ema-{n}", Checkpoint(file=f"runs/step-{n}.pth", step=n, prefix="ema."))
          for n in steps),
        ("start", Checkpoint(init=Init())),
    ]  # fmt: skip


def test_checkpoint_map__brackets_in_names_are_no_patterns(runs: Path) -> None:
    # once wrong: the parts beside {step} go to glob unescaped
    (runs / "net[ema]-3.pth").touch()
    assert list(spec(checkpoints="net[ema]-{step}.pth").checkpoint_map()) == ["step3"]


def test_checkpoint_map__two_files_of_one_step(runs: Path) -> None:
    # once wrong: of step-9.pth and step-09.pth one is dropped silently
    (runs / "runs" / "step-09.pth").touch()
    with pytest.raises(InputError, match=r"step-0?9.pth.*step-0?9.pth"):
        spec(checkpoints="runs/step-{step}.pth").checkpoint_map()


def test_checkpoint_map__template_matches_nothing(runs: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"model timm/resnet18: the template runs/s-{step}.pth matches no file \(paths are "
        rf"relative to {re.escape(os.getcwd())}; {{step}} stands for digits\)\. "
        r"The folder runs holds a-step-1.pth, epoch10, epoch100, epoch9, step-.pth\.",
    ):
        spec(checkpoints="runs/s-{step}.pth").checkpoint_map()
    (runs / "empty").mkdir()
    with pytest.raises(InputError, match=r"matches no file .*The folder empty holds nothing\."):
        spec(checkpoints="empty/{step}.pth").checkpoint_map()


# once wrong: for nowhere/{step}.pth it lists the folder above
@pytest.mark.parametrize("template", ["nowhere/step-{step}.pth", "nowhere/{step}.pth"])
def test_checkpoint_map__template_without_folder(runs: Path, template: str) -> None:
    with pytest.raises(
        InputError,
        match=r"matches no file .*There is no folder nowhere: correct the path, or train the model",
    ):
        spec(checkpoints=template).checkpoint_map()


def test_checkpoint_map__missing_file(runs: Path) -> None:
    given = {"a": {"file": "runs/step-9.pth"}, "b": {"file": "runs/step-99.pt"}}
    with pytest.raises(
        InputError,
        match=r"model timm/resnet18, checkpoint b: there is no file runs/step-99.pt \(paths are "
        r"relative to .*\)\. Did you mean 'step-9.pth'",
    ):
        spec(checkpoints=given).checkpoint_map()
    with pytest.raises(InputError, match=r"there is no file gone/w.pth .*\)\.$"):
        spec(checkpoints={"a": {"file": "gone/w.pth"}}).checkpoint_map()


def test_checkpoint_map__of_a_map(runs: Path) -> None:
    given = {
        "init": {"init": {"seed": 3}},
        "middle": {"file": "runs/step-9.pth", "step": 9},
        "end": {"pretrained": "x"},
    }
    found = spec(checkpoints=given).checkpoint_map()
    assert list(found) == list(given)
    assert found["init"] == Checkpoint(init=Init(seed=3))
    assert found["middle"].step == 9


# recipe


CHANGES: dict[str, Any] = {
    "name": "resnet34",
    "arguments": {"num_classes": 3},
    "layers": "last",
    "pool": "max",
    "precision": "bfloat16",
    "preprocessing": {"input_size": 64},
    "source": "open_clip",
}
NO_CHANGES: dict[str, Any] = {
    "id": "timm/other",
    "family": "f",
    "sets": ["s"],
    "metadata": {"samples_seen": 3e9},
    "checkpoints": {"a": {"init": {}}},
    "training": {"steps": 2},
    "same_weights_as": ["timm/x"],
    "initialised_from": ["timm/y"],
}


@pytest.mark.parametrize("key", CHANGES)
def test_recipe_digest__changes_with(key: str) -> None:
    changed = spec(id="timm/a", **{key: CHANGES[key]})
    assert changed.recipe_digest != spec(id="timm/a").recipe_digest


@pytest.mark.parametrize("key", NO_CHANGES)
def test_recipe_digest__does_not_change_with(key: str) -> None:
    assert spec(**{key: NO_CHANGES[key]}).recipe_digest == spec().recipe_digest


def test_model_spec__read_outs() -> None:
    assert spec(pool="cls+mean").recipe["pool"] == "cls+mean"
    assert spec(pool=["cls", "mean"]).recipe["pool"] == ["cls", "mean"]
    assert spec(pool=["cls", "mean"]).recipe_digest != spec(pool="cls").recipe_digest


def test_recipe_digest__forms_of_one_size() -> None:
    square = spec(preprocessing={"input_size": 64})
    assert square.recipe["preprocessing"]["input_size"] == 64
    pair = spec(preprocessing={"input_size": [64, 32]})
    assert pair.recipe["preprocessing"]["input_size"] == [64, 32]


def test_recipe_digest__every_key_is_of_one_kind() -> None:
    elsewhere = {"pretrained", "config", "towers"}  # tested below, for open_clip
    assert {*CHANGES, *NO_CHANGES, *elsewhere} == set(ModelSpec.model_fields)


def test_recipe_digest__of_open_clip(tmp_path: Path) -> None:
    config = tmp_path / "a.json"
    config.write_text('{"embed_dim": 8}')
    plain = {"source": "open_clip", "name": "a"}
    with_config = spec(**plain, config=str(config))
    digest = with_config.recipe_digest
    assert with_config.recipe["config"] == {"embed_dim": 8}
    assert digest != spec(**plain).recipe_digest
    assert spec(**plain, config=str(config), towers=["image"]).recipe_digest == digest
    assert spec(**plain, pretrained="b").recipe_digest != spec(**plain).recipe_digest
    moved = tmp_path / "b.json"
    moved.write_text('{ "embed_dim" : 8 }')  # the same architecture, written otherwise
    assert spec(**plain, config=str(moved)).recipe_digest == digest
    config.write_text('{"embed_dim": 9}')
    assert with_config.recipe_digest != digest


def test_recipe_digest__ignores_the_order_of_keys() -> None:
    one = spec(arguments={"a": 1, "b": {"c": 2, "d": 3}})
    other = spec(arguments={"b": {"d": 3, "c": 2}, "a": 1})
    assert one.recipe_digest == other.recipe_digest


def test_recipe_digest__golden() -> None:
    # a changed digest makes every stored activation look like another recipe's
    assert spec().recipe_digest == (
        "fa0eb7f286e9157e2fd8928bdc0b9e56f632871897f1ffeb9f34fc164d2b7332"
    )


def test_read_json__fault(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model a/b: there is no file .*/none.json\."):
        read_json(tmp_path / "none.json", "model a/b")
    (tmp_path / "bad.json").write_text("{,}")
    with pytest.raises(InputError, match=r"model a/b: .*/bad.json is not JSON: .*line 1"):
        read_json(tmp_path / "bad.json", "model a/b")


# the registry as a whole


ZOO = """\
  - {source: timm, name: resnet18, sets: [small, r], family: resnet}
  - {source: timm, name: resnet34, sets: r, family: resnet, initialised_from: timm/resnet18}
  - {source: timm, name: resnet50, family: resnet, same_weights_as: timm/resnet34}
  - {source: timm, name: vit_a, sets: small, initialised_from: [timm/vit_b]}
  - {source: timm, name: vit_b}
  - {source: open_clip, name: RN50, pretrained: openai, same_weights_as: timm/vit_b}
  - {source: timm, name: alone}
"""


def test_registry__mapping(tmp_path: Path) -> None:
    registry = load(tmp_path, ZOO)
    assert len(registry) == 7
    assert [s.name for s in registry][:2] == ["resnet18", "resnet34"]
    assert registry["timm/vit_a"].name == "vit_a"
    assert registry.sets == {"small", "r"}
    with pytest.raises(
        InputError,
        match=r"there is no model 'timm/resnet81' in the registry\. Did you mean 'timm/resnet18' "
        r".*`consilience models list` shows all",
    ):
        registry["timm/resnet81"]


def test_registry__related_is_transitive(tmp_path: Path) -> None:
    groups = [
        {"timm/resnet18", "timm/resnet34", "timm/resnet50"},
        {"timm/vit_a", "timm/vit_b", "open_clip/RN50.openai"},
    ]
    assert load(tmp_path, ZOO).related() == {
        frozenset((a, b)) for g in groups for a in g for b in g if a != b
    }


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=10))
def test_registry__related_is_reachability(edges: list[tuple[int, int]]) -> None:
    from pipeline.config.registry import Entry
    from pipeline.config.yaml import Document

    names = [f"timm/m{i}" for i in range(8)]
    entries = {
        name: Entry(
            spec(id=name, initialised_from=[names[b] for a, b in edges if a == i]),
            Document(Path("x"), {}),  # type: ignore[arg-type]
            (),
        )
        for i, name in enumerate(names)
    }
    reach = {n: {n} for n in range(8)}
    for _ in range(8):
        for a, b in edges:
            together = reach[a] | reach[b]
            for member in together:
                reach[member] = together
    expected = {frozenset((names[a], names[b])) for a in range(8) for b in reach[a] if a != b}
    assert Registry(entries).related() == expected


def test_registry__select(tmp_path: Path) -> None:
    registry = load(tmp_path, ZOO)

    def names(**chosen: Any) -> list[str]:
        return [s.name for s in registry.select(**chosen)]

    assert names() == []
    assert names(sets=["small"]) == ["resnet18", "vit_a"]
    assert names(families=["resnet"]) == ["resnet18", "resnet34", "resnet50"]
    assert names(ids=["timm/vit_*"]) == ["vit_a", "vit_b"]
    assert names(ids=["open_clip/*"]) == ["RN50"]
    # a union, in the order of the file, each once
    assert names(ids=["timm/alone", "timm/resnet18"], sets=["small"]) == [
        "resnet18",
        "vit_a",
        "alone",
    ]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"sets": ["smal"]}, r"no set 'smal' .* is .*\.yaml\. Did you mean 'small'\? Known: r, s"),
        ({"families": ["resnets"]}, r"no family 'resnets' .*Did you mean 'resnet'\? Known: "),
        ({"ids": ["timm/vit_c"]}, r"no model 'timm/vit_c' .*Did you mean 'timm/vit_\w' or"),
        ({"ids": ["hub/*"]}, r"no model 'hub/\*' in the registry, .* A file of your own counts"),
    ],
)
def test_registry__select_nothing(tmp_path: Path, chosen: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, ZOO).select(**chosen)


# what is shipped


def test_models_yaml__loads_with_reference() -> None:
    registry = load_registry(SHIPPED)
    assert len({s.id for s in registry}) == len(registry) > 90
    assert {"prh-val", "size-series", "clip", "reference"} <= registry.sets
    assert len(registry.select(sets=["prh-val"])) == 17
    for s in registry.select(sets=["reference"]):
        assert s.training is not None


def test_models_yaml__known_relations() -> None:
    related = load_registry(SHIPPED).related()
    for pair in (
        ("timm/vit_base_patch16_clip_224.laion2b", "open_clip/ViT-B-16.laion2b_s34b_b88k"),
        (
            "timm/vit_base_patch16_clip_224.laion2b",
            "timm/vit_base_patch16_clip_224.laion2b_ft_in12k",
        ),
    ):
        assert frozenset(pair) in related
    assert frozenset(("timm/resnet18.a1_in1k", "timm/resnet34.a1_in1k")) not in related
    assert not [p for p in related if any("ref-" in i for i in p)]  # trained apart, all of them


def test_models_yaml__metadata_are_numbers() -> None:
    for s in load_registry(SHIPPED):
        seen = s.metadata.get("samples_seen", 1.0)
        assert isinstance(seen, int | float)
        assert seen > 0


# JSON Schema


ANNOTATIONS = {"title", "description", "default", "$schema", "$defs"}


def schema_faults(schema: dict[str, Any], value: Any, root: dict[str, Any], at: str) -> list[str]:
    """Check a value against the few keywords that the schema uses; an unknown one is a fault."""
    faults: list[str] = []
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "integer": int, "null": type(None),
        "number": int | float, "boolean": bool,
    }  # fmt: skip

    def of_kind(kind: str) -> bool:
        return isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))

    for keyword, rule in schema.items():
        match keyword:
            case "$ref":
                target: Any = root
                for part in rule.removeprefix("#/").split("/"):
                    target = target[part]
                faults += schema_faults(target, value, root, at)
            case "anyOf":
                tried = [schema_faults(option, value, root, at) for option in rule]
                faults += [] if any(not t for t in tried) else [f"{at}: none of {len(tried)}"]
            case "type":
                faults += [] if of_kind(rule) else [f"{at}: not {rule}"]
            case "enum":
                faults += [] if value in rule else [f"{at}: not one of {rule}"]
            case "const":
                faults += [] if value == rule else [f"{at}: not {rule}"]
            case "required" if isinstance(value, dict):
                faults += [f"{at}: no {k}" for k in rule if k not in value]
            case "properties" if isinstance(value, dict):
                for key in rule.keys() & value.keys():
                    faults += schema_faults(rule[key], value[key], root, f"{at}.{key}")
            case "additionalProperties" if isinstance(value, dict):
                rest = value.keys() - schema.get("properties", {}).keys()
                if rule is False:
                    faults += [f"{at}: {k} too much" for k in rest]
                elif rule is not True:
                    for key in rest:
                        faults += schema_faults(rule, value[key], root, f"{at}.{key}")
            case "items" if isinstance(value, list):
                for i, item in enumerate(value):
                    faults += schema_faults(rule, item, root, f"{at}[{i}]")
            case "minimum" if isinstance(value, int | float):
                faults += [] if value >= rule else [f"{at}: below {rule}"]
            case "maximum" if isinstance(value, int | float):
                faults += [] if value <= rule else [f"{at}: above {rule}"]
            case "exclusiveMinimum" if isinstance(value, int | float):
                faults += [] if value > rule else [f"{at}: not above {rule}"]
            case _ if keyword not in ANNOTATIONS | {
                "required", "properties", "additionalProperties", "items", "minimum", "maximum",
                "exclusiveMinimum",
            }:  # fmt: skip
                faults.append(f"{at}: unknown keyword {keyword}")
            case _:
                pass
    return faults


def plain_yaml(text: str) -> Any:
    return json.loads(json.dumps(YAML(typ="safe").load(text)))


# once wrong: models.yaml writes same_weights_as and initialised_from as one name
@pytest.mark.parametrize("path", SHIPPED)
def test_models_schema__accepts_what_is_shipped(path: str) -> None:
    schema = models_schema()
    assert schema_faults(schema, plain_yaml(Path(path).read_text()), schema, path) == []


@pytest.mark.parametrize(
    "entry",
    [
        "{source: timm}",
        "{source: tim, name: a}",
        "{source: timm, name: a, nme: b}",
        "{source: timm, name: a, pool: clss}",
        "{source: timm, name: a, layers: {every: 0}}",
        "{source: timm, name: a, checkpoints: {a: {fil: x}}}",
        "{source: timm, name: a, preprocessing: {crop_pct: 0}}",
    ],
)
def test_models_schema__refuses_what_is_wrong(entry: str) -> None:
    schema = models_schema()
    assert schema_faults(schema, {"models": [plain_yaml(entry)]}, schema, "")
    assert schema_faults(schema, {}, schema, "")


@pytest.mark.parametrize("key", ["sets", "same_weights_as", "initialised_from"])
def test_models_schema__one_or_many(key: str) -> None:
    # once wrong: `sets: a` loads, but an editor marks it as wrong
    schema = models_schema()
    value = {"models": [{"source": "timm", "name": "a", key: "timm/b"}]}
    assert schema_faults(schema, value, schema, "") == []


def test_models_schema__file_for_editors_is_in_step() -> None:
    """Run `make schemas` where this fails."""
    assert json.loads(Path("docs/models.schema.json").read_text()) == models_schema()


def test_models_schema__every_key_is_described() -> None:
    schema = models_schema()
    for name, definition in schema["$defs"].items():
        for key, field in definition["properties"].items():
            assert field.get("description"), f"{name}.{key}"


def test_every_n__from_yaml(tmp_path: Path) -> None:
    (chosen,) = load(tmp_path, R18 + "    layers: {every: 2}\n")
    assert chosen.layers == EveryN(every=2)
    (chosen,) = load(tmp_path, R18 + "    layers: [a, b.*]\n")
    assert chosen.layers == ("a", "b.*")
