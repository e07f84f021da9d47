"""A lock that is lost in the middle of a task: the task itself stops writing."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from zoo import Zoo, tree

from pipeline.errors import StoreError
from pipeline.store.activations import TowerGroup
from pipeline.store.grid import Grid
from pipeline.store.io import lease as module
from pipeline.store.io.lease import StoreRef, lease
from pipeline.store.io.location import LOCK, locate

ONE = ("models={ids: [timm/vit-a, timm/vit-b]}", "compare.measures={cka: {}}")


@pytest.mark.parametrize(
    ("owner", "method"), [(TowerGroup, "write_block"), (Grid, "write_chunk")], ids=["block", "pair"]
)
def test_run__lease_lost_in_the_middle_of_a_task(
    copied: Zoo, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    """Another run takes the store over while a task is about to write: nothing more is written."""
    shutil.rmtree(copied.path)
    monkeypatch.setattr(module, "LOOK", 0.0)
    write, at_loss = getattr(owner, method), []

    def taken_over(self: Any, *arguments: Any) -> None:
        if not at_loss:
            location = locate(copied.path)
            theirs = json.loads(location.read(LOCK).content) | {"token": "x", "host": "node17"}
            location.update(LOCK, lambda _: json.dumps(theirs).encode())
            at_loss.append(tree(copied.path))
        write(self, *arguments)

    monkeypatch.setattr(owner, method, taken_over)
    with pytest.raises(StoreError, match=r"this run has lost the store: .* on node17 .* taken it"):
        copied.run(*ONE)
    after = tree(copied.path)
    assert json.loads((copied.path / LOCK).read_text())["token"] == "x"  # it is left alone
    changed = {n for n in after.keys() | at_loss[0].keys() if after.get(n) != at_loss[0].get(n)}
    assert {n for n in changed if not n.startswith("runs/")} == set()
    (copied.path / LOCK).unlink()
    monkeypatch.setattr(owner, method, write)
    assert copied.run(*ONE).failures == {}


def test_watch__of_a_lease_that_is_held(copied: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.0)
    with lease(copied.path) as held:
        watch = StoreRef(str(copied.path), held.token).lease_check()
        assert watch is not None
        watch.check()
    with pytest.raises(StoreError, match="someone has removed its lock"):
        watch.check()
