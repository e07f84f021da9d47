"""The log of each run: what it says, and that the store can be read as before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from uuid import UUID

import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from zoo import Zoo, inside, spoil

from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.store.writer import StoreWriter
from pipeline.workflow.log import FOLDER, LOST, RUNNING, read_run, read_runs, run_log

LATE = ("models.sets=[late]", "compare.measures={cka: {}}")


def test_run_log__of_a_whole_run(zoo: Zoo) -> None:
    (run,) = read_runs(zoo.path)
    assert run.outcome == "done"
    start = run.start
    assert start["workflow"]["calibrate"]["seed"] == 3
    assert start["workflow"]["extract"]["batch_size"] == 256  # defaults are written out
    assert {"consilience", "torch", "timm", "dask", "zarr"} <= set(start["versions"])
    assert start["cluster"]["n_workers"] == 2
    assert start["tasks"]["extract"] == 4
    names = [task["name"] for task in run.tasks]
    assert len(names) == len(set(names)) == sum(start["tasks"].values())
    assert {n for n in names if n.startswith("extract")} == {
        f"extract {m}" for m in ("timm/vit-a", "timm/vit-b", "timm/conv", "open_clip/clip")
    }
    for task in run.tasks:
        assert task["errors"] == []
        assert task["worker"].startswith("tcp://127.0.0.1:")
        assert task["started"] <= task["ended"] <= task["time"]
        assert task["memory"] > 2**26
    assert {s["stage"]: s["tasks"] for s in run.stages}[
        "competence"
    ] == 2  # image towers, text towers


def test_run_log__zarr_and_xarray_read_the_store_as_before(zoo: Zoo) -> None:
    """Warnings are errors here: a file where Zarr expects none is one."""
    root = zarr.open_group(zoo.path, mode="r", use_consolidated=False)
    found = dict(root.members(max_depth=None))
    assert found["runs/log"].shape == (0,)  # type: ignore[union-attr]
    assert not any(name.endswith(".jsonl") for name in found)
    with xr.open_datatree(zoo.path, engine="zarr", chunks={}, consolidated=False) as tree:
        assert "runs" in tree.children


def test_run_log__failures_and_then_another_run(copied: Zoo) -> None:
    file = copied.folder / "run/late/step-10.safetensors"
    whole = file.read_bytes()
    spoil(file)
    assert copied.run(*LATE).exit_code == 1
    file.write_bytes(whole)
    assert copied.run(*LATE).exit_code == 0
    assert copied.run(*LATE).exit_code == 0  # nothing to do: no log
    _, failed, mended = read_runs(copied.path)
    assert (failed.outcome, failed.n_failed) == ("failures", 1)
    assert list(failed.end["failures"]) == ["timm/late@step10"]
    (extraction,) = (t for t in failed.tasks if t["name"] == "extract timm/late")
    assert (
        "layer blocks.0: the activations of 597 stimuli are not finite" in (extraction["errors"][0])
    )
    assert (mended.outcome, mended.n_failed) == ("done", 0)


def test_read_runs__oldest_first_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreWriter(tmp_path / "s.zarr", create=True)
    randoms = [UUID(digit * 32) for digit in "9531"]  # by these alone, the latest would be first
    monkeypatch.setattr("pipeline.workflow.log.uuid4", iter(randoms).__next__)
    for number in range(len(randoms)):
        with run_log(store, number=number) as log:
            log.end("done")
    assert [run.start["number"] for run in read_runs(tmp_path / "s.zarr")] == [0, 1, 2, 3]


def test_run_log__of_a_run_that_broke_off(copied: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def broken(*_: object) -> None:
        seen.append(read_runs(copied.path)[-1].outcome)
        raise RuntimeError("no more")

    monkeypatch.setattr("pipeline.workflow.stages.compare.Compare.create", broken)
    with pytest.raises(RuntimeError, match="no more"):
        copied.run(*LATE)
    run = read_runs(copied.path)[-1]
    assert (run.outcome, run.end["error"]) == ("error", "RuntimeError: no more")
    assert seen == [RUNNING]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder with the logs of two runs, of which one was killed as it wrote."""
    (tmp_path / FOLDER).mkdir(parents=True)
    lines = [
        {"event": "start", "time": "2026-01-01T00:00:00.000+00:00", "host": "a", "user": "b"},
        {"event": "stage", "time": "2026-01-01T00:00:01.000+00:00", "stage": "extract"},
        {"event": "task", "time": "2026-01-01T00:01:30.000+00:00", "name": "extract x",
         "errors": []},
    ]  # fmt: skip
    text = "\n".join(map(json.dumps, lines))
    killed = tmp_path / FOLDER / "2026-01-01T00-00-00-aaaaaa.jsonl"
    killed.write_text(text + '\n{"event": "task", "na')
    end = {"event": "end", "time": "2026-01-01T00:02:00.000+00:00", "outcome": "done",
           "seconds": 120.0}  # fmt: skip
    whole = tmp_path / FOLDER / "2026-01-02T00-00-00-bbbbbb.jsonl"
    whole.write_text(f"{text}\n{json.dumps(end)}\n")
    return tmp_path


def test_read_runs__one_that_was_killed(logs: Path) -> None:
    killed, whole = read_runs(logs)
    assert (killed.outcome, killed.seconds, len(killed.tasks)) == (LOST, 90.0, 1)
    assert (whole.outcome, whole.seconds) == ("done", 120.0)


def test_read_run__by_the_beginning_of_its_name(logs: Path) -> None:
    assert read_run(logs, "2026-01-02").outcome == "done"
    with pytest.raises(InputError, match=r"several runs begin with '2026'\. Runs: 2026-01-01T00"):
        read_run(logs, "2026")
    with pytest.raises(InputError, match="no run begins with '2025'"):
        read_run(logs, "2025")


def test_store_log__table_and_one_run(zoo: Zoo, logs: Path, tmp_path: Path) -> None:
    made = tmp_path / "copy.zarr"
    shutil.copytree(zoo.path, made)
    shutil.copytree(logs / FOLDER, made / FOLDER, dirs_exist_ok=True)
    with inside(zoo.folder):
        table = CliRunner().invoke(main, ["store", "log", str(made)])
        one = CliRunner().invoke(main, ["store", "log", str(made), "2026-01-01"])
        real = CliRunner().invoke(main, ["store", "log", str(made), read_runs(zoo.path)[0].name])
        none = CliRunner().invoke(main, ["store", "log", "none.zarr"])
    assert table.exit_code == one.exit_code == real.exit_code == 0
    assert "3 runs" in table.output
    assert LOST in table.output
    assert "by b on a" in one.output
    assert one.output.rstrip().endswith(f"{LOST}; 90 s")
    assert "extract timm/vit-a" in real.output
    assert "tcp://127.0.0.1:" in real.output
    assert none.exit_code == 2
