"""Libraries that models come from. Importing this imports none of them, and no torch."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.sources.open_clip import OpenClipSource
from pipeline.sources.source import ModelSource, TowerInfo
from pipeline.sources.timm import TimmSource

SOURCES: Mapping[str, ModelSource] = {"timm": TimmSource(), "open_clip": OpenClipSource()}
"""Every source, by the name that an entry's `source:` has."""


def packages() -> tuple[str, ...]:
    """Return the distributions that activations depend on, over all sources."""
    return tuple(dict.fromkeys(p for source in SOURCES.values() for p in source.packages))


__all__ = ["SOURCES", "ModelSource", "TowerInfo", "packages"]
