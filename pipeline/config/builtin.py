"""What comes with the package: the registry of published models, and the quickstart."""

from __future__ import annotations

from pathlib import Path

BUILTIN = "builtin"
"""What stands for it under `registry:`."""


def default_registry() -> list[str]:
    """Return what is read where no registry is named: a `models.yaml` here, else the built-in."""
    return ["models.yaml"] if Path("models.yaml").is_file() else [BUILTIN]


def builtin_registry() -> Path:
    """Return the file of the registry."""
    return _packaged("models.yaml")


def builtin_workflows() -> Path:
    """Return the folder of the quickstart's files."""
    return _packaged("workflows")


def _packaged(name: str) -> Path:
    """Return a path beside the modules of an installed package, else in the repository."""
    package = Path(__file__).parents[1]
    packaged = package / "builtin" / name
    return packaged if packaged.exists() else package.parent / name
