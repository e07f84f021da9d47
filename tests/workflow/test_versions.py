"""Scores that an earlier version of their measure has left in a store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from zoo import MEASURES, Zoo, inside, tree

from pipeline.cli import main
from pipeline.errors import InputError, StoreError
from pipeline.measures import check_version, list_measures, measure_spec
from pipeline.store.layout import child_groups, open_root


@pytest.fixture
def earlier(copied: Zoo) -> Zoo:
    """A store whose `knn` was computed before stores kept a version."""
    root = open_root(copied.path, "r+")
    for subset in child_groups(root, "measures"):
        group = root[f"measures/{subset}/knn"]
        assert isinstance(group, zarr.Group)
        stored: Any = group.attrs["measure"]
        group.attrs["measure"] = {k: v for k, v in stored.items() if k != "version"}
    return copied


SAYS = (
    "measure 'knn': its scores in this store are of version 1 of mutual_knn, and this is version "
    "2: stimuli that are equally near share the last places"
)


@pytest.mark.parametrize("command", ["run", "plan"])
def test_run__scores_of_an_earlier_version_are_refused(earlier: Zoo, command: str) -> None:
    before = tree(earlier.folder)
    with inside(earlier.folder):
        result = CliRunner().invoke(main, [command, "workflow.yaml"])
    message = " ".join(result.output.split())
    assert result.exit_code == 2
    assert SAYS in message
    assert "consilience run WORKFLOW --replace knn" in message
    assert tree(earlier.folder) == before


def test_store__scores_of_an_earlier_version_are_refused(earlier: Zoo) -> None:
    store = earlier.store()
    for read in (store.similarity, store.alignment, store.convergence, store.measure):
        with pytest.raises(InputError, match=f"^{SAYS}.* --replace knn"):
            read("knn")
    assert np.isfinite(store.similarity("cka")).any()
    assert store.activations("timm/vit-a", checkpoint="step0", layer="blocks.0").shape[0] == 597


def test_run__replace_of_a_measure(earlier: Zoo, zoo: Zoo) -> None:
    plan = earlier.plan(replace=("knn",))
    assert plan.n_tasks["extract"] == 0
    assert plan.stages["compare"].n_missing == plan.stages["compare"].n_wanted / len(
        plan.workflow.compare.specs
    )
    report = earlier.run(replace=("knn",))
    assert report.failures == {}
    for read in ("similarity", "alignment"):
        found, expected = (getattr(z.store(), read)("knn") for z in (earlier, zoo))
        np.testing.assert_array_equal(
            *(getattr(each, "score", each).values for each in (found, expected))
        )
    assert earlier.plan().is_done


def test_run__replace_of_no_measure(copied: Zoo) -> None:
    with pytest.raises(InputError, match=r"no such measure; its measures are .*knn"):
        copied.plan(replace=("knnn",))


def test_check_version__says_what_has_changed() -> None:
    for measure in list_measures():
        assert bool(measure.changed) == (measure.version > 1)
        spec = measure_spec(measure.name)
        check_version(spec.identity(), "x")
        with pytest.raises(InputError, match=r"of version 99 of .* --replace x$"):
            check_version(spec.identity() | {"version": 99}, "x")


@pytest.mark.parametrize("name", ["alignment", "convergence"])
def test_store__dataset_whose_writing_was_killed(copied: Zoo, name: str) -> None:
    """It counts as not there, until the next run writes it whole."""
    root = open_root(copied.path, "r+")
    (subset,) = child_groups(root, name)
    group = root[f"{name}/{subset}/cka"]
    assert isinstance(group, zarr.Group)
    for mark in ("inputs", "variables"):
        del group.attrs[mark]
    with pytest.raises(StoreError, match=rf"has no {name}/.*consilience run WORKFLOW"):
        copied.store().dataset(name, "cka")
    assert copied.store().dataset_labels(name) == [m for m in sorted(MEASURES) if m != "cka"]
    copied.run()
    assert copied.store().dataset(name, "cka").sizes
