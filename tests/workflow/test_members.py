"""What workers hold of prepared representations, and what they put into files."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from zoo import Zoo

from pipeline.measures import measure_spec, prepare, score_pairs
from pipeline.store import Store, open_store
from pipeline.workflow.members import Budget, PreparedCache, encoder_members

SPECS = {
    "cka": measure_spec("cka"),
    "rbf": measure_spec("cka_rbf"),
    "ranks": measure_spec("rsa", comparison="spearman"),
    "knn": measure_spec("mutual_knn", k=5),
    "procrustes": measure_spec("procrustes"),
}


def members(store: Store) -> list:  # type: ignore[type-arg]
    image = [e for e in store.encoders() if e.tower == "image"]
    return [m for e in image for m in encoder_members(e, SPECS.values())]


def files(cache: PreparedCache) -> list[Path]:
    return [] if cache.folder is None else list(cache.folder.iterdir())


def test_get__from_files_equals_from_memory(zoo_store: Store) -> None:
    (subset,) = zoo_store.subsets
    some = members(zoo_store)
    kept, spilling = PreparedCache(), PreparedCache()
    held = kept.get(str(zoo_store.path), subset, some, SPECS, Budget())
    moved = spilling.get(str(zoo_store.path), subset, some, SPECS, Budget(memory=0))
    assert files(kept) == []
    assert len(files(spilling)) == 3 * len(some)  # one for each relation
    assert sum(r.source.nbytes for p in moved for r in p.relations.values()) == 0
    expected, found = (score_pairs(ps, ps, SPECS) for ps in (held, moved))
    order = np.random.default_rng(0).permutation(held[0].n_stimuli)
    turned = [[p.permuted(order) for p in ps[:3]] for ps in (held, moved)]
    expected_turned, found_turned = (score_pairs(ps, ps, SPECS) for ps in turned)
    for label in SPECS:
        # in memory BLAS sees that rows meet themselves, and rounds otherwise
        for one, other in ((found, expected), (found_turned, expected_turned)):
            np.testing.assert_allclose(one[label].values, other[label].values, atol=1e-6)


def test_get__memory_and_scratch_stay_within_the_budget(zoo_store: Store) -> None:
    (subset,) = zoo_store.subsets
    dense = {"cka": SPECS["cka"]}
    image = [e for e in zoo_store.encoders() if e.tower == "image"]
    groups = [encoder_members(e, dense.values()) for e in image]
    cache = PreparedCache()
    sizes = [
        p.nbytes
        for group in groups
        for p in cache.get(str(zoo_store.path), subset, group, dense, Budget())
    ]
    budget = Budget(memory=max(sizes), scratch=4 * max(sizes))
    cache = PreparedCache()
    for group in groups * 2:
        cache.get(str(zoo_store.path), subset, group, dense, budget)
        assert cache._used("memory") <= budget.memory
        gc.collect()
        assert sum(f.stat().st_size for f in files(cache)) == cache._used("scratch")
        assert cache._used("scratch") <= budget.scratch


def test_get__what_is_compared_is_never_forgotten(zoo_store: Store) -> None:
    (subset,) = zoo_store.subsets
    some = members(zoo_store)
    nothing = Budget(memory=0, scratch=0)
    cache = PreparedCache()
    found = cache.get(str(zoo_store.path), subset, some, SPECS, nothing)
    assert len(found) == len(some)
    assert files(cache) == []
    cache.get(str(zoo_store.path), subset, some[:1], SPECS, nothing)
    assert len(cache.held) == 1


def test_get__prepares_once_what_fits(zoo_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (subset,) = zoo_store.subsets
    some = members(zoo_store)
    count = []
    monkeypatch.setattr(
        "pipeline.workflow.members.prepare",
        lambda *args, **kwargs: count.append(1) or prepare(*args, **kwargs),
    )
    dense = {"cka": SPECS["cka"]}
    cache = PreparedCache()
    for _ in range(2):
        for start in range(0, len(some), 4):
            cache.get(str(zoo_store.path), subset, some[start : start + 4], dense, Budget(memory=0))
    assert len(count) == len(some)


def test_run__within_hardly_any_memory_gives_the_same_scores(copied: Zoo, zoo_store: Store) -> None:
    report = copied.run("store=small.zarr", "compare.memory=1 KiB", "calibrate=null")
    assert report.exit_code == 0
    small = open_store(copied.folder / "small.zarr")
    for label in ("cka", "knn", "prh"):
        np.testing.assert_allclose(
            small.similarity(label), zoo_store.similarity(label), rtol=0, atol=1e-6
        )
