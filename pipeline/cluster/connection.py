"""Connecting to a scheduler: one that is running already, or one that is started here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.cluster import kinds
from pipeline.cluster.spec import AddressSpec, ClusterSpec, TlsSpec
from pipeline.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 30
WORKER_SECONDS = 30
"""How long to wait for the first worker of a scheduler."""
ATTEMPTS = 3
"""Workers that may die running a task, among others, before the task is tried alone."""
_LOGGERS = (
    "distributed",
    "distributed.client",
    "distributed.core",
    "distributed.http.proxy",
    "distributed.nanny",
    "distributed.scheduler",
    "distributed.worker",
    "distributed.worker.state_machine",
    "distributed.comm",
)


def silence() -> None:
    """Keep Dask's own logs off the terminal, unless `distributed` has been imported already.

    The run itself reports each failure, once and by name.
    """
    import dask

    dask.config.set({"logging": dict.fromkeys(_LOGGERS, "critical")})


@contextmanager
def connect(spec: ClusterSpec) -> Iterator[Client]:
    """Connect to the cluster that a spec names, and start it unless it is running already.

    Raises
    ------
    InputError
        Where no scheduler answers at the address within half a minute, or it refuses the
        certificates or has no worker; where a cluster cannot be started.
    """
    import dask

    silence()
    from distributed import Client

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_settings(getattr(spec, "tls", None))))
        if isinstance(spec, AddressSpec):
            client = stack.enter_context(_join(spec))
        else:
            cluster = stack.enter_context(kinds.start(spec))
            client = stack.enter_context(
                Client(cluster, timeout=CONNECT_SECONDS, set_as_default=False)
            )
        yield client


def _settings(tls: TlsSpec | None) -> dict[str, Any]:
    """Return Dask's settings, which processes started here inherit."""
    settings: dict[str, Any] = {
        "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
        **{f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in kinds.MALLOC.items()},
    }
    if tls is not None:
        settings["distributed.comm.require-encryption"] = True
        settings["distributed.comm.tls.ca-file"] = tls.absolute("ca")
        for role in ("client", "scheduler", "worker"):
            for part in ("cert", "key"):
                settings[f"distributed.comm.tls.{role}.{part}"] = tls.absolute(part)
    return settings


@contextmanager
def _join(spec: AddressSpec) -> Iterator[Client]:
    from distributed import Client

    certificates = kinds.security(spec.tls)
    try:
        _probe(spec.address, certificates)
        client = Client(
            spec.address, timeout=CONNECT_SECONDS, set_as_default=False, security=certificates
        )
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {spec.address} within {CONNECT_SECONDS} s "
            f"({_innermost(error)}). Start one (`dask scheduler`), or correct the "
            f"address in `cluster:` or --cluster.{_certificate_hint(spec)}"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError:
            raise InputError(
                f"the scheduler at {spec.address} has had no worker for {WORKER_SECONDS} s. "
                f"Start workers: `dask worker {spec.address}`."
            ) from None
        yield client


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _certificate_hint(spec: AddressSpec) -> str:
    if spec.tls is None:
        return " A scheduler with TLS is at a tls:// address, and answers no other."
    return (
        " Or it refuses the certificate: scheduler, workers and client must have theirs signed by "
        f"the same authority ({spec.tls.ca})."
    )


def _probe(address: str, certificates: Any) -> None:
    """Raise unless something answers at an address in Dask's protocol.

    A client that cannot connect never quite goes away: garbage-collected while another client
    starts, it closes itself and waits forever. So no client is made before there is an answer.
    """
    from concurrent.futures import ThreadPoolExecutor

    from distributed.comm import connect as reach

    arguments = certificates.get_connection_args("client") if certificates else {}

    async def probe() -> None:
        comm = await reach(address, timeout=CONNECT_SECONDS, **arguments)
        await comm.close()

    with ThreadPoolExecutor(1) as thread:  # in a notebook this thread already runs an event loop
        thread.submit(asyncio.run, probe()).result()
