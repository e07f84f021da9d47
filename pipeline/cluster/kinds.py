"""Starting clusters: from the spec of each kind to Dask's own object."""

from __future__ import annotations

import logging
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dask.utils import parse_bytes

from pipeline.cluster import machine
from pipeline.cluster.spec import (
    BatchSpec,
    ClusterSpec,
    KubernetesSpec,
    LocalSpec,
    SshSpec,
    TlsSpec,
    seconds,
)
from pipeline.errors import InputError

_LOG = logging.getLogger(__name__)
# workers allocate and free arrays of tens of megabytes all the time: where glibc returns each to
# the system at once, as distributed has it do, page faults cost more than the arithmetic. An arena
# then keeps what is freed in it; with one for each of zarr's threads, the default, workers of a
# busy machine took a quarter more memory than planned
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
    "MALLOC_ARENA_MAX": "2",
}
# a worker that outlives its scheduler logs a traceback at each heartbeat, amid the run's own lines
_QUIET = {"silence_logs": logging.CRITICAL}
SSH_SECONDS = 30
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub", "sge": "qsub"}


def start(spec: ClusterSpec) -> Any:
    """Start the cluster of a spec, and request its workers.

    Raises
    ------
    InputError
        Where a package or a command that the kind needs is missing, or the cluster cannot start.
    """
    starters: dict[type[ClusterSpec], Callable[[Any], Any]] = {
        LocalSpec: _local,
        SshSpec: _ssh,
        BatchSpec: _batch,
        KubernetesSpec: _kubernetes,
    }
    return starters[type(spec)](spec)


def security(tls: TlsSpec | None) -> Any:
    """Return the certificates for client, scheduler and workers alike, or None."""
    if tls is None:
        return None
    from distributed import Security

    cert, key = tls.absolute("cert"), tls.absolute("key")
    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=tls.absolute("ca"),
        **{f"tls_{role}_cert": cert for role in roles},
        **{f"tls_{role}_key": key for role in roles},
    )


def _thread_limits(threads: int) -> dict[str, str]:
    return dict.fromkeys(_THREADS, str(threads))


def _environment(spec: LocalSpec | SshSpec | BatchSpec) -> dict[str, str]:
    return {**_thread_limits(spec.threads_per_worker), **spec.environment}


def _local(spec: LocalSpec) -> Any:
    from distributed import LocalCluster, SpecCluster

    gpus = machine.n_gpus()
    with _interrupts_blocked():
        if gpus:
            return SpecCluster(**gpu_cluster(spec, gpus))
        return LocalCluster(
            n_workers=spec.n_workers or machine.cpu_count(),
            threads_per_worker=1,
            processes=True,
            memory_limit=spec.memory_limit,
            dashboard_address=":0",
            env=_environment(spec),
            **_QUIET,
        )


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C in processes started meanwhile, and in their children: masks are inherited.

    A terminal sends Ctrl-C to the workers too, and each would end with a traceback of its own.
    """
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # launched later, with the first process, it would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def gpu_cluster(spec: LocalSpec, gpus: int) -> dict[str, Any]:
    """Return the options of a local cluster with one worker per GPU, each seeing its own."""
    from distributed import Nanny, Scheduler

    workers = {
        f"gpu-{i}": {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "resources": {"GPU": 1},
                "memory_limit": spec.memory_limit,
                **_QUIET,
                "env": {**_environment(spec), "CUDA_VISIBLE_DEVICES": str(i % gpus)},
            },
        }
        for i in range(spec.n_workers or gpus)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"dashboard_address": ":0", "host": "127.0.0.1", "port": 0},
    }
    return {"workers": workers, "scheduler": scheduler}


def _ssh(spec: SshSpec) -> Any:
    _require("asyncssh", "ssh", spec.kind)
    import dask
    from distributed import SpecCluster

    try:
        # processes started by ssh inherit these settings; their logs tell Dask that they have
        # started, and where
        with dask.config.set({"logging": {"distributed": "info"}}):
            return SpecCluster(**ssh_cluster(spec), security=security(spec.tls), name="consilience")
    except Exception as error:  # asyncssh and the remote shell raise errors of many kinds
        cause = error.__cause__ or error
        raise InputError(
            f"no cluster could be started by ssh on {', '.join(spec.hosts)}: "
            f"{type(cause).__name__}: {cause}. Each host must let you in without a password "
            f"(`ssh {spec.hosts[0]} true`), be in known_hosts, and have Consilience in the same "
            "Python (`cluster: {python: …}`)."
        ) from None


def ssh_cluster(spec: SshSpec) -> dict[str, Any]:
    """Return the options of a cluster by ssh: a scheduler on the first host, workers on all."""
    from distributed.deploy.ssh import Scheduler, Worker

    given = {
        "username": spec.username,
        "port": spec.port,
        "client_keys": spec.identity and [str(Path(spec.identity).expanduser())],
        "known_hosts": spec.known_hosts and str(Path(spec.known_hosts).expanduser()),
        "connect_timeout": SSH_SECONDS,
    }
    # asyncssh takes `known_hosts=None` as permission to trust any host
    reach = {name: value for name, value in given.items() if value is not None}
    options: dict[str, Any] = {"nthreads": 1, "memory_limit": spec.memory_limit}
    if spec.memory_limit == "auto":  # each worker would take itself for the host's only one
        options["memory_limit"] = 1 / (spec.gpus or spec.n_workers)
    workers: dict[str, Any] = {}
    for host in spec.hosts:
        for i in range(spec.gpus or spec.n_workers):
            own = {**options, "env": _environment(spec)}
            if spec.gpus:
                own["resources"] = {"GPU": 1}
                own["env"]["CUDA_VISIBLE_DEVICES"] = str(i)
            workers[f"{host}-{i}"] = {
                "cls": Worker,
                "options": {
                    "address": host,
                    "connect_options": reach,
                    "kwargs": own,
                    "remote_python": spec.python,
                },
            }
    scheduler = {
        "cls": Scheduler,
        "options": {
            "address": spec.hosts[0],
            "connect_options": reach,
            "kwargs": {
                "port": 0,
                "dashboard_address": ":0",
                "protocol": "tls://" if spec.tls else "tcp://",
            },
            "remote_python": spec.python,
        },
    }
    return {"workers": workers, "scheduler": scheduler}


def _batch(spec: BatchSpec) -> Any:
    _require("dask_jobqueue", "jobqueue", spec.kind)
    if shutil.which(_SUBMIT[spec.kind]) is None:
        raise InputError(
            f"kind: {spec.kind} submits jobs by `{_SUBMIT[spec.kind]}`, which is not on this "
            "machine's PATH. Run on a login node of the cluster, or choose another kind."
        )
    from distributed import Status

    cluster = batch_cluster(spec)
    try:
        if spec.adapt is not None:
            cluster.adapt(minimum_jobs=spec.adapt.minimum, maximum_jobs=spec.adapt.maximum)
        else:
            cluster.sync(_submit, cluster, spec.n_jobs)
    except RuntimeError as error:
        reason, script = str(error).strip(), cluster.job_script()
        for job in cluster.workers.values():
            job.status = Status.failed  # a job that was never submitted cannot be closed
        cluster.close()
        raise InputError(
            f"{_SUBMIT[spec.kind]} refused the job. Look at queue, account, walltime and "
            f"directives. {reason}\nThe job:\n{script}"
        ) from None
    return cluster


async def _submit(cluster: Any, n_jobs: int) -> None:
    """Scale up in the foreground: in the background a refusal would only be printed."""
    for _ in range(n_jobs):
        cluster.worker_spec.update(cluster.new_worker_spec())
    await cluster._correct_state()


def batch_cluster(spec: BatchSpec) -> Any:
    """Return dask-jobqueue's cluster of a spec, with a scheduler here and no job yet."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    import dask_jobqueue

    # its import installs handlers of its own, with which Ctrl-C ends the process silently
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    name = {"slurm": "SLURM", "pbs": "PBS", "lsf": "LSF", "sge": "SGE"}[spec.kind]
    return getattr(dask_jobqueue, f"{name}Cluster")(**batch_options(spec))


def batch_options(spec: BatchSpec) -> dict[str, Any]:
    """Return the arguments of dask-jobqueue's cluster."""
    exports = [
        f"export {name}={shlex.quote(value)}"
        for name, value in {**MALLOC, **_environment(spec)}.items()
    ]
    # a worker runs one task at a time, however many threads its arithmetic uses; of an option that
    # is given twice, the worker takes the last
    extra = ["--nthreads", "1"]
    if spec.gpu:
        extra += ["--resources", "GPU=1"]
    given: dict[str, Any] = {
        "queue": spec.queue,
        "interface": spec.interface,
        "python": spec.python,
        "local_directory": spec.local_directory,
        "log_directory": spec.log_directory,
        "security": security(spec.tls),
        "project" if spec.kind in ("lsf", "sge") else "account": spec.account,
    }
    if spec.walltime is not None:
        wall = seconds(spec.walltime)
        given["walltime"] = _clock(wall, with_seconds=spec.kind != "lsf")
        # workers that retire by themselves, at staggered times, hand their tasks back; when the
        # batch system kills them, that counts against their tasks
        margin = min(max(60.0, 0.05 * wall), 600.0)
        if wall > 4 * margin:
            extra += ["--lifetime", f"{wall - 2 * margin:.0f}s"]
            extra += ["--lifetime-stagger", f"{margin:.0f}s"]
    return {
        "n_workers": 0,
        "job_name": "consilience",
        "cores": spec.cores,
        "memory": spec.memory,
        "processes": spec.workers_per_job,
        "job_extra_directives": list(spec.directives),
        "job_script_prologue": [*exports, *spec.prologue],
        "worker_extra_args": extra,
        "scheduler_options": {"dashboard_address": ":0", "port": 0},
        **{name: value for name, value in given.items() if value is not None},
    }


def _clock(duration: float, *, with_seconds: bool) -> str:
    minutes, rest = divmod(round(duration), 60)
    text = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{text}:{rest:02d}" if with_seconds else text


def _kubernetes(spec: KubernetesSpec) -> Any:
    _require("dask_kubernetes", "kubernetes", spec.kind)
    from dask_kubernetes.operator import KubeCluster

    try:
        cluster = KubeCluster(**kubernetes_options(spec))
    except Exception as error:  # the operator's client raises errors of many kinds
        raise InputError(
            f"no cluster could be started on Kubernetes: {type(error).__name__}: {error}. Look at "
            "`kubectl get pods`, and whether the Dask operator is installed "
            "(https://kubernetes.dask.org)."
        ) from None
    if spec.adapt is not None:
        cluster.adapt(minimum=spec.adapt.minimum, maximum=spec.adapt.maximum)
    elif spec.manifest is not None:
        cluster.scale(spec.n_workers)
    return cluster


def kubernetes_options(spec: KubernetesSpec) -> dict[str, Any]:
    """Return the arguments of dask-kubernetes' cluster."""
    options: dict[str, Any] = {
        "name": spec.name,
        "namespace": spec.namespace,
        "resource_timeout": round(spec.patience),
        "quiet": True,
    }
    if spec.manifest is not None:
        return {**options, "custom_cluster_spec": str(Path(spec.manifest).expanduser())}
    command = ["dask", "worker", "--nthreads", "1"]
    amounts: dict[str, str] = {"cpu": str(spec.cpu), "memory": str(parse_bytes(spec.memory))}
    if spec.gpu:
        command += ["--resources", "GPU=1"]
        amounts["nvidia.com/gpu"] = "1"
    return {
        **options,
        "image": spec.image,
        "n_workers": spec.n_workers or 0,
        "resources": {"requests": amounts, "limits": amounts},
        "env": {**MALLOC, **_thread_limits(spec.cpu), **spec.environment},
        "worker_command": command,
    }


def _require(package: str, extra: str, kind: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise InputError(
            f"kind: {kind} needs the package {package.replace('_', '-')}, which is not installed: "
            f"pip install 'consilience[{extra}]'."
        )


def respawn_workers(cluster: Any) -> None:
    """Request again the workers that a cluster lost with their jobs or hosts.

    Dask forgets a batch job that has ended, and requests another only when the target number
    changes.
    """
    wanted: Mapping[Any, Any] | None = getattr(cluster, "worker_spec", None)
    if wanted is not None and len(cluster.workers) < len(wanted):
        cluster.loop.add_callback(_respawn, cluster)


async def _respawn(cluster: Any) -> None:
    try:
        await cluster._correct_state()
    except Exception as error:  # the run goes on with the workers that are left
        _LOG.warning("a worker that was lost could not be started again: %s", error)
