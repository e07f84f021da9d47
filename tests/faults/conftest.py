"""A small workflow, and the store of an undisturbed run: every disturbed one has to equal it.

`pytest tests/faults --rounds 20 --seed 1` causes every random fault twenty times, elsewhere than
seed 0; what was caused is counted at the end.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator

import pytest
from faults.harness import Drivers, Ground, Tally
from filelock import FileLock
from zoo import WORKFLOW, write_yaml, write_zoo

TALLY = Tally()
FAULTS = {
    **WORKFLOW,
    "subset": {"n": 1000, "seed": 0},  # tasks long enough to be killed in their middle
    "models": {"ids": ["timm/vit-b", "timm/late"]},
    "stimuli": {"source": "digits", "part": "train"},  # more than a chunk of rows
    "compare": {
        # both leave something to say of single representations: ties, and where values were clipped
        "measures": {
            "knn": {"measure": "mutual_knn", "k": 5},
            "prh": {"measure": "cka_debiased", "preset": "prh"},
        },
        "pairs": ["final", "init", "within_model"],
    },
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--rounds", type=int, help="How often each random fault is caused.")
    group.addoption("--seed", type=int, help="Seed of the moments at which faults are caused.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.rows:
        terminalreporter.section("faults caused")
        for line in TALLY.lines():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    """How often each random fault is caused; the option is there where this folder is named."""
    return request.config.getoption("rounds", default=None) or 1


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    seed = request.config.getoption("seed", default=None) or 0
    return random.Random(f"{seed} {request.node.name}")


@pytest.fixture(scope="session")
def tally() -> Tally:
    return TALLY


@pytest.fixture(scope="session")
def ground(forked: Drivers, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Models and workflow with the store of an undisturbed run. Read-only."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    made, whole = Ground(shared / "faults"), shared / "faults.whole"
    with FileLock(shared / "faults.lock"):
        if not whole.exists():
            shutil.rmtree(made.folder, ignore_errors=True)
            made.folder.mkdir()
            write_zoo(made.folder)
            write_yaml(made.folder / "workflow.yaml", FAULTS)
            run = forked.run(made)
            assert run.code == 0, run.output
            whole.write_text(json.dumps(Counter(c.split()[0] for c in run.changes)))
    return made


@pytest.fixture(scope="session")
def changes(ground: Ground) -> dict[str, int]:
    """How many changes of the file system it made, by part of the store, in order."""
    counts: dict[str, int] = json.loads(ground.folder.with_name("faults.whole").read_text())
    return counts


@pytest.fixture(scope="session")
def forked() -> Iterator[Drivers]:
    made = Drivers()
    yield made
    made.close()
