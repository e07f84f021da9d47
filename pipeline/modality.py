"""Which modality a tower takes."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.types import Modality

MODALITY: Mapping[str, Modality] = {"image": "image", "text": "text"}
"""Tower → modality, for every tower that a model may have."""

MODALITIES = tuple(dict.fromkeys(MODALITY.values()))
"""All modalities, in the order in which they are shown."""


def modality_of(tower: str) -> Modality:
    """Return what a tower takes."""
    return MODALITY[tower]
