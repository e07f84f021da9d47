"""What a plan says will be run, and what it refuses for want of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from click.testing import CliRunner
from zoo import Zoo, inside, tree

from pipeline.cli import main
from pipeline.cluster import (
    AddressSpec,
    BatchSpec,
    Executor,
    KubernetesSpec,
    LocalSpec,
    Outcome,
    Task,
    executor,
)
from pipeline.cluster.workers import WorkerResources, planned_worker_resources, worker_resources
from pipeline.errors import InputError
from pipeline.workflow import check_memory, memory_of_stages

LATE = ("models.sets=[late]", "compare.measures={cka: {}, knn: {measure: mutual_knn, k: 5}}")
STAGES = ("extract", "compare", "calibrate", "competence")


def test_plan__is_what_is_run(copied: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks, operations: of each stage, as the cluster is given them."""
    ran: list[Task] = []
    original = Executor.run

    def record(self: Executor, tasks: Iterable[Task]) -> Iterator[Outcome]:
        tasks = list(tasks)
        ran.extend(tasks)
        return original(self, tasks)

    monkeypatch.setattr(Executor, "run", record)
    setting = ("models.sets=[tiny, late]", LATE[1])
    plan = copied.plan(*setting)
    assert set(plan.needs) == set(STAGES)
    assert copied.run(*setting).failures == {}
    for stage in STAGES:
        tasks = [t for t in ran if t.name.split()[0] == stage]
        assert len(tasks) == plan.n_tasks[stage] > 0
        assert sum(t.cost for t in tasks) == plan.needs[stage].operations > 0


def test_plan__keeps_only_counts_of_what_is_planned_again(copied: Zoo) -> None:
    """Masks of all pairs would stay in the driver's memory through the stages before."""
    plan = copied.plan("models.sets=[late]", LATE[1])
    first, *later = plan.stages.values()
    assert (first.n_tasks, len(first.tasks)) == (1, 1)
    assert sum(each.n_tasks for each in later) > 0
    assert all(each.pending is None and not each.tasks for each in later)


def test_plan__finished_needs_nothing(zoo: Zoo) -> None:
    assert zoo.plan().needs == {}


def test_plan__operations_by_hand(copied: Zoo) -> None:
    """One model of two layers of 16 and two checkpoints, with itself and with nobody else."""
    plan = copied.plan(
        "models.sets=[late]", "compare.measures={cka: {}}", "compare.pairs=within_model"
    )
    n, d, layers = 64, 16, 4
    # at 64 stimuli, 64 × 16 features are fewer than the n²/2 entries of a relation
    formed = layers * n * n * d
    multiplied = n * n * layers * (layers + 1) / 2
    assert plan.needs["compare"].operations == formed + multiplied
    assert plan.needs["compare"].read == layers * 597 * d * 4 + 128 * 128 * 5
    assert plan.needs["compare"].written == 128 * 128 * 5
    assert plan.needs["extract"].written == layers * 597 * d * 4 + 2


def refused(zoo: Zoo, *arguments: str) -> str:
    before = tree(zoo.folder)
    settings = [part for setting in LATE for part in ("--set", setting)]
    with inside(zoo.folder):
        result = CliRunner().invoke(main, [*arguments, *settings])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert tree(zoo.folder) == before
    return " ".join(result.output.split())


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["plan"]])
def test_run__workers_without_the_memory(copied: Zoo, command: list[str]) -> None:
    message = refused(
        copied, *command, "workflow.yaml", "--set", "cluster.memory_limit=700 MiB", "--store",
        "new.zarr",
    )  # fmt: skip
    assert "consilience: extract: a worker needs up to 1." in message
    assert "GiB of memory, and each has 700.00 MiB. Lower extract.batch_size (now 256), raise" in (
        message
    )
    assert "raise cluster.memory_limit (now 700 MiB), or run fewer workers (cluster.n_workers, now "
    assert ("stage" in message) == (command != ["run"])  # a plan is shown all the same


def test_run__workers_of_a_scheduler_without_the_memory(copied: Zoo) -> None:
    import dask
    from distributed import LocalCluster

    # the worker shares this process, which takes more than that already
    shares = {"target": False, "spill": False, "pause": False, "terminate": False}
    with (
        dask.config.set({f"distributed.worker.memory.{k}": v for k, v in shares.items()}),
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, protocol="tcp",
            dashboard_address=":0", memory_limit="900 MiB",
        ) as small,
    ):  # fmt: skip
        message = refused(copied, "run", "workflow.yaml", "--cluster", small.scheduler_address)
    assert "one has 900.00 MiB for 2 tasks at a time. Lower extract.batch_size" in message
    assert "or start workers with more (cluster.memory, or `dask worker --memory-limit`)" in message


@pytest.mark.parametrize(
    ("stage", "settings", "expected"),
    [
        ("compare", ("subset.n=597", "compare.measures={rsa: {comparison: spearman}}",
                     "calibrate=null"),
         "Lower compare.memory (now 512 MiB) or subset.n (now 597)"),
        ("calibrate", ("calibrate.n_permutations=50000",),
         "Lower calibrate.n_permutations, compare.memory"),
    ],
)  # fmt: skip
def test_check_memory__names_the_stage_and_its_settings(
    zoo: Zoo, stage: str, settings: tuple[str, ...], expected: str
) -> None:
    plan = zoo.plan(*settings)
    need = memory_of_stages(plan)
    assert max(need, key=need.__getitem__) == stage
    check_memory(plan, [WorkerResources(int(need[stage]) + 1)], LocalSpec())
    with pytest.raises(InputError) as refusal:
        check_memory(plan, [WorkerResources(int(need[stage]) - 1)], LocalSpec())
    assert str(refusal.value).startswith(f"{stage}: a worker needs up to ")
    assert expected in str(refusal.value)


def test_rooms__of_a_cluster_to_be_are_those_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.machine.n_gpus", lambda: 0)
    spec = LocalSpec(n_workers=2)
    with executor(spec) as pool:
        assert worker_resources(pool.start()) == planned_worker_resources(spec)
    assert (
        planned_worker_resources(LocalSpec(n_workers=3, memory_limit="1 GiB"))
        == [WorkerResources(2**30)] * 3
    )
    assert planned_worker_resources(LocalSpec(memory_limit="0")) == []
    assert planned_worker_resources(AddressSpec(kind="address", address="tcp://a:1")) == []
    jobs = BatchSpec(kind="slurm", cores=16, memory="64 GiB", threads_per_worker=4, n_jobs=9)
    assert planned_worker_resources(jobs) == [WorkerResources(16 * 2**30)]
    pods = KubernetesSpec(kind="kubernetes", n_workers=3, memory="2 GiB", image="i")
    assert planned_worker_resources(pods) == [WorkerResources(2 * 2**30)]


def test_plan__of_jobs_that_have_not_the_memory(copied: Zoo) -> None:
    """Known before any of them begins."""
    cluster = copied.folder / "slurm.yaml"
    cluster.write_text("cluster: {kind: slurm, cores: 16, memory: 64 MiB, n_jobs: 2}")
    arguments = ["plan", "workflow.yaml", "--set", LATE[0], "--cluster", str(cluster)]
    with inside(copied.folder):
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "a worker needs up to" in result.output
    assert "4.00 MiB" in result.output
    assert "cluster.memory" in result.output
