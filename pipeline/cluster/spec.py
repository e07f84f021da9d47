"""The `cluster:` section of a workflow: one class for each kind, with the fields of that kind."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from dask.utils import parse_bytes, parse_timedelta
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from pipeline.config.yaml import OneOrMany, Spec, load_yaml, validate
from pipeline.errors import InputError
from pipeline.suggest import did_you_mean


def seconds(text: str) -> float:
    """Return a duration in seconds: `90 s`, `5 min`, `12 h`, `2 d`, or `[D-]HH:MM:SS`."""
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        return float(86400 * days + 3600 * hours + 60 * minutes + rest)
    return float(parse_timedelta(re.sub("min$", "minutes", text), default=None))


def _duration(text: str) -> str:
    try:
        if seconds(text) > 0:
            return text
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{text!r} is not a duration; write one like 90 s, 5 min, 12 h or 12:00:00.")


def _size(text: str) -> str:
    try:
        if parse_bytes(text) >= 0:
            return text
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not a size; write one like 64 GiB.")


def _memory_limit(text: str) -> str:
    return text if text == "auto" else _size(text)


Duration = Annotated[str, AfterValidator(_duration)]
Size = Annotated[str, AfterValidator(_size)]
MemoryLimit = Annotated[str, AfterValidator(_memory_limit)]
Environment = dict[str, str]


class TlsSpec(Spec):
    """TLS certificates: peers without one signed by the same authority are refused."""

    ca: str
    """Certificate of the authority that signed all others, a PEM file."""
    cert: str
    """Certificate of this client and of the processes it starts, a PEM file."""
    key: str
    """The private key that goes with it, a PEM file."""

    @model_validator(mode="after")
    def _there(self) -> TlsSpec:
        for field in ("ca", "cert", "key"):
            path = getattr(self, field)
            if not Path(path).expanduser().is_file():
                raise ValueError(f"{field}: there is no file {path}.")
        return self

    def absolute(self, field: str) -> str:
        """Return the absolute path of a file: workers may run in another folder."""
        return str(Path(getattr(self, field)).expanduser().absolute())


class AdaptSpec(Spec):
    """Limits of a cluster that grows and shrinks with its load."""

    minimum: int = Field(default=0, ge=0)
    """Smallest number to keep."""
    maximum: int = Field(ge=1)
    """Largest number to request."""

    @model_validator(mode="after")
    def _ordered(self) -> AdaptSpec:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum ({self.minimum}) is more than maximum ({self.maximum}).")
        return self


class ClusterSpec(Spec):
    """Fields that every kind has."""

    kind: str
    wait_for_workers: Duration = "5 min"
    """How long a run goes on without any worker before it gives up."""

    @property
    def patience(self) -> float:
        """`wait_for_workers` in seconds."""
        return seconds(self.wait_for_workers)


class LocalSpec(ClusterSpec):
    """Workers on this machine, one per GPU, or one per CPU core."""

    kind: Literal["local"] = "local"
    """Workers on this machine."""
    wait_for_workers: Duration = "2 min"
    """How long a run goes on without any worker before it gives up."""
    n_workers: int | None = Field(default=None, ge=1)
    """Workers; default: one per GPU, or one per CPU core."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Threads of arithmetic in each worker."""
    memory_limit: MemoryLimit = "auto"
    """Memory of each worker (`4GiB`), `auto` for an equal share, `0` for no limit."""
    environment: Environment = Field(default_factory=dict)
    """Environment variables of workers."""


class AddressSpec(ClusterSpec):
    """A scheduler that is running already, whose workers see the same file system."""

    kind: Literal["address"]
    """A scheduler that is running already."""
    address: str
    """The scheduler's address: tcp://host:8786, or tls://host:8786."""
    tls: TlsSpec | None = None
    """Certificates, for an address that begins with tls://."""

    @model_validator(mode="after")
    def _encrypted(self) -> AddressSpec:
        if self.address.startswith("tls://") and self.tls is None:
            raise ValueError(
                f"{self.address} is encrypted: name the certificates, "
                "tls: {ca: ca.pem, cert: cert.pem, key: key.pem}."
            )
        if self.tls is not None and not self.address.startswith("tls://"):
            raise ValueError(f"tls goes with a tls:// address, not {self.address}.")
        return self


class SshSpec(ClusterSpec):
    """Workers on hosts that are reached by ssh and see the same file system."""

    kind: Literal["ssh"]
    """Workers on hosts that are reached by ssh."""
    hosts: OneOrMany = Field(min_length=1)
    """Hosts of workers; the scheduler runs on the first."""
    n_workers: int = Field(default=1, ge=1)
    """Workers on each host."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of each host. Where there are any: one worker for each, and n_workers does not count."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Threads of arithmetic in each worker."""
    memory_limit: MemoryLimit = "auto"
    """Memory of each worker (`16GiB`), `auto` for an equal share, `0` for no limit."""
    username: str | None = None
    """User to log in as; default: from ~/.ssh/config."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the ssh servers; default: from ~/.ssh/config, or 22."""
    identity: str | None = None
    """File of the private key to log in with; default: ssh's own choice."""
    known_hosts: str | None = None
    """File of the hosts' keys; default: ~/.ssh/known_hosts. Unknown hosts are refused."""
    python: str | None = None
    """Python with Consilience on the hosts; default: the path of this process's own."""
    environment: Environment = Field(default_factory=dict)
    """Environment variables of workers."""
    tls: TlsSpec | None = None
    """Certificates that encrypt traffic between hosts; the paths must be valid on every host."""


class BatchSpec(ClusterSpec):
    """Workers as jobs of a batch system, through dask-jobqueue.

    Fields left out are taken from dask-jobqueue's own configuration (~/.config/dask/jobqueue.yaml).
    """

    kind: Literal["slurm", "pbs", "lsf", "sge"]
    """The batch system."""
    wait_for_workers: Duration = "12 h"
    """How long to wait for a first job to start, or for another when all have ended."""
    n_jobs: int | None = Field(default=None, ge=1)
    """Jobs to keep running; give this or `adapt`."""
    adapt: AdaptSpec | None = None
    """Fewest and most jobs, for a number that follows the load."""
    cores: int = Field(ge=1)
    """Cores of each job."""
    memory: Size
    """Memory of each job, `64 GiB`."""
    walltime: Duration | None = None
    """How long each job may run, `12 h` or `12:00:00`. Workers retire shortly before."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Threads of arithmetic in each worker; a job has cores / threads_per_worker workers."""
    gpu: bool = False
    """One GPU for each job, which is then one worker; request it in `directives`."""
    queue: str | None = None
    """Queue or partition."""
    account: str | None = None
    """Account or project to charge."""
    directives: OneOrMany = ()
    """Further directives of the job's header, without #SBATCH or its equivalent: `--gres=gpu:1`."""
    prologue: OneOrMany = ()
    """Shell commands that a job runs before its worker starts: `module load cuda`."""
    interface: str | None = None
    """Network interface between scheduler and workers, such as `ib0`."""
    python: str | None = None
    """Python with Consilience on the nodes; default: the path of this process's own."""
    local_directory: str | None = None
    """Folder for workers' scratch files on a node's own disk."""
    log_directory: str | None = None
    """Folder for the jobs' output."""
    environment: Environment = Field(default_factory=dict)
    """Environment variables of workers."""
    tls: TlsSpec | None = None
    """Certificates that encrypt traffic between nodes; the paths must be valid on every node."""

    @model_validator(mode="after")
    def _consistent(self) -> BatchSpec:
        if (self.n_jobs is None) == (self.adapt is None):
            raise ValueError("give n_jobs, or adapt: {minimum: 0, maximum: 20}, and not both.")
        if not self.gpu and self.cores % self.threads_per_worker:
            raise ValueError(
                f"cores ({self.cores}) is not a multiple of threads_per_worker "
                f"({self.threads_per_worker})."
            )
        return self

    @property
    def workers_per_job(self) -> int:
        """One for a job with a GPU, else as many as fit its cores."""
        return 1 if self.gpu else self.cores // self.threads_per_worker


class KubernetesSpec(ClusterSpec):
    """Workers as pods, through the Dask operator of a Kubernetes cluster."""

    kind: Literal["kubernetes"]
    """Pods of a Kubernetes cluster that has the Dask operator."""
    wait_for_workers: Duration = "15 min"
    """How long to wait for a first pod to start, or for another when all have ended."""
    name: str = Field(default="consilience", pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    """Name of the cluster's resources."""
    namespace: str | None = None
    """Namespace; default: that of the current context."""
    image: str | None = None
    """Image with Consilience and the same versions of Python and Dask as here."""
    n_workers: int | None = Field(default=None, ge=1)
    """Pods; give this or `adapt`."""
    adapt: AdaptSpec | None = None
    """Fewest and most pods, for a number that follows the load."""
    cpu: int = Field(default=1, ge=1)
    """Cores, and threads of arithmetic, of each pod."""
    memory: Size = "8 GiB"
    """Memory of each pod."""
    gpu: bool = False
    """One GPU (nvidia.com/gpu) for each pod."""
    environment: Environment = Field(default_factory=dict)
    """Environment variables of pods."""
    manifest: str | None = None
    """File with a DaskCluster resource of your own (volumes, tolerations), in place of an image."""

    @model_validator(mode="after")
    def _consistent(self) -> KubernetesSpec:
        if (self.n_workers is None) == (self.adapt is None):
            raise ValueError("give n_workers, or adapt: {minimum: 0, maximum: 20}, and not both.")
        if (self.image is None) == (self.manifest is None):
            raise ValueError("give an image, or a manifest that names one, and not both.")
        return self


_CLASSES: dict[str, type[ClusterSpec]] = {
    "local": LocalSpec,
    "address": AddressSpec,
    "ssh": SshSpec,
    **dict.fromkeys(("slurm", "pbs", "lsf", "sge"), BatchSpec),
    "kubernetes": KubernetesSpec,
}


def _known(value: Any) -> Any:
    if isinstance(value, ClusterSpec):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping like {{kind: local}}, found {value!r}.")
    kind = str(value.get("kind", "local"))
    if kind not in _CLASSES:
        near = did_you_mean(kind, _CLASSES)
        raise ValueError(f"kind {kind!r} is none of {', '.join(_CLASSES)}.{near}")
    return value


def _tag(value: Any) -> str:
    if isinstance(value, dict):
        return _CLASSES[value.get("kind", "local")].__name__
    return type(value).__name__


AnyCluster = Annotated[
    Annotated[LocalSpec, Tag("LocalSpec")]
    | Annotated[AddressSpec, Tag("AddressSpec")]
    | Annotated[SshSpec, Tag("SshSpec")]
    | Annotated[BatchSpec, Tag("BatchSpec")]
    | Annotated[KubernetesSpec, Tag("KubernetesSpec")],
    Discriminator(_tag),
    BeforeValidator(_known),
]
"""A `cluster:` mapping of any kind; `local` where it names none."""


class ClusterFile(Spec):
    """A file for --cluster, so that one workflow runs on any machine unchanged."""

    cluster: AnyCluster
    """Where tasks run."""


def override(spec: ClusterSpec, given: str | None) -> ClusterSpec:
    """Return the cluster that --cluster names, or DASK_SCHEDULER_ADDRESS, or else the workflow's.

    Parameters
    ----------
    spec
        The workflow's.
    given
        `local`, a scheduler's address, or a YAML file with a `cluster:` mapping. An address keeps
        the certificates and the waiting time of a workflow that names a scheduler itself.

    Raises
    ------
    InputError
        For an address of another form, or a file that is missing or invalid.
    """
    if given is None and spec.kind == "local":
        given = os.environ.get("DASK_SCHEDULER_ADDRESS") or None
    if given is None:
        return spec
    if given == "local":
        return spec if spec.kind == "local" else LocalSpec()
    if given.endswith((".yaml", ".yml")):
        document = load_yaml(given)
        return validate(ClusterFile, document.data, document).cluster
    if "://" not in given:
        raise InputError(
            f"--cluster {given}: expected a scheduler's address (tcp://host:8786), `local`, or a "
            "YAML file with a `cluster:` mapping."
        )
    kept = spec.model_dump(exclude={"kind", "address"}) if isinstance(spec, AddressSpec) else {}
    if not given.startswith("tls://"):
        kept.pop("tls", None)
    try:
        return AddressSpec(**{**kept, "kind": "address", "address": given})
    except ValueError as error:
        raise InputError(f"--cluster {given}: {_reason(error)}") from None


def _reason(error: ValueError) -> str:
    faults = error.errors() if hasattr(error, "errors") else []
    return "; ".join(str(f.get("ctx", {}).get("error", f["msg"])) for f in faults) or str(error)
