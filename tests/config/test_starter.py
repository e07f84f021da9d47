"""Files to begin with are valid, say what they are, and overwrite nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from pictures import write_photos
from zoo import inside

from pipeline.cli import main
from pipeline.config.registry import load_registry
from pipeline.config.starter import write_starter
from pipeline.errors import InputError
from pipeline.workflow import load_workflow, plan_workflow, run_workflow


def test_images__planned_as_they_are_and_run_on_untrained_models(
    tmp_path: Path, cluster: str
) -> None:
    write_photos(tmp_path / "my pictures", [f"{i}.png" for i in range(16)])
    with inside(tmp_path):
        files = write_starter("study", images="my pictures")
    assert [f.name for f in files] == ["workflow.yaml", "models.yaml"]
    with inside(tmp_path / "study"):
        workflow, _ = load_workflow("workflow.yaml")
        plan = plan_workflow(workflow)
        assert plan.n_tasks["extract"] == 5
        assert len(plan.context.stimuli) == 16
        mine, _ = load_workflow("workflow.yaml", settings=["models={sets: [mine]}"])
        report = run_workflow(mine, cluster=cluster)
        assert report.failures == {}
        assert report.finished == {"extract": 2, "compare": 1, "calibrate": 1}


def test_images__inside_the_folder_are_relative(tmp_path: Path) -> None:
    write_photos(tmp_path / "pics", ["a.png"])
    with inside(tmp_path):
        write_starter(".", images="pics")
        workflow, _ = load_workflow("workflow.yaml")
    assert workflow.stimuli.recorded() == {"source": "images", "root": "pics"}


def test_dataset__named(tmp_path: Path) -> None:
    write_starter(tmp_path, dataset="minhuh/prh")
    with inside(tmp_path):
        workflow, _ = load_workflow("workflow.yaml")
    assert workflow.stimuli.recorded() == {"source": "huggingface", "dataset": "minhuh/prh"}


def test_digits__the_quickstart(tmp_path: Path) -> None:
    first, *_ = write_starter(tmp_path)
    assert first == tmp_path / "workflows/quickstart.yaml"
    with inside(tmp_path):
        workflow, _ = load_workflow("workflows/quickstart.yaml")
        plan = plan_workflow(workflow)
    assert plan.n_tasks["train"] == len(load_registry([tmp_path / "workflows/reference.yaml"]))


def test_registry__examples_in_comments_are_valid(tmp_path: Path) -> None:
    write_starter(tmp_path, dataset="x")
    text = (tmp_path / "models.yaml").read_text()
    commented = re.sub(r"(?m)^  # (- id|  )", r"  \1", text)
    assert commented != text
    (tmp_path / "all.yaml").write_text(commented)
    assert len(load_registry([tmp_path / "all.yaml"])) == 3


@pytest.mark.parametrize("name", ["workflow.yaml", "models.yaml"])
def test_starter__overwrites_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name} exists, and is not overwritten"):
        write_starter(tmp_path, dataset="x")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_images__no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--images: there is no folder nowhere"):
        write_starter(tmp_path / "new", images="nowhere")
    assert not (tmp_path / "new").exists()


def test_command__says_what_it_wrote(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["init", str(tmp_path / "a"), "--dataset", "x/y"])
    assert result.exit_code == 0
    assert f"wrote {tmp_path}/a/workflow.yaml\nwrote {tmp_path}/a/models.yaml\n" == result.output
    for arguments in ([], ["--digits", "--dataset", "x"]):
        result = CliRunner().invoke(main, ["init", str(tmp_path), *arguments])
        assert result.exit_code == 2
        assert "say on what: --images FOLDER, --dataset NAME, or --digits" in result.stderr
