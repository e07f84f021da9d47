"""Clusters that are started here: job scripts, an ssh server, a batch system made of scripts."""

from __future__ import annotations

import getpass
import importlib.util
import inspect
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dask
import pytest
from processes import PATIENCE, ROOT, certificates, evaluate

from pipeline.cluster import (
    BatchSpec,
    KubernetesSpec,
    LocalSpec,
    SshSpec,
    TlsSpec,
    connect,
    executor,
    kinds,
)
from pipeline.errors import InputError


@pytest.mark.parametrize(("n_workers", "expected"), [(None, ["0", "1"]), (3, ["0", "1", "0"])])
def test_gpu_cluster__one_worker_sees_one_gpu(n_workers: int | None, expected: list[str]) -> None:
    from distributed import Nanny, Scheduler

    spec = LocalSpec(n_workers=n_workers, threads_per_worker=4, memory_limit="2GiB")
    options = kinds.gpu_cluster(spec, 2)
    workers = [w["options"] for w in options["workers"].values()]
    assert {w["cls"] for w in options["workers"].values()} == {Nanny}
    assert [w["env"]["CUDA_VISIBLE_DEVICES"] for w in workers] == expected
    assert all(w["resources"] == {"GPU": 1} for w in workers)
    assert all(w["nthreads"] == 1 for w in workers)
    assert all(w["memory_limit"] == "2GiB" for w in workers)
    assert all(w["env"]["OMP_NUM_THREADS"] == "4" for w in workers)
    assert options["scheduler"]["cls"] is Scheduler
    assert options["scheduler"]["options"]["host"] == "127.0.0.1"


EXPORTS = """\
export MALLOC_TRIM_THRESHOLD_=268435456
export MALLOC_MMAP_THRESHOLD_=268435456
export MALLOC_ARENA_MAX=2
export OMP_NUM_THREADS=4
export MKL_NUM_THREADS=4
export OPENBLAS_NUM_THREADS=4
export HF_HUB_OFFLINE=1
module load cuda
"""
WORKERS = (
    "/env/bin/python -m distributed.cli.dask_worker ADDRESS --name dummy-name --nthreads 4 "
    "--memory-limit 16.00GiB --nworkers 4 --nanny --death-timeout 60 --local-directory /scratch "
    "--nthreads 1 --lifetime 42000s --lifetime-stagger 600s\n"
)
HEADERS = {
    "slurm": """\
#SBATCH -J consilience
#SBATCH -p long
#SBATCH -A lab
#SBATCH -n 1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH -t 12:00:00
#SBATCH --constraint=avx2
""",
    "pbs": """\
#PBS -N consilience
#PBS -q long
#PBS -A lab
#PBS -l select=1:ncpus=16:mem=64GB
#PBS -l walltime=12:00:00
#PBS --constraint=avx2
""",
    "lsf": """\
#BSUB -J consilience
#BSUB -q long
#BSUB -P "lab"
#BSUB -n 16
#BSUB -R "span[hosts=1]"
#BSUB -M 68719477
#BSUB -W 12:00
#BSUB --constraint=avx2
""",
    "sge": """\
#$ -N consilience
#$ -q long
#$ -P lab
#$ -l h_rt=12:00:00
#$ -cwd
#$ -j y
#$ --constraint=avx2
""",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_batch_cluster__job_script(kind: str) -> None:
    spec = BatchSpec(
        kind=kind,  # type: ignore[arg-type]
        n_jobs=4,
        cores=16,
        memory="64 GiB",
        walltime="12 h",
        threads_per_worker=4,
        queue="long",
        account="lab",
        directives=("--constraint=avx2",),
        prologue=("module load cuda",),
        python="/env/bin/python",
        local_directory="/scratch",
        environment={"HF_HUB_OFFLINE": "1"},
    )
    with kinds.batch_cluster(spec) as cluster:
        script = cluster.job_script().replace(cluster.scheduler_address, "ADDRESS")
    assert script == f"#!/usr/bin/env bash\n\n{HEADERS[kind]}{EXPORTS}{WORKERS}"


def test_batch_cluster__leaves_ctrl_c_alone() -> None:
    """The package takes it at its import, for programs of another kind."""
    code = (
        "import signal\n"
        "from pipeline.cluster import BatchSpec, kinds\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "spec = BatchSpec(kind='slurm', cores=1, memory='1 GiB', n_jobs=1)\n"
        "with kinds.batch_cluster(spec): pass\n"
        "assert signal.getsignal(signal.SIGINT) is before\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=PATIENCE)


def test_batch_options__one_worker_per_gpu_and_tls(tmp_path: Path) -> None:
    tls = certificates(tmp_path / "tls")
    spec = BatchSpec(
        kind="slurm",
        n_jobs=1,
        cores=16,
        memory="64 GiB",
        walltime="1-00:00:00",
        gpu=True,
        directives=("--gres=gpu:1",),
        tls=TlsSpec(**tls),
    )
    with kinds.batch_cluster(spec) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        script = cluster.job_script()
    assert "#SBATCH --gres=gpu:1\n" in script
    assert "#SBATCH -t 24:00:00\n" in script
    assert "--nworkers" not in script
    for option in (
        "--nthreads 1 --resources GPU=1",
        "--protocol tls://",
        f"--tls-ca-file {tls['ca']}",
        f"--tls-cert {tls['cert']}",
        f"--tls-key {tls['key']}",
    ):
        assert option in script


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _batch(**changes: object) -> BatchSpec:
    options = {"kind": "slurm", "n_jobs": 1, "cores": 1, "memory": "1 GiB", **changes}
    return BatchSpec(**options)  # type: ignore[arg-type]


def test_start__batch_job_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job is asked for in its place, and no task has failed."""
    import distributed  # noqa: F401  its settings are there before one of them is changed

    _script(
        tmp_path / "sbatch",
        f"""cp "$1" {tmp_path}/$$.sh
setsid bash {tmp_path}/$$.sh > {tmp_path}/$$.log 2>&1 &
echo $! >> {tmp_path}/submitted
echo "Submitted batch job $!\"""",
    )
    _script(tmp_path / "scancel", f'echo $1 >> {tmp_path}/cancelled; kill -9 -- "-$1"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    first = tmp_path / "first"
    killed = (
        f"__import__('os').path.exists({str(first)!r}) or "
        f"(open({str(first)!r}, 'w').close(), __import__('os').killpg(0, 9))"
    )
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
        executor(_batch(wait_for_workers="10 min", environment={"ANSWER": "a b"})) as pool,
    ):
        tasks = [evaluate("killed", killed, cost=9.0)]
        tasks.append(evaluate("answer", "__import__('os').environ['ANSWER']"))
        outcomes = {o.task.name: o for o in pool.run(tasks)}
        # both seen by the scheduler that is in this process
        assert {name: o.error for name, o in outcomes.items()} == {"killed": None, "answer": None}
        assert outcomes["answer"].result == "a b"
    submitted = (tmp_path / "submitted").read_text().split()
    assert len(submitted) == 2
    assert (tmp_path / "cancelled").read_text().split()[-1] == submitted[-1]


def test_start__batch_job_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(tmp_path / "sbatch", "echo 'Invalid account or partition' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    expected = r"sbatch refused the job. Look at(.|\n)*Invalid account(.|\n)*#SBATCH -A nobody"
    with pytest.raises(InputError, match=expected), connect(_batch(account="nobody")):
        pass


def test_start__no_batch_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = "kind: slurm submits jobs by `sbatch`, which is not on this machine's PATH"
    with pytest.raises(InputError, match=expected):
        kinds.start(_batch())


@pytest.mark.parametrize(
    ("spec", "package", "extra"),
    [
        (_batch(), "dask-jobqueue", "jobqueue"),
        (SshSpec(kind="ssh", hosts=("a",)), "asyncssh", "ssh"),
        (
            KubernetesSpec(kind="kubernetes", image="mine", n_workers=2),
            "dask-kubernetes",
            "kubernetes",
        ),
    ],
)
def test_start__package_that_is_missing(
    spec: BatchSpec | SshSpec | KubernetesSpec,
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    expected = (
        f"kind: {spec.kind} needs the package {package}, which is not installed: pip install "
        rf"'consilience\[{extra}\]'"
    )
    with pytest.raises(InputError, match=expected):
        kinds.start(spec)


def test_kubernetes_options() -> None:
    spec = KubernetesSpec(
        kind="kubernetes", image="registry/mine:1", n_workers=3, cpu=4, memory="16 GiB", gpu=True
    )
    options = kinds.kubernetes_options(spec)
    amounts = {"cpu": "4", "memory": str(16 * 2**30), "nvidia.com/gpu": "1"}
    assert options["resources"] == {"requests": amounts, "limits": amounts}
    assert options["worker_command"][2:] == ["--nthreads", "1", "--resources", "GPU=1"]
    assert options["env"]["OMP_NUM_THREADS"] == "4"
    assert (options["n_workers"], options["resource_timeout"]) == (3, 900)
    own = KubernetesSpec(kind="kubernetes", manifest="mine.yaml", n_workers=3)
    assert kinds.kubernetes_options(own)["custom_cluster_spec"] == "mine.yaml"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kubernetes_options__are_what_the_package_takes() -> None:
    operator = pytest.importorskip(
        "dask_kubernetes.operator", reason="the extra `kubernetes` is not installed"
    )
    known = inspect.signature(operator.KubeCluster.__init__).parameters
    for how in ({"image": "mine"}, {"manifest": "mine.yaml"}):
        spec = KubernetesSpec(kind="kubernetes", n_workers=3, **how)
        assert set(kinds.kubernetes_options(spec)) <= set(known)


@dataclass(frozen=True)
class SshServer:
    """An ssh server of this user's own on this machine."""

    port: int
    identity: str
    known_hosts: str


@pytest.fixture
def ssh_server(tmp_path: Path) -> Iterator[SshServer]:
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None:
        pytest.skip("no ssh server is installed (apt-get install openssh-server)")
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "mine"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "authorized").write_text((folder / "mine.pub").read_text())
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd does not start without
    with _sshd(sshd, folder) as port:
        yield SshServer(port, str(folder / "mine"), str(folder / "known"))


@contextmanager
def _sshd(program: str, folder: Path) -> Iterator[int]:
    """Run the server at a free port; another, where somebody takes that before it does."""
    key = " ".join((folder / "host.pub").read_text().split()[:2])
    for _ in range(10):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (folder / "known").write_text(f"[127.0.0.1]:{port} {key}\n[localhost]:{port} {key}\n")
        (folder / "config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPermitRootLogin yes\n"
        )
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([program, "-D", "-e", "-f", folder / "config"], stderr=log)
        try:
            if _serves(server, folder / "log"):
                yield port
                return
        finally:
            server.kill()
            server.wait(PATIENCE)
    raise AssertionError((folder / "log").read_text())


def _serves(server: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until the server listens; return False where its port was taken."""
    deadline = time.monotonic() + PATIENCE
    while "Server listening on" not in (said := log.read_text()):
        if server.poll() is not None:
            assert "Address already in use" in said, said
            return False
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return True


def _ssh(server: SshServer, **changes: object) -> SshSpec:
    options = {
        "kind": "ssh",
        "hosts": ("127.0.0.1", "localhost"),
        "username": getpass.getuser(),
        "port": server.port,
        "identity": server.identity,
        "known_hosts": server.known_hosts,
        "python": sys.executable,
        **changes,
    }
    return SshSpec(**options)  # type: ignore[arg-type]


def test_start__ssh(ssh_server: SshServer, tmp_path: Path) -> None:
    spec = _ssh(
        ssh_server,
        threads_per_worker=2,
        environment={"ANSWER": "42"},
        tls=TlsSpec(**certificates(tmp_path / "tls")),
    )
    with executor(spec) as pool:
        names = ("OMP_NUM_THREADS", "ANSWER")
        tasks = [evaluate(name, f"__import__('os').environ[{name!r}]") for name in names]
        tasks.append(evaluate("parent", "__import__('os').getppid()"))
        results = {o.task.name: o.result for o in pool.run(tasks)}
        pool.start().wait_for_workers(2, timeout=PATIENCE)
        assert pool.start().scheduler.address.startswith("tls://")
    assert results["OMP_NUM_THREADS"] == "2"
    assert results["ANSWER"] == "42"
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{results['parent']}").exists():  # nothing is left on the hosts
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_start__ssh_that_lets_nobody_in(ssh_server: SshServer, tmp_path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")]
    subprocess.run(command, check=True)
    expected = (
        "no cluster could be started by ssh on 127.0.0.1, localhost: PermissionDenied: .* Each host"
    )
    spec = _ssh(ssh_server, identity=str(tmp_path / "other"))
    with pytest.raises(InputError, match=expected), connect(spec):
        pass
    (tmp_path / "nobody").touch()
    spec = _ssh(ssh_server, known_hosts=str(tmp_path / "nobody"))
    with pytest.raises(InputError, match="HostKeyNotVerifiable"), connect(spec):
        pass


def test_ssh_cluster__one_worker_per_gpu() -> None:
    spec = SshSpec(kind="ssh", hosts=("a", "b"), gpus=2, threads_per_worker=3)
    options = kinds.ssh_cluster(spec)
    assert options["scheduler"]["options"]["address"] == "a"
    seen = {
        name: worker["options"]["kwargs"]["env"]["CUDA_VISIBLE_DEVICES"]
        for name, worker in options["workers"].items()
    }
    assert seen == {"a-0": "0", "a-1": "1", "b-0": "0", "b-1": "1"}
    workers = [worker["options"] for worker in options["workers"].values()]
    assert [w["address"] for w in workers] == ["a", "a", "b", "b"]
    assert all(w["kwargs"]["resources"] == {"GPU": 1} for w in workers)
    assert all(w["kwargs"]["memory_limit"] == 0.5 for w in workers)
    # None would be leave to trust any host
    assert all("known_hosts" not in w["connect_options"] for w in workers)
