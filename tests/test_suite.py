"""What `make test-fast` leaves out is there, and it leaves some of every room in."""

from __future__ import annotations

from pathlib import Path

import pytest
from slow import SLOW

TESTS = Path(__file__).parent
FAULTS = TESTS / "faults"  # of no room: processes killed in the middle of whole runs
ROOMS = sorted({f.parent for f in TESTS.glob("*/test_*.py")} - {FAULTS})


@pytest.mark.parametrize("name", SLOW)
def test_slow__is_there(name: str) -> None:
    file, _, test = name.partition("::")
    path = TESTS.parent / file
    assert path.exists(), name
    assert f"def {test}" in path.read_text() if test else True, name


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_slow__leaves_some_of_every_room(room: Path) -> None:
    files = (f.relative_to(TESTS.parent).as_posix() for f in room.glob("test_*.py"))
    assert not all(file.startswith(SLOW) for file in files)
