"""One file per model source behind a narrow Protocol. Importing this does not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.sources.base import Source

_MODULES = {"timm": "pipeline.sources.timm", "open_clip": "pipeline.sources.open_clip"}


def get_source(name: str) -> Source:
    """Return the source that a spec's `source:` names."""
    source: Source = import_module(_MODULES[name]).SOURCE
    return source


__all__ = ["get_source"]
