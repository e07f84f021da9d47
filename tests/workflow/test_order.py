"""Checkpoints that stand in the registry in another order than in the store."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from zoo import Zoo, files_by_time

from pipeline.analysis.convergence import convergence_dataset
from pipeline.errors import StoreError
from pipeline.store import open_store
from pipeline.store.grid import Grid, PendingPairs
from pipeline.workflow.stages.analyse import AnalyseEncoders

A, B = ({"file": f"run/conv/step-{step}.safetensors"} for step in (0, 10))
SETTINGS = (
    "models.sets=[]",
    "models.ids=[timm/conv, timm/vit-a]",
    "compare={measures: {cka: {}}, pairs: [all]}",
    "calibrate.n_permutations=19",
)


@pytest.fixture
def unordered(copied: Zoo, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """A zoo with nothing in its store, and a model whose checkpoints have no steps."""
    monkeypatch.setattr("pipeline.workflow.run._Run.write_report", lambda *_: None)
    shutil.rmtree(copied.path)
    return copied


def stage(copied: Zoo, checkpoints: dict[str, Any], *settings: str) -> None:
    copied.edit("timm/conv", checkpoints=checkpoints)
    assert copied.run(*SETTINGS, *settings).failures == {}


def test_run__another_order_of_checkpoints_and_then_another_subset(unordered: Zoo) -> None:
    """Every score stands under the names of what was compared."""
    stage(unordered, {"a": A, "b": B}, "subset.n=64")
    stage(unordered, {"b": B, "a": A}, "subset.n=60")
    stage(unordered, {"a": A, "b": B}, "subset.n=60", "store=fresh.zarr")
    fresh = open_store(unordered.folder / "fresh.zarr")
    store = unordered.store()
    (subset,) = fresh.subsets
    found, expected = (each.similarity("cka", subset) for each in (store, fresh))
    names = expected.representation_x.values
    np.testing.assert_array_equal(
        found.sel(representation_x=names, representation_y=names).values, expected.values
    )
    aligned, known = (each.alignment("cka", subset).score for each in (store, fresh))
    np.testing.assert_array_equal(
        aligned.sel(encoder_x=known.encoder_x, encoder_y=known.encoder_y).values, known.values
    )


def test_run__a_checkpoint_added_in_front_is_done_once(unordered: Zoo) -> None:
    stage(unordered, {"b": B})
    stage(unordered, {"a": A, "b": B})
    assert unordered.plan(*SETTINGS).is_done
    before = files_by_time(unordered.path)
    assert not any(unordered.run(*SETTINGS).tasks.values())
    assert files_by_time(unordered.path) == before


def test_check__slots_that_others_have_taken(unordered: Zoo) -> None:
    stage(unordered, {"a": A, "b": B})
    (subset,) = unordered.store().subsets
    grid = unordered.store().scores(subset, "cka")
    assert isinstance(grid, Grid)
    first, second, *_ = grid.members
    missing = np.zeros((128, 128), bool)
    PendingPairs(dict(grid.members), missing, 128).check(grid)
    swapped = {**grid.members, first: grid.members[second], second: grid.members[first]}
    with pytest.raises(StoreError, match=r"not in the slots that were planned\. Run again"):
        PendingPairs(swapped, missing, 128).check(grid)


def test_run__convergence_follows_competence(
    unordered: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made from alignment is made anew with it, whatever it was that changed."""
    with monkeypatch.context() as patched:  # as if every task of competence had failed
        patched.setattr(AnalyseEncoders, "tasks", lambda *_: iter(()))
        stage(unordered, {"a": A, "b": B}, "subset.n=300")
    assert np.isnan(unordered.store().convergence("cka").probe_accuracy.values).all()
    stage(unordered, {"a": A, "b": B}, "subset.n=300")
    store = unordered.store()
    expected = convergence_dataset(store.alignment("cka")).probe_accuracy
    assert np.isfinite(expected.values).all()
    np.testing.assert_array_equal(store.convergence("cka").probe_accuracy.values, expected.values)
    assert unordered.plan(*SETTINGS, "subset.n=300").is_done


def test_plan__of_one_measure_leaves_the_others(copied: Zoo) -> None:
    shutil.rmtree(next((copied.path / "alignment").glob("*/cka")))
    plan = copied.plan()
    counts = {name: each.n_missing for name, each in plan.stages.items() if each.n_missing}
    assert counts == {"alignment": 1, "convergence": 1}
