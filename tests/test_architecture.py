"""What each room may import, as docs/architecture.md has it; no circles; one room knows Zarr."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in sorted((ROOT / "pipeline").rglob("*.py"))}


def imported(file: Path) -> set[str]:
    """Name every module that a file imports, at its top, late, or for its types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(file: Path) -> set[str]:
    """Name the modules of the project among them."""
    found = {name for name in imported(file) if name.split(".")[0] == "pipeline"}
    return {name if name in MODULES else name.rpartition(".")[0] for name in found}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "pipeline"


def rooms() -> dict[str, set[str]]:
    """Read the page's table: room → those that it may import, besides what stands below all."""
    found = {}
    for line in PAGE.read_text("utf-8").splitlines():
        if match := re.fullmatch(r"\| `(\w+)` \| .+ \| (.*) \|", line):
            found[match[1]] = set(re.findall(r"`(\w+)`", match[2]))
    return found


def below_all() -> set[str]:
    (line,) = re.findall(r"^Below all rooms stand .*?\.$", PAGE.read_text("utf-8"), re.M | re.S)
    return set(re.findall(r"`(\w+)`", line))


def test_rooms__are_those_of_the_page() -> None:
    assert {room_of(m) for m in MODULES} - {"pipeline"} == rooms().keys() | below_all()


@pytest.mark.parametrize("room", sorted({room_of(m) for m in MODULES} - {"pipeline"}))
def test_rooms__import_what_the_page_allows(room: str) -> None:
    allowed = below_all() | {room, "pipeline"}
    allowed |= set() if room in below_all() else rooms()[room]
    for module, file in MODULES.items():
        if room_of(module) == room:
            beyond = {name for name in own(file) if room_of(name) not in allowed}
            assert not beyond, f"{module} imports {', '.join(sorted(beyond))}"


def test_rooms__import_all_that_the_page_says() -> None:
    """A line that nothing needs any more is taken out."""
    actual = defaultdict(set)
    for module, file in MODULES.items():
        actual[room_of(module)] |= {room_of(name) for name in own(file)} - {room_of(module)}
    for room, may in rooms().items():
        assert may <= actual[room], f"{room} no longer imports {may - actual[room]}"


def test_rooms__stand_above_one_another() -> None:
    list(TopologicalSorter(rooms()).static_order())


def test_modules__have_no_circles() -> None:
    """Late imports and those for types count too."""
    graph = {module: own(file) - {module} for module, file in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


OWN_ZARR = {"pipeline.stimuli.arrays"}
"""Modules that read a person's own Zarr files."""


def test_zarr__is_imported_by_the_store_alone() -> None:
    for module, file in MODULES.items():
        if room_of(module) != "store" and module not in OWN_ZARR:
            assert not {n for n in imported(file) if n.split(".")[0] == "zarr"}, module
