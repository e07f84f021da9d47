"""What tasks are said to take against what they take: memory and bytes, measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.kinds import MALLOC

ROOT = Path(__file__).parents[2]
TOO_HIGH = 3.0
"""How much more than what was measured a projection may say."""


def resettable() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def measured(what: str) -> list[dict[str, Any]]:
    """Run tasks in a process like a worker's, and read what they took."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "footprints.py"), what],
        capture_output=True, text=True, check=False, timeout=600,
        env={
            **os.environ,
            **{name: str(value) for name, value in MALLOC.items()},
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not resettable(), reason="the kernel does not set back a process's peak memory")
@pytest.mark.parametrize("what", ["compare", "extract"])
def test_cost__is_an_upper_bound_and_near(what: str) -> None:
    """Memory of every kind of task: never more than was said, and not much less."""
    for line in measured(what):
        print(line)  # shown where it fails
        took, said = line["measured"], line["said"]
        assert took["memory"] <= said["memory"] <= TOO_HIGH * took["memory"], line
        if said["written"]:
            assert 0.99 < took["written"] / said["written"] < 1.1, line
        # extraction reads modules and images too, and scratch files come on top
        if line["case"] not in ("vit", "spilled"):
            assert 0.99 < took["read"] / said["read"] < 1.1, line
