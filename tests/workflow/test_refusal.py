"""What is refused before anything runs: the message, the exit code, and an untouched store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from zoo import PIXELS, SPARE_STEP, VIT, Zoo, inside, tree

from pipeline.cli import main
from pipeline.errors import InputError


def consilience(zoo: Zoo, *arguments: str) -> Result:
    with inside(zoo.folder):
        return CliRunner().invoke(main, arguments)


def assert_refused(zoo: Zoo, *arguments: str) -> str:
    """Run, and see exit code 2, one message, no traceback, and the store as it was."""
    before = tree(zoo.folder)
    result = consilience(zoo, "run", "workflow.yaml", *arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.output.startswith("consilience: ")
    assert result.output.count("consilience: ") == 1
    assert tree(zoo.folder) == before
    return " ".join(result.output.split())


def test_run__changed_recipe(copied: Zoo) -> None:
    copied.edit("timm/vit-a", pool="max")
    message = assert_refused(copied)
    assert "registry.yaml, line 2: model timm/vit-a: its recipe is not the one in" in message
    assert "pool was 'auto', is now 'max'" in message
    assert (
        "give the new one another `id:`, or extract it again with --replace timm/vit-a" in message
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers": "last"}, "layers was 'blocks', is now 'last'"),
        ({"arguments": {**VIT, "embed_dim": 24, "drop_rate": 0.1}}, "arguments was {"),
        ({"preprocessing": {**PIXELS, "mean": [0.4, 0.5, 0.5]}}, "preprocessing was {"),
        ({"precision": "bfloat16"}, "precision was 'float32', is now 'bfloat16'"),
    ],
)
def test_run__changed_entry(copied: Zoo, changes: dict[str, Any], expected: str) -> None:
    copied.edit("timm/vit-b", **changes)
    message = assert_refused(copied)
    assert "model timm/vit-b: its recipe is not the one in the store" in message
    assert expected in message
    assert "--replace timm/vit-b" in message


def test_run__changed_architecture_file(copied: Zoo) -> None:
    config = copied.folder / "clip.json"
    config.write_text(config.read_text().replace('"layers": 2', '"layers": 3'))
    message = assert_refused(copied)
    assert "model open_clip/clip: its recipe is not the one in the store: config was" in message


def test_run__changed_vocabulary_file(copied: Zoo) -> None:
    """Other merges are other tokens: what is stored was computed from other inputs."""
    import gzip

    file = copied.folder / "bpe.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")
    lines[1:] = lines[:0:-1]
    file.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    assert "open_clip/clip" in assert_refused(copied)


def test_run__changed_weights_file(copied: Zoo) -> None:
    folder = copied.folder / "run" / "vit-b"
    (folder / f"spare-{SPARE_STEP}.safetensors").replace(folder / "step-10.safetensors")
    (folder / "step-10.safetensors").touch()  # the files were written in one tick of the clock
    message = assert_refused(copied)
    assert "model timm/vit-b, checkpoint step10: its weights are not those in the store" in message
    assert "(were sha256:" in message
    assert ", are now sha256:" in message
    assert "--replace timm/vit-b" in message


def test_run__broken_checkpoint_files(copied: Zoo) -> None:
    """Known before anything runs, and said once for the entry."""
    folder = copied.folder / "run" / "late"
    for step in (0, 10):
        whole = (folder / f"step-{step}.safetensors").read_bytes()
        (folder / f"step-{step}.safetensors").write_bytes(whole[:2000])
    message = assert_refused(copied, "--set", "models.sets=[late]")
    assert "model timm/late: the checkpoint run/late/step-0.safetensors cannot be read: " in message
    assert "Replace the file or drop the checkpoint." in message
    assert "Nor can these of its checkpoints be used: step10." in message


def test_run__another_choice_within_a_file(copied: Zoo) -> None:
    end = {"file": "run/conv/step-10.safetensors", "step": 10, "prefix": ""}
    copied.edit("timm/conv", checkpoints={"init": {"init": {"seed": 0}}, "end": end})
    message = assert_refused(copied)
    assert re.search(
        r"checkpoint end: its weights are not those in the store \(were (sha256:\w+), are now \1 "
        r'{"prefix": ""}\)\.',
        message,
    )


def test_run__changed_seed(copied: Zoo) -> None:
    copied.edit("timm/conv", checkpoints={"init": {"init": {"seed": 1}}})
    message = assert_refused(copied)
    assert re.search(r"were init:seed=0@[0-9a-f]+, are now init:seed=1@[0-9a-f]+\)", message)


@pytest.mark.parametrize("label", ["row", "c", "zarr.json"])
def test_run__label_that_the_store_needs(copied: Zoo, label: str) -> None:
    message = assert_refused(copied, "--set", f"compare.measures={{{label}: {{measure: cka}}}}")
    assert f"'{label}' is a name that the store reserves; choose another label" in message


def test_run__label_with_another_parameter(copied: Zoo) -> None:
    message = assert_refused(copied, "--set", "compare.measures.knn.k=7")
    assert "measure 'knn': in the store this label stands for mutual_knn(" in message
    assert "k=5" in message
    assert "k=7" in message
    assert "Give the new one another label" in message


def test_run__subset_too_large(copied: Zoo) -> None:
    message = assert_refused(copied, "--set", "subset.n=598")
    assert "n = 598 rows were asked of stimuli 'digits-test', which have 597" in message


def test_run__subset_too_small(copied: Zoo) -> None:
    message = assert_refused(copied, "--set", "subset.n=5")
    assert "subset: 5 rows are too few for these measures, which need " in message
    assert "Raise subset.n, or lower k" in message


def test_run__too_few_distinct_captions(copied: Zoo) -> None:
    message = assert_refused(
        copied, "--set", "compare.measures={k55: {measure: mutual_knn, k: 55}}"
    )
    assert "its 64 rows have" in message
    assert "distinct captions, too few" in message


def test_run__unknown_set(copied: Zoo) -> None:
    message = assert_refused(copied, "--set", "models.sets=[tinny]")
    assert (
        "no set 'tinny' in the registry, which is registry.yaml. Did you mean 'tiny'? Known: late, "
        "tiny. A file of your own counts once `registry:` names it."
    ) in message


def test_run__checkpoint_that_does_not_fit(copied: Zoo) -> None:
    folder = copied.folder / "run"
    weights = load_file(folder / "late" / f"spare-{SPARE_STEP}.safetensors")
    save_file(weights, folder / "vit-b" / f"step-{SPARE_STEP}.safetensors")
    message = assert_refused(copied)
    assert "model timm/vit-b: the checkpoint run/vit-b/step-20.safetensors does not fit" in message
    assert "(1, 1, 16) in the file, (1, 1, 24) in the model" in message


def test_run__template_that_matches_nothing(copied: Zoo) -> None:
    copied.edit("timm/vit-a", checkpoints="run/vit-a/epoch-{step}.pth")
    message = assert_refused(copied)
    assert "the template run/vit-a/epoch-{step}.pth matches no file" in message
    assert "The folder run/vit-a holds spare-20.safetensors, step-0.safetensors" in message


def test_run__checkpoint_file_that_is_not_there(copied: Zoo) -> None:
    copied.edit("timm/conv", checkpoints={"end": {"file": "run/conv/step-11.safetensors"}})
    message = assert_refused(copied)
    assert "there is no file run/conv/step-11.safetensors" in message
    assert "Did you mean 'step-10.safetensors'" in message


def test_run__unknown_architecture(copied: Zoo) -> None:
    copied.edit("timm/late", name="vit_tinny_patch16_224")
    message = assert_refused(copied, "--set", "models.sets=[late]")
    assert "timm knows no architecture 'vit_tinny_patch16_224'. Did you mean" in message


def test_run__arguments_that_do_not_build(copied: Zoo) -> None:
    copied.edit("timm/late", arguments={"nonsense": 3})
    message = assert_refused(copied, "--set", "models.sets=[late]")
    assert "timm cannot build vit_tiny_patch16_224 with arguments {'nonsense': 3}" in message


def test_run__input_that_the_architecture_cannot_take(copied: Zoo) -> None:
    copied.edit("timm/late", preprocessing={"input_size": 24})
    message = assert_refused(copied, "--set", "models.sets=[late]")
    assert "timm/late" in message


def test_run__not_yaml(copied: Zoo) -> None:
    (copied.folder / "workflow.yaml").write_text("store: [a\nmodels: b\n")
    assert "workflow.yaml, line 2: this is not YAML" in assert_refused(copied)


def test_run__unknown_key(copied: Zoo) -> None:
    message = assert_refused(copied, "--set", "calibrate.permutations=99")
    assert "unknown key 'calibrate.permutations'. Did you mean 'n_permutations'?" in message


def test_run__missing_workflow(copied: Zoo) -> None:
    result = consilience(copied, "run", "workflaw.yaml")
    assert result.exit_code == 2
    assert "workflaw.yaml: there is no such file" in result.output
    assert "Did you mean 'workflow.yaml'?" in result.output


def test_run__missing_registry(copied: Zoo) -> None:
    assert "models.yml: there is no such file" in assert_refused(
        copied, "--set", "registry=models.yml"
    )


def test_run__store_is_a_file(copied: Zoo) -> None:
    (copied.folder / "a.zarr").write_text("")
    assert "a.zarr is a file, but a store is a folder" in assert_refused(
        copied, "--store", "a.zarr"
    )


def test_run__store_is_locked(copied: Zoo) -> None:
    from pipeline.store.io.lease import lease

    with lease(copied.path):
        message = assert_refused(copied)
    assert "store.zarr is in use by process" in message


@pytest.mark.parametrize(
    ("model", "expected"),
    [("timm/vit-c", "no model 'timm/vit-c' in the registry. Did you mean"),
     ("timm/late", "the workflow does not select this model")],
)  # fmt: skip
def test_run__replace_of_what_does_not_take_part(copied: Zoo, model: str, expected: str) -> None:
    assert expected in assert_refused(copied, "--replace", model)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("calibrate.n_permutations", "--set calibrate.n_permutations: expected key=value"),
        ("=3", "--set =3: expected key=value"),
        ("store.path=3", "is below a value, not a mapping"),
        ("models.sets.first=3", "is below a value, not a mapping"),
        ("subset.n=[3", "is not a YAML value"),
        ("subset.n=many", "'subset.n': Input should be a valid integer"),
        ("subset.n=0", "greater than or equal to 1"),
        ("cluster.kind=slurmy", "kind 'slurmy' is none of local, address"),
        ("cluster.kind=address", "'cluster.address' is missing"),
        ("compare.measures={}", "name at least one measure"),
        ("compare.measures={rsaa: {}}", "There is no measure 'rsaa'"),
        ("compare.measures.cka={k: 3}", "cka"),
        ("compare.measures={'a/b': {measure: cka}}", "compare.measures"),
        ("compare.pairs=[finale]", "compare.pairs"),
        ("calibrate.n_permutations=18", "greater than or equal to 19"),
        ("calibrate.alpha=1", "less than 1"),
        (
            "calibrate.alpha=0.02",
            "calibrate: With n_permutations=39 the smallest possible p is "
            "1/40, above alpha=0.02: no score could be significant. Use at least 49 perm",
        ),
        ("calibrate={alpha: 0.001}", "Use at least 999 permutations."),
        (
            "calibrate={alpha: 0.0005, method: analytic}",
            "With n_permutations=999 the smallest possible p is 1/1000, above alpha=0.0005",
        ),
        ("models={}", "name at least one of sets, families, ids"),
        ("modles=3", "unknown key 'modles'. Did you mean 'models'"),
    ],
)
def test_run__setting(copied_once: Zoo, setting: str, expected: str) -> None:
    assert expected in assert_refused(copied_once, "--set", setting)


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["plan"]])
def test_run__level_that_no_p_reaches(copied_once: Zoo, command: list[str]) -> None:
    """The line is that of `calibrate`; what the store holds stays as it was."""
    before = tree(copied_once.folder)
    result = consilience(
        copied_once, *command, "workflow.yaml", "--set", "calibrate.alpha=0.001",
        "--set", "calibrate.n_permutations=199",
    )  # fmt: skip
    lines = (copied_once.folder / "workflow.yaml").read_text().splitlines()
    (line,) = (i for i, text in enumerate(lines, 1) if text.startswith("calibrate:"))
    assert result.exit_code == 2
    assert result.output == (
        f"consilience: workflow.yaml, line {line}: calibrate: With n_permutations=199 the smallest "
        "possible p is 1/200, above alpha=0.001: no score could be significant. Use at least "
        "999 permutations.\n"
    )
    assert tree(copied_once.folder) == before


def test_run__level_that_measures_without_moments_do_not_reach(copied_once: Zoo) -> None:
    """They are permuted, 199 times, where others have 999 draws."""
    measures = "compare.measures={cka: {}, turned: {measure: procrustes}}"
    message = assert_refused(
        copied_once, "--set", measures, "--set", "calibrate={method: analytic, alpha: 0.002}"
    )
    assert "calibrate: turned: With n_permutations=199 the smallest possible p is 1/200" in message


@pytest.fixture(scope="module")
def copied_once(zoo: Zoo, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return zoo.copy(tmp_path_factory.mktemp("refused") / "zoo", cluster)


def test_run__refused_before_a_store_is_made(copied: Zoo) -> None:
    message = assert_refused(copied, "--store", "new.zarr", "--set", "subset.n=5")
    assert "too few" in message
    assert not Path(copied.folder, "new.zarr").exists()


def test_plan__of_a_changed_recipe_with_replace(copied: Zoo) -> None:
    copied.edit("timm/vit-a", pool="max")
    with pytest.raises(InputError, match="its recipe is not the one"):
        copied.plan()
    plan = copied.plan(replace=("timm/vit-a",))
    assert plan.n_tasks["extract"] == 1
    assert not plan.is_done
