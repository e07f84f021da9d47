"""How a client comes by its scheduler, and what it says where it does not."""

from __future__ import annotations

import os
import shutil
import socket
import time
import warnings
from pathlib import Path

import pytest
from processes import certificates, processes
from zoo import Zoo

from pipeline.cluster import (
    AddressSpec,
    LocalSpec,
    TlsSpec,
    connect,
    connection,
    cpu_count,
    machine,
)
from pipeline.errors import InputError


def address(where: str) -> AddressSpec:
    return AddressSpec(kind="address", address=where)


def test_connect__nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"tcp://127.0.0.1:{free.getsockname()[1]}"  # bound by us, so that none listens
        monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.5)
        started = time.monotonic()
        expected = rf"no Dask scheduler answers at {where} within 0.5 s .* `cluster:` or --cluster"
        with pytest.raises(InputError, match=expected), connect(address(where)):
            pass
        assert time.monotonic() - started < 60


@pytest.mark.parametrize("where", ["nonsense://a:1", "tcp://", "tcp://127.0.0.1:notaport"])
def test_connect__address_that_is_none(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.5)
    with (
        pytest.raises(InputError, match="no Dask scheduler answers at"),
        connect(address(where)),
    ):
        pass


def test_connect__scheduler_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(connection, "WORKER_SECONDS", 0.5)
    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp", dashboard_address=":0"
    ) as empty:
        expected = "has had no worker for 0.5 s. Start workers: `dask worker tcp://"
        with (
            pytest.raises(InputError, match=expected),
            connect(address(empty.scheduler_address)),
        ):
            pass


def test_connect__says_nothing_where_the_dashboards_port_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another cluster of the same person's on this machine is no reason for a warning."""
    monkeypatch.setattr(machine, "n_gpus", lambda: 0)
    with socket.socket() as taken:
        try:
            taken.bind(("0.0.0.0", 8787))
            taken.listen()
        except OSError:
            pass  # taken already, by somebody else
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            with connect(LocalSpec(n_workers=1)):
                pass
    assert [str(w.message) for w in said if "8787" in str(w.message)] == []


def test_connect__tls(tmp_path: Path, copied: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workflow runs on a cluster of other processes, which lets in nobody without certificate."""
    mine, foreign = certificates(tmp_path / "mine"), certificates(tmp_path / "foreign")
    options = ("--tls-ca-file", mine["ca"], "--tls-cert", mine["cert"], "--tls-key", mine["key"])
    with processes(tmp_path, *options) as made:
        made.start("tls://127.0.0.1")
        made.add_worker()
        assert made.address.startswith("tls://")
        shutil.rmtree(copied.path)
        tls = ", ".join(f"{part}: {path}" for part, path in mine.items())
        report = Zoo(copied.folder).run(
            f"cluster={{kind: address, address: '{made.address}', tls: {{{tls}}}}}",
            "models={ids: [timm/vit-a, timm/vit-b]}",
            "compare.measures={cka: {}}",
        )
        assert report.failures == {}
        assert report.tasks["extract"] == 2
        assert len(copied.store().encoders()) == 4

        monkeypatch.setattr(connection, "CONNECT_SECONDS", 5)
        other = AddressSpec(kind="address", address=made.address, tls=TlsSpec(**foreign))
        expected = r"CERTIFICATE_VERIFY_FAILED(.|\n)*it refuses the certificate: scheduler, workers"
        with pytest.raises(InputError, match=expected), connect(other):
            pass
        plain = made.address.replace("tls://", "tcp://")
        expected = "A scheduler with TLS is at a tls:// address, and answers no other"
        with pytest.raises(InputError, match=expected), connect(address(plain)):
            pass


def test_cpu_count__what_this_process_may_use() -> None:
    assert 1 <= cpu_count() <= (os.cpu_count() or 1)
