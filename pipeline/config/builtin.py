"""The registry of published models that comes with the package."""

from __future__ import annotations

from pathlib import Path

BUILTIN = "builtin"
"""What stands for it under `registry:`."""


def default_registry() -> list[str]:
    """Return what is read where no registry is named: a `models.yaml` here, else the built-in."""
    return ["models.yaml"] if Path("models.yaml").is_file() else [BUILTIN]


def builtin_registry() -> Path:
    """Return the file: in an installed package beside its modules, else in the repository."""
    package = Path(__file__).parents[1]
    packaged = package / "builtin" / "models.yaml"
    return packaged if packaged.is_file() else package.parent / "models.yaml"
