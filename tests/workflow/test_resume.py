"""A run does what is missing, and nothing else."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from zoo import (
    MEASURES,
    SPARE_STEP,
    Zoo,
    chunk_files,
    files_by_time,
    flip_byte,
    read_yaml,
    spoil,
    tree,
    write_yaml,
)

from pipeline import calibrate_layers, similarity
from pipeline.analysis.competence import COMPETENCE
from pipeline.cluster import Executor, Outcome, Task
from pipeline.errors import InputError, StoreError
from pipeline.measures import measure_spec
from pipeline.report import notes
from pipeline.schema import Slot, State
from pipeline.store import datasets
from pipeline.store.activations import TowerGroup
from pipeline.store.layout import open_root
from pipeline.store.verify import verify
from pipeline.store.writer import StoreWriter
from pipeline.workflow import Plan, RunReport
from pipeline.workflow.spec import CalibrateSpec
from pipeline.workflow.stages import calibrate
from pipeline.workflow.stages.analyse import read_columns, write_columns
from pipeline.workflow.stages.stage import StageTask

STAGES = ("extract", "compare", "calibrate", "competence")
RESULTS = ("measures", "calibration")
SMALL = ("models={ids: [timm/vit-*]}", "compare.measures={knn: {measure: mutual_knn, k: 5}}")
ONE = "compare.measures={cka: {}}"


def contents(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read every array of a store whole, and every attribute but what names files' times."""
    root = zarr.open_group(path, mode="r")
    return {
        name: np.asarray(found[...])
        for name, found in root.members(max_depth=None)
        if isinstance(found, zarr.Array) and not name.endswith("weights_mtime_ns")
    }


def assert_same(left: Path, right: Path) -> None:
    a, b = contents(left), contents(right)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def stored_pairs(zoo: Zoo, label: str, kind: str = "images") -> dict[tuple[str, str], bytes]:
    """Give the bytes of every computed pair of a measure."""
    root = zarr.open_group(zoo.path, mode="r")["measures"]
    assert isinstance(root, zarr.Group)
    (group,) = (g[label] for _, g in root.groups() if g.attrs["kind"] == kind)
    assert isinstance(group, zarr.Group)
    slot, names, state, score = (
        np.asarray(group[n][...])
        for n in ("slot", "representation", "state", "score")  # type: ignore[index]
    )
    return {
        (str(names[i]), str(names[j])): score[i, j].tobytes()
        for i, j in np.argwhere(state == State.DONE)
        if slot[i] == slot[j] == Slot.LIVE
    }


def submitted(monkeypatch: pytest.MonkeyPatch, stage: str) -> list[Any]:
    """Record the jobs of a stage that reach the cluster."""
    jobs: list[Any] = []
    original = Executor.run

    def record(self: Executor, tasks: Iterable[Task]) -> Iterator[Outcome]:
        tasks = list(tasks)
        jobs.extend(t.job for t in tasks if isinstance(t, StageTask) and t.name.split()[0] == stage)
        return original(self, tasks)

    monkeypatch.setattr(Executor, "run", record)
    return jobs


def counts(plan: Plan, stage: str) -> tuple[int, int]:
    return plan.stages[stage].n_missing, plan.stages[stage].n_wanted


def n_tasks(report: RunReport) -> list[int]:
    return [report.tasks.get(s, 0) for s in STAGES]


def test_run__again_does_nothing(copied: Zoo) -> None:
    before = {part: files_by_time(copied.path, part) for part in ("activations", *RESULTS)}
    whole = tree(copied.path)
    report = copied.run()
    assert n_tasks(report) == [0, 0, 0, 0]
    assert report.exit_code == 0
    assert {part: files_by_time(copied.path, part) for part in before} == before
    assert tree(copied.path) == whole


def test_plan__done(copied: Zoo) -> None:
    plan = copied.plan()
    assert plan.is_done
    assert plan.stages["compare"].n_missing == plan.stages["calibrate"].n_missing == 0
    final_or_init = 2 * (4 * 3 // 2) + 2 * 4  # image towers, and the text tower with all
    assert plan.stages["calibrate"].n_wanted == len(MEASURES) * final_or_init


def test_run__one_model_added(copied: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = ("models.sets=[tiny, late]", "compare.measures={cka: {}, cka_debiased: {}}")
    before = {label: stored_pairs(copied, label) for label in ("cka", "cka_debiased")}
    untouched = files_by_time(copied.path, "activations")
    plan = copied.plan(*setting)
    jobs = submitted(monkeypatch, "compare")
    report = copied.run(*setting)
    assert n_tasks(report) == [1, 2, 2, 1]
    assert report.tasks["compare"] == plan.n_tasks["compare"]
    after = {label: stored_pairs(copied, label) for label in ("cka", "cka_debiased")}
    asked = 0
    for label, pairs in before.items():
        assert {p: after[label][p] for p in pairs} == pairs
        added = {p for p in after[label] if p not in pairs}
        assert added
        assert all("timm/late@" in x or "timm/late@" in y for x, y in added)
    for job in jobs:
        for label, mask in job.missing.items():
            names = [None if m is None else m.path for m in job.left]
            other = [None if m is None else m.path for m in job.right]
            for i, j in np.argwhere(np.triu(mask)):
                assert "late" in str(names[i]) + str(other[j]), label
                asked += 1
    assert asked == plan.stages["compare"].n_missing
    times = files_by_time(copied.path, "activations")
    assert {file: times[file] for file in untouched} == untouched
    assert n_tasks(copied.run(*setting)) == [0, 0, 0, 0]


def test_run__one_checkpoint_file_added(copied: Zoo) -> None:
    folder = copied.folder / "run" / "vit-b"
    shutil.copy(
        folder / f"spare-{SPARE_STEP}.safetensors", folder / f"step-{SPARE_STEP}.safetensors"
    )
    before = {label: stored_pairs(copied, label) for label in ("cka",)}
    images = tree(copied.path, "activations")
    report = copied.run(ONE)
    assert report.tasks["extract"] == 1
    for label, pairs in before.items():
        after = stored_pairs(copied, label)
        assert {p: after[p] for p in pairs} == pairs
        assert all("vit-b@step20" in x + y for x, y in after if (x, y) not in pairs)
    changed = {f for f, d in tree(copied.path, "activations").items() if images.get(f) != d}
    assert changed
    assert all("vit-b" in f for f in changed)
    vit = [e for e in copied.store().encoders() if e.model == "timm/vit-b"]
    assert [(e.checkpoint, e.final, e.samples_seen) for e in vit] == [
        ("step0", False, 0.0), ("step10", False, 320.0), ("step20", True, 640.0)
    ]  # fmt: skip


def test_run__a_block_that_is_not_complete_is_extracted_anew(
    copied: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(copied.path)
    encoder = next(e for e in copied.store().encoders() if e.model == "timm/vit-a")
    group = zarr.open_group(copied.path, mode="r+")[encoder.path]
    assert isinstance(group, zarr.Group)
    TowerGroup(group).array("complete")[1, 0] = 0
    TowerGroup(group).array("blocks.1")[1] = np.nan
    jobs = submitted(monkeypatch, "extract")
    report = copied.run()
    (job,) = jobs
    assert job.spec.id == "timm/vit-a"
    assert job.missing == {"step10": {"image": [(0, 597)]}}
    assert n_tasks(report) == [1, 0, 0, 0]  # the same activations: every score stands
    for name, values in contents(copied.path).items():
        np.testing.assert_array_equal(values, whole[name], err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(zoo: Zoo, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A small store, made in one go."""
    small = zoo.copy(tmp_path_factory.mktemp("small") / "zoo", cluster)
    shutil.rmtree(small.path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.workflow.run._Run.write_report", lambda *_: None)
        assert small.run(*SMALL).failures == {}
    return small


@pytest.mark.parametrize(
    "stage", ["compare.Compare", "calibrate.Calibrate", "analyse.AnalyseEncoders"]
)
def test_run__killed_between_stages(copied: Zoo, undisturbed: Zoo, stage: str) -> None:
    shutil.rmtree(copied.path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(f"pipeline.workflow.stages.{stage}.create", killed)
        with pytest.raises(KeyboardInterrupt):
            copied.run(*SMALL)
    assert not (copied.path / "consilience.lock").exists()
    assert copied.run(*SMALL).tasks["extract"] == 0
    assert_same(copied.path, undisturbed.path)


def test_plan__says_that_something_is_left_when_results_are(copied: Zoo) -> None:
    assert copied.plan().stages["alignment"].pending == []
    shutil.rmtree(copied.path / "alignment")
    plan = copied.plan()
    assert (plan.is_done, plan.stages["alignment"].pending, plan.needs_workers) == (
        False,
        list(MEASURES),
        False,
    )
    shutil.rmtree(copied.path / "competence")
    plan = copied.plan()
    assert counts(plan, "competence") == (10, 10)
    assert plan.n_tasks["competence"] == 2  # image towers, text towers
    assert plan.needs_workers


def test_run__competence_by_another_probe(copied: Zoo, zoo: Zoo) -> None:
    """What an older version measured is refused when read, and measured anew by a run."""
    (metadata,) = (copied.path / "competence").glob("*/zarr.json")
    group = open_root(copied.path, "a")[f"competence/{metadata.parent.name}"]
    del group.attrs["probe"]
    with pytest.raises(
        StoreError, match=r"its probe is not .*`consilience run WORKFLOW` computes it again"
    ):
        copied.store().competence()
    assert counts(copied.plan(), "competence") == (10, 10)
    assert copied.run().tasks["competence"] == 2
    assert copied.store().competence().equals(zoo.store().competence())


def test_run__competence_is_kept_as_it_comes(
    copied: Zoo, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied.path / "competence")
    monkeypatch.setattr("pipeline.workflow.stages.analyse.ENCODERS_PER_TASK", 2)
    monkeypatch.setattr("pipeline.workflow.stages.analyse.SAVE_SECONDS", 0.0)
    writes = []

    def interrupted(*arguments: Any) -> None:
        write_columns(*arguments)
        writes.append(1)
        if len(writes) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.workflow.stages.analyse.write_columns", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copied.run()
    assert counts(copied.plan(), "competence") == (6, 10)
    monkeypatch.setattr("pipeline.workflow.stages.analyse.write_columns", write_columns)
    assert copied.run().tasks["competence"] == 3
    assert copied.store().competence().equals(zoo.store().competence())


@pytest.mark.parametrize("kill", [1, 2, 3])
def test_write_columns__killed_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: int
) -> None:
    """Before the new copy, before the place of the old one, before the copy is removed."""
    store = StoreWriter(tmp_path / "a.zarr", create=True)
    old, new = ({"a": _competence(0.5)}, {"a": _competence(0.5), "b": _competence(0.25)})
    write_columns(store, COMPETENCE, "subset", old)
    assert store.is_committed("competence", "subset")
    delete, deletions = datasets.delete, []

    def killed(*arguments: Any) -> None:
        deletions.append(1)
        if len(deletions) == kill:
            raise KeyboardInterrupt
        delete(*arguments)

    monkeypatch.setattr(datasets, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        write_columns(store, COMPETENCE, "subset", new)
    assert read_columns(store, COMPETENCE, "subset") == (old if kill == 1 else new)
    assert store.is_committed("competence", "subset") == (kill == 1)


def _competence(accuracy: float) -> dict[str, Any]:
    return {"activations_digest": "0", "knn_accuracy": accuracy, "probe_accuracy": accuracy}


def test_run__one_worker_gives_the_bits_of_two(zoo: Zoo, tmp_path: Path) -> None:
    made = []
    for n in (1, 2):
        small = Zoo(zoo.copy(tmp_path / str(n), "").folder)
        shutil.rmtree(small.path)
        assert small.run(*SMALL, f"cluster.n_workers={n}").failures == {}
        made.append(small.path)
    assert_same(*made)


def test_run__killed_within_a_block(copied: Zoo, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk is written, its mirror image or its marks are not."""
    root = zarr.open_group(copied.path, mode="r+")["measures"]
    assert isinstance(root, zarr.Group)
    for _, subset in root.groups():
        state = subset["cka/state"]
        assert isinstance(state, zarr.Array)
        state[:3, :] = int(State.MISSING)  # and not [:, :3]
    report = copied.run()
    assert n_tasks(report) == [0, 2, 0, 0]
    assert_same(copied.path, zoo.path)


def test_run__description_changed(copied: Zoo) -> None:
    copied.edit("timm/vit-a", family="renamed", metadata={"samples_seen": 1280})
    plan = copied.plan(ONE)
    assert (plan.is_done, counts(plan, "alignment"), plan.needs_workers) == (False, (1, 1), False)
    assert n_tasks(copied.run(ONE)) == [0, 0, 0, 0]
    found = copied.store().alignment("cka")
    assert "renamed" in found["family_x"].values.tolist()
    vit = found.sel(encoder_x="timm/vit-a@step10#image")
    assert float(vit["samples_seen_x"]) == 1280


def test_run__level_changed(copied: Zoo) -> None:
    before = copied.store().alignment("cka")
    assert n_tasks(copied.run("calibrate.alpha=0.2", ONE)) == [0, 0, 0, 0]
    after = copied.store().alignment("cka")
    assert after.attrs["alpha"] == 0.2
    np.testing.assert_array_equal(after["p"], before["p"])
    done = np.isfinite(after["threshold"].values)
    assert (after["threshold"].values[done] <= before["threshold"].values[done]).all()
    assert (after["threshold"].values[done] < before["threshold"].values[done]).any()


def test_run__another_subset_extracts_nothing(copied: Zoo) -> None:
    first = copied.store().subsets
    report = copied.run("subset.n=48", ONE)
    assert report.tasks["extract"] == 0
    assert report.tasks["compare"] == 2
    store = copied.store()
    assert len(store.subsets) == 2
    assert set(first) < set(store.subsets)
    assert store.similarity("cka", first[0]).shape == (24, 24)
    assert n_tasks(copied.run(ONE)) == [0, 0, 0, 0]


def test_run__more_permutations_are_another_null(copied: Zoo) -> None:
    report = copied.run("calibrate.n_permutations=59", ONE)
    assert n_tasks(report) == [0, 0, 2, 0]
    assert copied.store().alignment("cka").attrs["n_permutations"] == 59
    assert n_tasks(copied.run(ONE)) == [0, 0, 0, 0]


def test_run__measures_with_a_direction(copied: Zoo) -> None:
    """Both directions are compared and calibrated, each as such."""
    setting = (
        SMALL[0],
        "compare.measures={cycle: {measure: cycle_knn, k: 5}, procrustes: {}}",
        "calibrate.n_permutations=19",
    )
    assert copied.run(*setting).failures == {}
    store = copied.store()
    rows = store.rows(store.subset())
    for label, parameters in (("cycle", {"k": 5}), ("procrustes", {})):
        found = store.similarity(label)
        spec = store.measure(label)
        names = ["timm/vit-a@step10#image/blocks.1", "timm/vit-b@step10#image/blocks.0"]
        x, y = (store.activations(name).values[rows] for name in names)
        for (a, first), (b, second) in (((0, x), (1, y)), ((1, y), (0, x))):
            expected = similarity(first, second, spec.name, **parameters)
            assert float(found.sel(representation_x=names[a], representation_y=names[b])) == (
                pytest.approx(expected, abs=1e-6)
            )
        aligned = store.alignment(label)
        assert np.isfinite(aligned["p"]).any()
        same = np.array_equal(aligned["threshold"], aligned["threshold"].T, equal_nan=True)
        assert same == spec.measure.symmetric
    assert n_tasks(copied.run(*setting)) == [0, 0, 0, 0]


def test_run__layers_too_wide_for_a_measure_leave_the_others(copied: Zoo) -> None:
    """CCA of as many features as stimuli is 1 whatever they are."""
    setting = (SMALL[0], "compare.measures={cca: {}, knn: {measure: mutual_knn, k: 5}}",
               "subset.n=12", "calibrate=null")  # fmt: skip
    report = copied.run(*setting)
    assert report.failures == {}
    found = copied.store()
    (subset,) = (key for key in found.subsets if "-n12-" in key)
    assert np.isfinite(found.alignment("knn", subset)["score"]).any()
    layers = found.similarity("cca", subset)
    assert layers.sizes["representation_x"] > 1
    assert np.isnan(layers).all()
    assert n_tasks(copied.run(*setting))[1] == 0  # undefined, not missing


def test_run__null_from_moments(copied: Zoo) -> None:
    """Another null beside the permuted one: the same scores, and thresholds to sampling error."""
    setting = ("calibrate.method=analytic", "calibrate.n_permutations=null")
    permuted = {label: copied.store().alignment(label) for label in ("cka", "cka_debiased", "knn")}
    assert n_tasks(copied.run(*setting)) == [0, 0, 2, 0]
    for label, before in permuted.items():
        after = copied.store().alignment(label)
        assert (after.attrs["method"], after.attrs["n_permutations"]) == ("analytic", 999)
        np.testing.assert_array_equal(after["score"], before["score"])
        tested = np.isfinite(before["p"].values)
        np.testing.assert_array_equal(np.isfinite(after["p"].values), tested)
        assert before["permuted"].values[tested].all()
        assert not after["permuted"].values[tested].all()
        close = np.abs(after["threshold"].values - before["threshold"].values)[tested]
        assert np.median(close) < 0.05
        np.testing.assert_array_equal(after["p"].values, after["p"].values.T)
    assert n_tasks(copied.run(*setting)) == [0, 0, 0, 0]


def test_run__null_from_moments_is_that_of_plain_arrays(copied: Zoo) -> None:
    """And p goes as far below one over the draws."""
    setting = (SMALL[0], "compare.measures={cka: {}, knn: {measure: mutual_knn, k: 5}}",
               "calibrate={method: analytic, n_permutations: 199}")  # fmt: skip
    assert copied.run(*setting).failures == {}
    store = copied.store()
    rows = store.rows(store.subset())
    low = 0
    for label in ("cka", "knn"):
        found = store.alignment(label)
        for x, y in np.argwhere(np.triu(np.isfinite(found["p"].values), 1)):
            cell = found.isel(encoder_x=x, encoder_y=y)
            xs, ys = (
                [store.activations(f"{name}/blocks.{k}").values[rows] for k in range(2)]
                for name in (str(cell["encoder_x"].values), str(cell["encoder_y"].values))
            )
            plain = calibrate_layers(
                xs, ys, store.measure(label), method="analytic", n_permutations=199
            )
            assert bool(cell["permuted"]) == plain.flagged
            assert float(cell["p"]) == pytest.approx(plain.p, rel=1e-2)
            assert float(cell["threshold"]) == pytest.approx(plain.threshold, abs=1e-5)
            low += float(cell["p"]) < 1 / 200
    assert low
    assert verify(copied.path).is_whole
    assert n_tasks(copied.run(*setting)) == [0, 0, 0, 0]


def test_run__null_waits_for_its_scores(copied: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that failed leaves its null to the next run: its tail is that of the score."""
    setting = (SMALL[0], "compare.measures={new: {measure: cka}}",
               "calibrate={method: analytic, n_permutations: 199}")  # fmt: skip

    def broken(*_: Any) -> None:
        raise ValueError("of no account")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.workflow.stages.compare.score_pairs", broken)
        assert copied.run(*setting).failures
    assert counts(copied.plan(*setting), "calibrate") == (2, 2)
    assert copied.run(*setting).failures == {}
    assert copied.plan(*setting).is_done
    assert np.isfinite(copied.store().alignment("new")["p"]).sum() == 4


def test_null_key__draws_from_another_model_are_another_null(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def paths() -> list[str]:
        specs = (CalibrateSpec(method=method) for method in ("analytic", "permutation"))
        return [calibrate.null_key(measure_spec("cka"), s) for s in specs]

    analytic, permuted = paths()
    monkeypatch.setattr(calibrate, "VERSION", calibrate.VERSION + 1)
    assert paths()[0] != analytic
    assert paths()[1] == permuted


def test_run__without_calibration(copied: Zoo) -> None:
    assert n_tasks(
        copied.run("calibrate=null", "compare.measures={knn: {measure: mutual_knn, k: 5}}")
    ) == [0, 0, 0, 0]
    found = copied.store().alignment("knn")
    assert np.isnan(found["p"]).all()
    assert np.isnan(found["q"]).all()
    assert np.isfinite(found["score"]).any()


def test_run__fewer_models_keep_the_others(copied: Zoo) -> None:
    before = stored_pairs(copied, "knn")
    report = copied.run(*SMALL)
    assert n_tasks(report) == [0, 0, 0, 0]
    assert stored_pairs(copied, "knn") == before
    assert copied.store().alignment("knn").sizes["encoder_x"] == 4


def test_run__touched_weights_are_the_same_weights(copied: Zoo) -> None:
    for file in (copied.folder / "run").rglob("*.safetensors"):
        file.touch()
    assert n_tasks(copied.run()) == [0, 0, 0, 0]


def test_run__same_size_and_time_pass_for_the_same_weights(copied: Zoo) -> None:
    """What is not looked at is not seen: a file is hashed only where its size or time differ."""
    folder = copied.folder / "run" / "vit-b"
    file, before = folder / "step-10.safetensors", (folder / "step-10.safetensors").stat()
    file.write_bytes((folder / f"spare-{SPARE_STEP}.safetensors").read_bytes())
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert copied.plan().is_done
    file.touch()
    with pytest.raises(InputError, match=r"vit-b, checkpoint step10: its weights are not those"):
        copied.plan()
    assert copied.plan(replace=("timm/vit-b",)).n_tasks["extract"] == 1


def test_run__weights_that_change_while_it_runs(
    copied: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was recorded of a file is not what was loaded: nothing is stored."""
    from pipeline.extraction import torch_source

    folder, load = copied.folder / "run" / "late", torch_source.load_weights

    def swapped(source: Any, spec: Any, model: Any, checkpoint: Any) -> Any:
        shutil.copy(folder / f"spare-{SPARE_STEP}.safetensors", folder / "step-10.safetensors")
        return load(source, spec, model, checkpoint)

    setting = ("models.sets=[late]", ONE)
    with monkeypatch.context() as patched:
        patched.setattr(torch_source, "load_weights", swapped)
        report = copied.run(*setting)
    assert list(report.failures) == ["timm/late@step10"]
    assert "its weights changed during the run" in report.failures["timm/late@step10"]
    assert [e.checkpoint for e in copied.store().encoders() if e.model == "timm/late"] == ["step0"]
    assert copied.run(*setting).failures == {}
    late = next(e for e in copied.store().encoders() if e.id == "timm/late@step10#image")
    group = zarr.open_group(copied.path, mode="r")[late.path]
    assert isinstance(group, zarr.Group)
    loaded = hashlib.sha256((folder / "step-10.safetensors").read_bytes()).hexdigest()
    assert TowerGroup(group).weights("step10").digest == f"sha256:{loaded}"


def test_run__what_is_said_of_representations_is_had_again_where_it_was_lost(
    copied: Zoo, zoo: Zoo
) -> None:
    """A driver killed between a task's end and its result: the pairs are there, the rest is not."""
    root = zarr.open_group(copied.path, mode="r+")["measures"]
    assert isinstance(root, zarr.Group)
    for _, subset in root.groups():
        subset["knn/n_ties"][:3] = -1  # type: ignore[index]
        subset["prh/clip"][2:] = np.nan  # type: ignore[index]
    assert copied.plan().n_tasks["compare"] == 2
    assert n_tasks(copied.run()) == [0, 2, 0, 0]
    assert_same(copied.path, zoo.path)
    assert copied.plan().is_done


def test_run__other_stimuli_stand_beside_the_first(copied: Zoo) -> None:
    setting = ("models={ids: [timm/vit-*]}", ONE, "calibrate=null")
    before = tree(copied.path)
    report = copied.run("stimuli.part=train", *setting)
    assert n_tasks(report) == [2, 1, 0, 1]
    after = tree(copied.path)
    assert {file: after[file] for file in before} == before
    assert len(copied.store().sets) == 2
    assert n_tasks(copied.run("stimuli.part=train", *setting)) == [0, 0, 0, 0]


def test_run__model_that_fails_after_its_first_block(
    copied: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded by name, the rest goes on, and the next run asks for just the other block."""
    setting = ("stimuli.part=train", "models={ids: [timm/late, timm/vit-a]}", ONE, "calibrate=null")
    write = TowerGroup.write_block

    def failing(self: TowerGroup, checkpoint: str, block: tuple[int, int], values: Any) -> None:
        if (self.attrs["model"], checkpoint) == ("timm/late", "step0") and block[0] > 0:
            raise RuntimeError("no more")
        write(self, checkpoint, block, values)

    with monkeypatch.context() as patched:
        patched.setattr(TowerGroup, "write_block", failing)
        report = copied.run(*setting)
    assert report.failures == {
        "timm/late@step0": "model timm/late, checkpoint step0: RuntimeError: no more"
    }
    (key,) = (s for s in copied.store().sets if "train" in s)
    encoders = [e.id for e in copied.store().encoders(key)]
    assert sorted(encoders) == [
        f"timm/{n}#image" for n in ("late@step10", "vit-a@step0", "vit-a@step10")
    ]
    before = files_by_time(copied.path, f"activations/{key}/timm/late/image/blocks.0/c")
    jobs = submitted(monkeypatch, "extract")
    assert copied.run(*setting).failures == {}
    assert [job.missing for job in jobs] == [{"step0": {"image": [(1024, 1200)]}}]
    after = files_by_time(copied.path, f"activations/{key}/timm/late/image/blocks.0/c")
    assert {file: after[file] for file in before} == before
    assert len(after) == len(before) + 1


def test_run__another_seed_is_another_null(copied: Zoo) -> None:
    before = copied.store().alignment("cka")
    assert n_tasks(copied.run("calibrate.seed=4", ONE)) == [0, 0, 2, 0]
    after = copied.store().alignment("cka")
    np.testing.assert_array_equal(after["score"], before["score"])
    assert after.attrs["permutation_seed"] == 4
    done = np.isfinite(after["threshold"].values)
    assert (after["threshold"].values[done] != before["threshold"].values[done]).any()


def test_run__replace_with_the_same_is_no_work_but_extraction(copied: Zoo, zoo: Zoo) -> None:
    report = copied.run(replace=("timm/vit-a",))
    assert n_tasks(report) == [1, 0, 0, 0]
    assert_same(copied.path, zoo.path)


def test_run__replace_after_a_changed_recipe(copied: Zoo) -> None:
    before = stored_pairs(copied, "cka")
    copied.edit("timm/vit-a", pool="max")
    report = copied.run(ONE, replace=("timm/vit-a",))
    assert report.failures == {}
    assert report.tasks["extract"] == 1
    after = stored_pairs(copied, "cka")
    assert after.keys() == before.keys()
    for pair, score in before.items():
        if "vit-a" not in "".join(pair):
            assert after[pair] == score
    moved = [p for p in before if "vit-a" in p[0] and "vit-a" not in p[1]]
    assert moved
    assert any(after[p] != before[p] for p in moved)
    root = zarr.open_group(copied.path, mode="r")
    (subset,) = copied.store().subsets
    slot = np.asarray(root[f"measures/{subset}/cka/slot"][...])  # type: ignore[index]
    assert (slot == Slot.RETIRED).sum() == 4
    assert (slot == Slot.LIVE).sum() == 20
    vit = copied.store().activations("timm/vit-a@step0#image/blocks.0")
    assert vit.attrs["pooling"] == "max"
    found = copied.store().similarity("cka")
    assert found["representation_x"].to_index().is_unique
    np.testing.assert_array_equal(found.values, found.values.T)
    assert n_tasks(copied.run(ONE)) == [0, 0, 0, 0]


def test_run__checkpoint_that_fails(copied: Zoo) -> None:
    """The others are kept, the failure is named, and the next run does only what failed."""
    setting = ("models.sets=[tiny, late]", ONE)
    file = copied.folder / "run" / "late" / "step-10.safetensors"
    whole = file.read_bytes()
    spoil(file)
    report = copied.run(*setting)
    assert report.exit_code == 1
    assert list(report.failures) == ["timm/late@step10"]
    message = report.failures["timm/late@step10"]
    assert "layer blocks.0: the activations of 597 stimuli are not finite" in message
    late = [e.checkpoint for e in copied.store().encoders() if e.model == "timm/late"]
    assert late == ["step0"]
    assert any("late@step0" in x for x, _ in stored_pairs(copied, "cka"))

    again = copied.run(*setting)  # as it was: tried again, and nothing else
    assert (n_tasks(again), again.exit_code) == ([1, 0, 0, 0], 1)

    file.write_bytes(whole)
    repaired = copied.run(*setting)
    assert (repaired.exit_code, repaired.failures) == (0, {})
    assert repaired.tasks["extract"] == 1
    assert copied.plan(*setting).is_done


def test_run__several_checkpoints_of_one_file(copied: Zoo) -> None:
    """Each has the weights that it chooses, also the second, which goes into the first's model."""
    folder, file = copied.folder / "run" / "late", "run/late/both.pt"
    student, teacher = (load_file(folder / f"step-{n}.safetensors") for n in (0, 10))
    heads = [{k: v for k, v in teacher.items() if not k.startswith("head.")}, {}]
    both = {f"a.{k}": v for k, v in student.items()} | {f"b.{k}": v for k, v in heads[0].items()}
    torch.save({"student": both, "teacher": teacher}, copied.folder / file)
    choices = {
        "a": {"file": file, "key": "student", "prefix": "a"},
        "b": {"file": file, "prefix": "b", "ignore": "head.*"},
        "teacher": {"file": file, "key": "teacher"},
    }
    copied.edit("timm/late", checkpoints="run/late/step-{step}.safetensors")
    assert copied.run("models.sets=[late]", ONE).failures == {}
    copied.edit("timm/late", id="timm/chosen", checkpoints=choices)
    assert copied.run("models.sets=[late]", ONE).failures == {}
    store = copied.store()
    for label, step in (("a", 0), ("b", 10), ("teacher", 10)):
        found = store.activations(f"timm/chosen@{label}#image/blocks.1")
        expected = store.activations(f"timm/late@step{step}#image/blocks.1")
        np.testing.assert_array_equal(found.values, expected.values)
    copied.edit("timm/chosen", checkpoints={**choices, "a": {"file": file, "key": "teacher"}})
    with pytest.raises(InputError, match=r"checkpoint a: its weights are not those in the store"):
        copied.plan("models.sets=[late]", ONE)


def test_run__weights_that_give_no_numbers(copied: Zoo) -> None:
    folder = copied.folder / "run" / "vit-a"
    weights = load_file(folder / f"spare-{SPARE_STEP}.safetensors")
    weights["blocks.1.mlp.fc2.bias"][0] = float("nan")
    save_file(weights, folder / f"step-{SPARE_STEP}.safetensors")
    report = copied.run(ONE)
    (why,) = report.failures.values()
    assert "timm/vit-a, image tower, layer blocks.1: the activations of 597 stimuli are not" in why
    assert "first row 0 (stimulus " in why
    assert report.exit_code == 1


def test_run__damaged_activations_are_named_and_mended_by_replace(copied: Zoo) -> None:
    encoder = next(e for e in copied.store().encoders() if e.model == "timm/vit-a")
    flip_byte(chunk_files(copied.path, f"{encoder.path}/blocks.0")[0])
    setting = ("models.sets=[tiny, late]", ONE)
    report = copied.run(*setting)
    assert report.exit_code == 1
    assert any(
        "vit-a" in why and "damaged" in why and "--repair" in why
        for why in report.failures.values()
    )
    mended = copied.run(*setting, replace=("timm/vit-a",))
    assert mended.failures == {}
    assert copied.plan(*setting).is_done
    assert any("late" in x and "vit-b" in y for x, y in stored_pairs(copied, "cka"))


def test_run__in_two_halves_is_the_whole(copied: Zoo, zoo: Zoo) -> None:
    """Models that come one after the other give the scores of models that come together."""
    shutil.rmtree(copied.path)
    knn = "compare.measures={knn: {measure: mutual_knn, k: 5}}"
    copied.run("models={ids: [timm/vit-a, timm/vit-b]}", knn)
    copied.run(knn)
    for kind in ("images", "captions"):
        assert stored_pairs(copied, "knn", kind).keys() == stored_pairs(zoo, "knn", kind).keys()
    together, apart = zoo.store().similarity("knn"), copied.store().similarity("knn")
    names = together["representation_x"].values
    np.testing.assert_allclose(
        apart.sel(representation_x=names, representation_y=names), together, atol=1e-6
    )
    np.testing.assert_array_equal(
        copied.store().alignment("knn")["p"], zoo.store().alignment("knn")["p"]
    )


def test_run__another_order_of_the_registry(copied: Zoo) -> None:
    models = read_yaml(copied.folder / "registry.yaml")["models"]
    write_yaml(copied.folder / "registry.yaml", {"models": models[::-1]})
    assert n_tasks(copied.run(ONE)) == [0, 0, 0, 0]


def test_run__copies_of_weights_count_as_related(copied: Zoo) -> None:
    """A copy under another id scores 1 as if trained apart: it is noticed by its bytes."""
    registry = read_yaml(copied.folder / "registry.yaml")
    (first,) = (e for e in registry["models"] if e["id"] == "timm/vit-a")
    shutil.copytree(copied.folder / "run/vit-a", copied.folder / "run/copy")
    twin = {**first, "id": "timm/twin", "checkpoints": "run/copy/step-{step}.safetensors"}
    write_yaml(copied.folder / "registry.yaml", {"models": [*registry["models"], twin]})
    setting = ("models={ids: [timm/vit-*, timm/twin]}", ONE)
    assert copied.run(*setting).failures == {}
    store, key = copied.store(), copied.plan(*setting).context.key
    label = next(iter(copied.plan(*setting).context.specs))
    alignment = store.alignment(label, key)
    twins = alignment.sel(encoder_x="timm/twin@step10#image", encoder_y="timm/vit-a@step10#image")
    assert float(twins.score) == pytest.approx(1)
    assert bool(twins.related)
    others = alignment.sel(encoder_x="timm/twin@step10#image", encoder_y="timm/vit-b@step10#image")
    assert not bool(others.related)
    said = " ".join(notes(store, subset=key))
    assert "timm/twin@step10, timm/vit-a@step10 have the same weights: they count as" in said
