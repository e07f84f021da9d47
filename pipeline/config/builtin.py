"""The registry of published models that comes with the package."""

from __future__ import annotations

from pathlib import Path

BUILTIN = "builtin"
"""What stands for it under `registry:`."""


def builtin_registry() -> Path:
    """Return the file: in an installed package beside its modules, else in the repository."""
    package = Path(__file__).parents[1]
    packaged = package / "builtin" / "models.yaml"
    return packaged if packaged.is_file() else package.parent / "models.yaml"
