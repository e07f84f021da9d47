"""The registry that comes with the package: in the repository, and in a wheel."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from pipeline.config.builtin import BUILTIN, builtin_registry, default_registry
from pipeline.config.registry import load_registry

ROOT = Path(__file__).parents[2]


def test_builtin__is_the_registry_of_the_repository() -> None:
    assert builtin_registry() == ROOT / "models.yaml"
    assert list(load_registry([BUILTIN]).entries) == list(
        load_registry([ROOT / "models.yaml"]).entries
    )


def test_builtin__beside_a_file_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("models:\n- {source: timm, name: resnet18, id: timm/mine, sets: [mine]}\n")
    registry = load_registry([BUILTIN, mine])
    assert [s.id for s in registry.select(sets=["mine"])] == ["timm/mine"]
    assert len(registry) == len(load_registry([BUILTIN])) + 1


def test_wheel__has_the_registry_and_the_quickstart(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        for name in ("models.yaml", "workflows/quickstart.yaml", "workflows/reference.yaml"):
            assert archive.read(f"pipeline/builtin/{name}") == (ROOT / name).read_bytes()


def test_default__is_the_file_here_else_the_builtin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_registry() == [BUILTIN]
    (tmp_path / "models.yaml").touch()
    assert default_registry() == ["models.yaml"]
