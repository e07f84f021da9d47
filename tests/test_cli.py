"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from processes import PATIENCE
from zoo import MEASURES, TIMM, VIT, Zoo, inside, spoil, tree

import pipeline
from pipeline.cli import main
from pipeline.errors import ModelError
from pipeline.extraction.torch_source import torch_source
from pipeline.measures import list_measures
from pipeline.report import Report
from pipeline.schema import FORMAT_VERSION
from pipeline.store import Store
from pipeline.workflow.log import read_runs


def consilience(zoo: Zoo, *arguments: str) -> Result:
    with inside(zoo.folder):
        return CliRunner().invoke(main, arguments)


def rows(output: str) -> dict[str, list[str]]:
    """Give the cells of a printed table by the first of each row."""
    cells = [[c for c in line.split("  ") if c.strip()] for line in output.splitlines()]
    return {c[0].strip(): [x.strip() for x in c[1:]] for c in cells if c}


def test_version(zoo: Zoo) -> None:
    result = consilience(zoo, "--version")
    assert (result.exit_code, result.output.strip()) == (
        0,
        f"consilience, version {pipeline.__version__}",
    )


@pytest.mark.parametrize("command", [[], ["run"], ["plan"], ["models"], ["store"], ["report"]])
def test_help__names_what_there_is(zoo: Zoo, command: list[str]) -> None:
    result = consilience(zoo, *command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize("group", [[], ["models"], ["store"]])
def test_help__summaries_are_not_cut_off(group: list[str]) -> None:
    assert (
        "..." not in CliRunner().invoke(main, [*group, "--help"]).output.partition("Commands:")[2]
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runn"], "No such command 'runn'"),
        (["run"], "Missing argument 'WORKFLOW'"),
        (["run", "workflow.yaml", "--sett", "a=3"], "No such option"),
    ],
)
def test_usage__exit_code(zoo: Zoo, arguments: list[str], expected: str) -> None:
    result = consilience(zoo, *arguments)
    assert result.exit_code == 2
    assert expected in result.output


def test_run__dry_run_writes_nothing(zoo: Zoo) -> None:
    before = tree(zoo.folder)
    result = consilience(zoo, "run", "workflow.yaml", "--dry-run", "--store", "other.zarr")
    assert result.exit_code == 0, result.output
    assert "store other.zarr" in result.output
    assert tree(zoo.folder) == before


def test_plan__of_an_empty_store_counts_everything(zoo: Zoo) -> None:
    result = consilience(zoo, "plan", "workflow.yaml", "--store", "other.zarr")
    assert result.exit_code == 0, result.output
    table = rows(result.output)
    assert table["train"] == ["0", "0 models"]
    # 597 rows of float32: conv 2 × (4+6+8+12), vit-a 2 × 24, vit-b 2 × 48, clip 2 × (32 + 24)
    written = 4 * 597 * 2 * (30 + 24 + 48 + 56) / 1024
    assert table["extract"][0] == "4"
    assert table["extract"][1:3] == ["4 models", "0 of 4"]
    assert table["extract"][5] == f"{written:.3g} KiB"
    # image layers 4, 2, 2, 2 and text layers 2, each at two steps
    layers = [4, 2, 2, 2]
    across = sum(a * b for i, a in enumerate(layers) for b in layers[:i])
    images = 2 * across + sum(2 * n * (2 * n + 1) // 2 for n in layers)
    text = 2 * 2 * sum(layers[:3]) + 4 * 5 // 2 + 4 * 4
    assert table["compare"][:3] == [
        "2",
        f"{len(MEASURES) * (images + text)} pairs of representations",
        f"0 of {len(MEASURES) * (images + text)}",
    ]
    nulls = 20 * len(MEASURES)
    assert table["calibrate"][:3] == ["2", f"{nulls} pairs of encoders", f"0 of {nulls}"]
    assert "compared on 64 images, " in result.output


def test_plan__of_a_finished_store(zoo: Zoo) -> None:
    result = consilience(zoo, "plan", "workflow.yaml")
    assert result.exit_code == 0, result.output
    table = rows(result.output)
    assert table["extract"][-1] == "4 of 4"
    pairs = 196 * len(MEASURES)
    assert table["compare"] == ["0", "0 pairs of representations", f"{pairs} of {pairs}"]
    assert "nothing to do" in result.output


def test_plan__setting_of_any_depth(zoo: Zoo) -> None:
    result = consilience(
        zoo, "plan", "workflow.yaml", "--set", "compare.measures.knn9.k=9",
        "--set", "compare.measures.knn9.measure=mutual_knn", "--set", "subset.n=32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert rows(result.output)["compare"][2] == f"0 of {196 * (len(MEASURES) + 1)}"
    assert "compared on 32 images" in result.output


def test_run__finished(zoo: Zoo) -> None:
    result = consilience(zoo, "run", "workflow.yaml")
    assert result.exit_code == 0, result.output
    assert "tasks run: none" in result.output
    assert "report   store.report/index.html" in result.output
    assert rows(result.output)["knn"]


def test_run__one_more_model_on_a_cluster_that_runs(copied: Zoo, cluster: str) -> None:
    result = consilience(
        copied, "run", "workflow.yaml", "--cluster", cluster, "--set", "models.sets=[late]",
        "--set", "compare.measures={cka: {}}", "--performance-report", "tasks.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    page = (copied.folder / "tasks.html").read_text()
    assert "Dask Performance Report" in page
    assert "timed" in page or "extract" in page  # its tasks are in it
    assert "tasks run: 1 extract, 1 compare, 1 competence" in result.output
    assert "extract: 1,194 stimuli in" in result.output  # 597 of each of two checkpoints


def test_measures__all_and_one(zoo: Zoo) -> None:
    listed = consilience(zoo, "measures")
    assert listed.exit_code == 0
    for measure in list_measures():
        assert measure.name in listed.output
    one = consilience(zoo, "measures", "mutual_knn")
    assert "k = 10: number of nearest neighbours (an integer of at least 1)" in one.output
    assert "ties share the last places equally" in one.output
    assert "preset = ''" in one.output
    wrong = consilience(zoo, "measures", "mutual_kn")
    assert wrong.exit_code == 2
    assert "Did you mean 'mutual_knn'" in wrong.output


def test_measures__what_other_code_computes(zoo: Zoo) -> None:
    def told(name: str) -> str:
        return " ".join(consilience(zoo, "measures", name).output.split())

    for measure in list_measures():
        output = told(measure.name)
        for whose, what in measure.elsewhere:
            assert f"elsewhere: {whose}: {what}" in output
    assert "preset =" not in told("svcca")
    assert "euclidean distances, not squared" in told("rsa")
    assert "elsewhere: rsatoolbox: `euclidean` dissimilarities are squared" in told("rsa")


def test_run__failure_is_named_and_exit_code_is_1(copied: Zoo, cluster: str) -> None:
    spoil(copied.folder / "run/late/step-10.safetensors")
    result = consilience(
        copied, "run", "workflow.yaml", "--cluster", cluster, "--set", "models.sets=[late]",
        "--set", "compare.measures={cka: {}}",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    assert "failed: timm/late@step10: model timm/late, image tower, layer blocks.0: the" in (
        result.output
    )
    assert "Traceback" not in result.output


def test_run__model_left_out_is_named(
    zoo: Zoo, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the findings that it is missing from, in the run that failed and in the next ones."""
    from pipeline.extraction import torch_source

    broken, load = zoo.copy(tmp_path / "zoo", cluster), torch_source.load_weights

    def failing(source: Any, spec: Any, model: Any, checkpoint: Any) -> None:
        if "vit-b/step-10.safetensors" in str(checkpoint):
            raise ModelError("the disk is full")
        load(source, spec, model, checkpoint)

    monkeypatch.setattr(torch_source, "load_weights", failing)
    for _ in range(2):
        result = consilience(
            broken, "run", "workflow.yaml", "--cluster", cluster, "--store", "new.zarr",
            "--set", "models={ids: [timm/vit-*]}", "--set", "compare.measures={cka: {}}",
        )  # fmt: skip
        assert result.exit_code == 1, result.output
        assert "failed: timm/vit-b@step10: " in result.output
        assert "note: Not fully extracted, so in no comparison: timm/vit-b@step10." in (
            result.output
        )
        assert (
            "note: Final models: 2 of 2 models left out: timm/vit-b@step10 (last checkpoint not "
            "fully extracted); timm/vit-a (no other model to compare with).\n"
        ) in result.output


def test_run__nothing_could_be_extracted(copied: Zoo, cluster: str) -> None:
    """A run that began and failed is 1; 2 says that nothing was changed."""
    for step in (0, 10):
        spoil(copied.folder / f"run/late/step-{step}.safetensors")
    result = consilience(
        copied, "run", "workflow.yaml", "--cluster", cluster, "--set", "models.sets=[late]"
    )
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    for step in (0, 10):
        assert f"failed: timm/late@step{step}: model timm/late, image tower" in result.output


def test_run__interrupted(copied: Zoo, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.workflow.stages.compare.Compare.create", interrupt)
    result = consilience(
        copied, "run", "workflow.yaml", "--cluster", cluster, "--set", "models.sets=[late]"
    )
    assert result.exit_code == 130
    said = " ".join(result.output.split())
    assert (
        "interrupted. Finished work is kept (tasks finished in this run: extract 1 of 1); run the "
        "same command again to continue." in said
    )
    assert not (copied.path / "consilience.lock").exists()
    assert read_runs(copied.path)[-1].outcome == "interrupted"


TERMINATED = """\
import time

import timm

if __name__ == "__main__":
    from pipeline.cli import main

    main()
else:  # a worker, which is in the middle of its task until it is stopped
    from distributed import get_worker

    def create_model(*_, **__):
        while get_worker().status.name == "running":
            time.sleep(0.05)

    timm.create_model = create_model
"""


def test_run__terminated(copied: Zoo) -> None:
    """SIGTERM, as a batch system sends it: workers stopped, store unlocked, and it is said."""
    script = copied.folder / "main.py"
    script.write_text(TERMINATED)
    process = subprocess.Popen(
        [sys.executable, str(script), "run", "workflow.yaml", "--set", "models.sets=[late]",
         "--cluster", "local", "--set", "cluster.n_workers=1"],
        cwd=copied.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        said = ""
        while "extract: " not in said:  # ends with the process
            line = process.stderr.readline()
            assert line, said
            said += line
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        said += process.stderr.read()
        assert process.wait() == 143, said
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stderr.close()
    assert "consilience: terminated. Finished work is kept (tasks finished in this run: " in said
    assert "extract 0 of 1); run the same command again to continue." in said
    assert "Traceback" not in said
    assert children
    _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert alive == []
    assert not (copied.path / "consilience.lock").exists()
    assert read_runs(copied.path)[-1].outcome == "terminated"


@pytest.mark.parametrize(
    ("file", "expected"),
    [("none/tasks.html", "there is no folder"), ("run", "this is a folder. Name a file in it")],
)
def test_run__performance_report_that_could_not_be_written(
    zoo: Zoo, file: str, expected: str
) -> None:
    result = consilience(zoo, "run", "workflow.yaml", "--performance-report", file)
    assert result.exit_code == 2
    assert expected in result.output


def test_run__cluster_that_does_not_answer(copied: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.connection.CONNECT_SECONDS", 0.5)
    before = tree(copied.folder)
    result = consilience(
        copied, "run", "workflow.yaml", "--cluster", "tcp://127.0.0.1:1", "--set",
        "subset.n=48", "--store", "new.zarr",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in result.output
    assert tree(copied.folder) == before


def test_main__as_a_process_prints_no_traceback(zoo: Zoo) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import main; main()", "run", "missing.yaml"],
        cwd=zoo.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("consilience: missing.yaml: there is no such file")
    assert "Traceback" not in done.stderr


def test_models_list__rows(zoo: Zoo) -> None:
    result = consilience(zoo, "models", "list", "registry.yaml")
    assert result.exit_code == 0, result.output
    table = rows(result.output)
    assert {*TIMM, "open_clip/clip"} <= table.keys()
    assert table["timm/conv"] == ["conv", "image", "init, end", "tiny"]
    assert table["open_clip/clip"][1] == "image, text"
    assert "5 models" in result.output


def test_models_list__of_a_set(zoo: Zoo) -> None:
    result = consilience(zoo, "models", "list", "registry.yaml", "--sets", "late")
    assert "timm/late" in result.output
    assert "vit-a" not in result.output
    assert consilience(zoo, "models", "list", "registry.yaml", "--sets", "none").exit_code == 2


def test_models_check__describes(zoo: Zoo) -> None:
    result = consilience(zoo, "models", "check", "registry.yaml")
    assert result.exit_code == 0, result.output
    cells = [line.split() for line in result.output.splitlines() if line.startswith("timm/conv")]
    assert cells[0][:3] == ["timm/conv", "image", "4"]
    assert cells[0][3:7] == ["4,", "6,", "8,", "12"]
    assert "5 models, all known to the installed libraries" in result.output


def test_models_check__names_what_is_wrong_and_goes_on(copied: Zoo) -> None:
    copied.edit("timm/late", name="vit_tinny_patch16_224")
    result = consilience(copied, "models", "check", "registry.yaml")
    assert result.exit_code == 2
    assert "1 of 5 entries are wrong, listed above." in result.output
    assert "timm/late: timm knows no architecture 'vit_tinny_patch16_224'" in result.output
    assert "timm/vit-a" in result.output


def test_models_check__architecture_that_its_library_breaks_on(
    copied: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = type(torch_source("timm"))
    real = source.intermediates

    def broken(self: Any, model: Any, tower: str, inputs: Any, **keywords: Any) -> Any:
        if getattr(model, "embed_dim", 0) == 20:
            raise UnboundLocalError("no prefix\nand more")
        return real(self, model, tower, inputs, **keywords)

    monkeypatch.setattr(source, "intermediates", broken)
    copied.edit("timm/late", arguments={**VIT, "embed_dim": 20}, sets=["tiny"])
    result = consilience(copied, "models", "check", "registry.yaml")
    assert result.exit_code == 2, result.output
    lines = result.output.splitlines()
    assert lines[-1] == "consilience: 1 of 5 entries are wrong, listed above."
    assert re.match(
        r"registry.yaml, line \d+: model timm/late: a forward pass .* fails: "
        r"UnboundLocalError: no prefix\. .*leave the entry out\.$",
        lines[-2],
    )
    assert "timm/vit-a" in result.output
    for command in ("plan", "run"):
        result = consilience(copied, command, "workflow.yaml")
        assert result.exit_code == 2, result.output
        assert re.match(r"consilience: registry.yaml, line \d+: model timm/late: ", result.output)


def test_models_check__each_wrong_entry_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "models:\n"
        "  - {source: timm, name: resnet81}\n"
        "  - {source: timm, name: resnet18, arguments: {lairs: 3}, checkpoints: {i: {init: {}}}}\n"
        "  - {source: timm, name: test_vit, checkpoints: {i: {init: {}}}}\n"
        "  - {source: open_clip, name: RN50, pretrained: opnai}\n"
    )
    with inside(tmp_path):
        result = CliRunner().invoke(main, ["models", "check"])
    assert result.exit_code == 2
    assert result.stdout.splitlines()[-1].startswith("timm/test_vit ")
    lines = result.stderr.splitlines()
    for line, start in zip(
        lines,
        [
            "models.yaml, line 2: model timm/resnet81: timm knows no architecture 'resnet81'. Did",
            "models.yaml, line 3: model timm/resnet18: timm cannot build resnet18 with arguments",
            "models.yaml, line 5: model open_clip/RN50.opnai: open_clip has no weights 'opnai' for",
            "consilience: 3 of 4 entries are wrong, listed above.",
        ],
        strict=True,
    ):
        assert line.startswith(start)


def test_models_check__opens_checkpoint_files(copied: Zoo) -> None:
    late = copied.folder / "run/late"
    (late / "step-0.safetensors").write_bytes(
        (copied.folder / "run/vit-b/step-0.safetensors").read_bytes()
    )
    (copied.folder / "run/vit-a/step-10.safetensors").write_bytes(b"cut off")
    result = consilience(copied, "models", "check", "registry.yaml")
    assert result.exit_code == 2
    lines = [line for line in result.output.splitlines() if line.startswith("registry.yaml, line")]
    assert len(lines) == 2
    assert re.search(
        r"vit-a: the checkpoint run/vit-a/step-10.safetensors cannot be read", lines[0]
    )
    assert re.search(r"late: the checkpoint run/late/step-0.safetensors does not fit", lines[1])


def test_store_info__what_it_holds(zoo: Zoo) -> None:
    result = consilience(zoo, "store", "info", "store.zarr")
    assert result.exit_code == 0, result.output
    assert f"format {FORMAT_VERSION}" in result.output
    text = " ".join(result.output.split())
    assert "597 stimuli, 4 models, 10 encoders, 24 representations" in text
    assert "64 rows; measures cka, cka_debiased, knn" in text
    assert "mutual_knn(" in text


def test_store_ls__encoders(zoo: Zoo) -> None:
    result = consilience(zoo, "store", "ls", "store.zarr")
    assert result.exit_code == 0, result.output
    table = rows(result.output)
    assert table["timm/conv@end#image"][0] == "4"
    assert table["open_clip/clip@step0#text"][-1] == "0"
    assert len(table) == 11


@pytest.mark.parametrize("command", [["store", "info"], ["store", "ls"], ["report"]])
def test_store__that_is_not_there(zoo: Zoo, command: list[str]) -> None:
    result = consilience(zoo, *command, "none.zarr")
    assert result.exit_code == 2
    assert result.output.startswith("consilience: there is no store at none.zarr")


def test_report__into_a_folder(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(store: Store, folder: Path, *, subset: str | None) -> Report:
        assert (store.path, subset) == (Path("store.zarr"), None)
        return Report(folder / "index.html", [folder / "map.png"])

    monkeypatch.setattr("pipeline.report.write_report", write)
    result = consilience(zoo, "report", "store.zarr", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert result.output.split() == [f"{tmp_path}/map.png", f"{tmp_path}/index.html"]


def test_run__report_is_of_the_subset_that_was_asked_for(
    copied: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A, then B, then A again: what is said to be the report of A is not that of B."""
    monkeypatch.undo()
    one = "compare.measures={cka: {}}"
    first = copied.run(one)
    assert first.report is not None
    copied.run("subset.n=48", one)
    again = copied.run(one)
    assert again.report is not None
    key = copied.store().subsets[-1]
    assert key.startswith("digits-test-n64")
    assert key in (copied.folder / again.report).read_text()
