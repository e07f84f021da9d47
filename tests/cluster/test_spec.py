"""The `cluster:` mapping, and what replaces it on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import AddressSpec, BatchSpec, LocalSpec, TlsSpec, override
from pipeline.cluster.spec import ClusterFile, seconds
from pipeline.config.yaml import load_yaml, validate
from pipeline.errors import InputError

JOBS = "kind: slurm, cores: 8, memory: 8 GiB"


def read(tmp_path: Path, mapping: str) -> Any:
    path = tmp_path / "cluster.yaml"
    path.write_text(f"cluster: {{{mapping}}}\n")
    document = load_yaml(path)
    return validate(ClusterFile, document.data, document).cluster


def test_cluster__kind_is_local_where_none_is_named(tmp_path: Path) -> None:
    assert read(tmp_path, "n_workers: 3") == LocalSpec(n_workers=3)


def test_cluster__batch(tmp_path: Path) -> None:
    spec = read(
        tmp_path, f"{JOBS}, threads_per_worker: 2, adapt: {{maximum: 9}}, walltime: '2:00:00'"
    )
    assert isinstance(spec, BatchSpec)
    assert spec.workers_per_job == 4
    assert spec.patience == 12 * 3600


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ("kind: slrm", "line 1: cluster: kind 'slrm' is none of local, .* Did you mean 'slurm'?"),
        ("kind: local, walltime: 1 h", "unknown key 'cluster.walltime'.* Known keys: environment"),
        ("kind: address, address: 'tcp://a:1', n_workers: 2", "unknown key 'cluster.n_workers'"),
        ("kind: address", "'cluster.address' is missing"),
        ("kind: address, address: 'tls://a:1'", "tls://a:1 is encrypted: name the certificates"),
        ("kind: ssh", "'cluster.hosts' is missing"),
        (JOBS, "give n_jobs, or adapt"),
        (f"{JOBS}, n_jobs: 1, adapt: {{maximum: 2}}", "give n_jobs, or adapt"),
        (f"{JOBS}, n_jobs: 1, threads_per_worker: 3", "is not a multiple of threads_per_worker"),
        (f"{JOBS}, n_jobs: 1, walltime: soon", "'soon' is not a duration; write one like"),
        (f"{JOBS}, adapt: {{minimum: 3, maximum: 2}}", r"minimum \(3\) is more than maximum \(2\)"),
        ("kind: slurm, cores: 1, memory: much, n_jobs: 1", "'much' is not a size; write one like"),
        ("kind: local, memory_limit: -4 GiB", "'-4 GiB' is not a size; write one like"),
        ("kind: kubernetes, n_workers: 2", "give an image, or a manifest"),
        (f"{JOBS}, n_jobs: 1, tls: {{ca: a, cert: b, key: c}}", "ca: there is no file a"),
    ],
)
def test_cluster__faults(mapping: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=expected):
        read(tmp_path, mapping)


def test_seconds() -> None:
    texts = ("90 s", "5 min", "5min", "12 h", "2 d", "00:30:00", "1-01:00:00")
    assert [seconds(t) for t in texts] == [90, 300, 300, 43200, 172800, 1800, 90000]


def test_override__address_beats_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)

    def at(address: str) -> AddressSpec:
        return AddressSpec(kind="address", address=address)

    spec = LocalSpec(n_workers=3)
    assert override(spec, None) == spec
    assert override(spec, "tcp://a:1") == at("tcp://a:1")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://b:2")
    assert override(spec, None) == at("tcp://b:2")
    assert override(spec, "tcp://a:1") == at("tcp://a:1")
    assert override(at("tcp://c:3"), None) == at("tcp://c:3")
    assert override(at("tcp://c:3"), "local").kind == "local"


def test_override__local_keeps_the_files_local_options() -> None:
    assert override(LocalSpec(n_workers=3), "local") == LocalSpec(n_workers=3)


def test_override__address_keeps_certificates_and_patience(tmp_path: Path) -> None:
    (tmp_path / "a.pem").touch()
    file = str(tmp_path / "a.pem")
    tls = TlsSpec(ca=file, cert=file, key=file)
    spec = AddressSpec(kind="address", address="tls://a:1", tls=tls, wait_for_workers="1 h")
    assert override(spec, "tls://b:2") == spec.model_copy(update={"address": "tls://b:2"})
    assert override(spec, "tcp://b:2").model_dump()["tls"] is None


def test_override__file(tmp_path: Path) -> None:
    path = tmp_path / "laptop.yaml"
    path.write_text("cluster: {n_workers: 2}\n")
    assert override(LocalSpec(), str(path)) == LocalSpec(n_workers=2)
    path.write_text("clutser: {n_workers: 2}\n")
    with pytest.raises(InputError, match=r"unknown key 'clutser'. Did you mean 'cluster'"):
        override(LocalSpec(), str(path))
    with pytest.raises(InputError, match="there is no such file"):
        override(LocalSpec(), str(tmp_path / "nothing.yaml"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("host:8786", "--cluster host:8786: expected a scheduler's address .*, `local`, or a YAML"),
        ("tls://host:8786", "--cluster tls://host:8786: .* is encrypted: name the certificates"),
    ],
)
def test_override__what_it_is_not(given: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        override(LocalSpec(), given)
