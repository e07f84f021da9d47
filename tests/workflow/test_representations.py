"""What workers hold of prepared representations, and what they put into files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from processes import PATIENCE
from zoo import Zoo

from pipeline.errors import InputError
from pipeline.measures import measure_spec, prepare, score_pairs
from pipeline.store import Store, open_store
from pipeline.workflow.representations import Budget, PreparedCache, representation_refs
from pipeline.workflow.scratch import Scratch

SPECS = {
    "cka": measure_spec("cka"),
    "rbf": measure_spec("cka_rbf"),
    "ranks": measure_spec("rsa", comparison="spearman"),
    "knn": measure_spec("mutual_knn", k=5),
    "procrustes": measure_spec("procrustes"),
}


def members(store: Store) -> list:  # type: ignore[type-arg]
    image = [e for e in store.encoders() if e.tower == "image"]
    return [m for e in image for m in representation_refs(e, SPECS.values())]


@pytest.fixture(autouse=True)
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a disk of this test's own for scratch."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(disk: Path) -> list[Path]:
    return list(disk.glob("consilience-*/*.array"))


def test_get__from_files_equals_from_memory(zoo_store: Store, disk: Path) -> None:
    (subset,) = zoo_store.subsets
    some = members(zoo_store)
    kept, spilling = PreparedCache(), PreparedCache()
    held = kept.get(str(zoo_store.path), subset, some, SPECS, Budget(scratch=0))
    assert files(disk) == []
    moved = spilling.get(str(zoo_store.path), subset, some, SPECS, Budget(memory=0))
    assert len(files(disk)) == 3 * len(some)  # one for each relation
    assert sum(r.storage.nbytes for p in moved for r in p.relations.values()) == 0
    expected, found = (score_pairs(ps, ps, SPECS) for ps in (held, moved))
    order = np.random.default_rng(0).permutation(held[0].n_stimuli)
    turned = [[p.permuted(order) for p in ps[:3]] for ps in (held, moved)]
    expected_turned, found_turned = (score_pairs(ps, ps, SPECS) for ps in turned)
    for label in SPECS:
        # in memory BLAS sees that rows meet themselves, and rounds otherwise
        for one, other in ((found, expected), (found_turned, expected_turned)):
            np.testing.assert_allclose(one[label].values, other[label].values, atol=1e-6)


def test_get__memory_and_scratch_stay_within_the_budget(zoo_store: Store, disk: Path) -> None:
    (subset,) = zoo_store.subsets
    dense = {"cka": SPECS["cka"]}
    image = [e for e in zoo_store.encoders() if e.tower == "image"]
    groups = [representation_refs(e, dense.values()) for e in image]
    cache = PreparedCache()
    sizes = [
        p.nbytes
        for group in groups
        for p in cache.get(str(zoo_store.path), subset, group, dense, Budget(scratch=0))
    ]
    budget = Budget(memory=max(sizes), scratch=4 * max(sizes))
    cache = PreparedCache()
    for group in groups * 2:
        cache.get(str(zoo_store.path), subset, group, dense, budget)
        assert sum(p.nbytes for p in (h.prepared for h in cache.held.values())) <= budget.memory
        assert 0 < sum(f.stat().st_size for f in files(disk)) <= cache.scratch.used()
        assert cache.scratch.used() <= budget.scratch


def test_get__what_made_room_is_prepared_again(zoo_store: Store, disk: Path) -> None:
    (subset,) = zoo_store.subsets
    dense = {"cka": SPECS["cka"]}
    first, *others = members(zoo_store)
    one, other = PreparedCache(), PreparedCache()

    def get(cache: PreparedCache, *wanted: object) -> list[float]:
        found = cache.get(str(zoo_store.path), subset, wanted, dense, budget)  # type: ignore[arg-type]
        return [p.relation_for(dense["cka"]).squared_norm(u_centred_only=True) for p in found]

    budget = Budget()
    (expected,) = get(one, first)
    budget = Budget(memory=0, scratch=2 * one.used)
    assert get(one, first) == pytest.approx([expected])
    held = one.held[next(iter(one.held))]
    assert held.memory == 0
    for each in others:
        get(other, each)
    assert all(path.exists() for path in held.files)  # the other process: this one works with it
    get(one, others[0])
    for each in others:
        get(other, each)
    assert not any(path.exists() for path in held.files)
    assert get(one, first) == pytest.approx([expected])


def test_get__what_is_compared_is_never_forgotten(zoo_store: Store, disk: Path) -> None:
    (subset,) = zoo_store.subsets
    some = members(zoo_store)
    nothing = Budget(memory=0, scratch=0)
    cache = PreparedCache()
    found = cache.get(str(zoo_store.path), subset, some, SPECS, nothing)
    assert len(found) == len(some)
    assert files(disk) == []
    cache.get(str(zoo_store.path), subset, some[:1], SPECS, nothing)
    assert len(cache.held) == 1


def test_get__prepares_once_what_fits(zoo_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (subset,) = zoo_store.subsets
    some = members(zoo_store)
    count = []
    monkeypatch.setattr(
        "pipeline.workflow.representations.prepare",
        lambda *args, **kwargs: count.append(1) or prepare(*args, **kwargs),
    )
    dense = {"cka": SPECS["cka"]}
    cache = PreparedCache()
    for _ in range(2):
        for start in range(0, len(some), 4):
            cache.get(str(zoo_store.path), subset, some[start : start + 4], dense, Budget(memory=0))
    assert len(count) == len(some)


WORKER = """
import sys
import pipeline.workflow.representations as m
from pipeline.errors import InputError
from pipeline.measures import measure_spec
from pipeline.store import open_store

store = open_store(sys.argv[1])
specs = {"cka": measure_spec("cka")}
image = [e for e in store.encoders() if e.tower == "image"]
some = [r for e in image for r in m.representation_refs(e, specs.values())]
count, prepare = [], m.prepare
m.prepare = lambda *args, **kwargs: count.append(1) or prepare(*args, **kwargs)
(subset,) = store.subsets
got = m.CACHE.get(str(store.path), subset, some, specs, m.Budget())
if len(sys.argv) > 2:
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
norms = sum(p.relations["", "linear"].squared_norm(u_centred_only=True) for p in got)
print(len(count), norms, flush=True)
sys.stdin.read()  # a run's workers end together
"""


def worker(store: Store, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(store.path), *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )


def test_get__two_processes_prepare_each_once_between_them(zoo_store: Store, disk: Path) -> None:
    with worker(zoo_store) as one, worker(zoo_store) as other:
        assert one.stdout is not None
        assert other.stdout is not None
        found = [each.readline().split() for each in (one.stdout, other.stdout)]
        for process in (one, other):
            process.communicate(timeout=PATIENCE)
    assert sum(int(count) for count, _ in found) == len(members(zoo_store))
    assert float(found[0][1]) == pytest.approx(float(found[1][1]), rel=1e-6)
    assert list(disk.glob("consilience-*")) == []  # the last one out has cleared away


def test_get__what_a_killed_process_leaves_is_cleared_away(zoo_store: Store, disk: Path) -> None:
    with worker(zoo_store, "die") as killed:
        killed.communicate(timeout=PATIENCE)
    assert killed.returncode < 0
    assert len(files(disk)) == len(members(zoo_store))
    with worker(zoo_store) as following:
        count, _ = following.communicate(timeout=PATIENCE)[0].split()
    assert int(count) == len(members(zoo_store))  # nothing of unknown origin is used
    assert list(disk.glob("consilience-*")) == []


def test_scratch__that_others_can_write_is_refused(disk: Path) -> None:
    folder = disk / f"consilience-{os.getuid()}-{socket.gethostname()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(InputError, match=r"others can write to it\. Remove it, or"):
        Scratch(disk)


def test_run__within_hardly_any_memory_gives_the_same_scores(copied: Zoo, zoo_store: Store) -> None:
    report = copied.run("store=small.zarr", "compare.memory=1 KiB", "calibrate=null")
    assert report.exit_code == 0
    small = open_store(copied.folder / "small.zarr")
    for label in ("cka", "knn", "prh"):
        np.testing.assert_allclose(
            small.similarity(label), zoo_store.similarity(label), rtol=0, atol=1e-6
        )
