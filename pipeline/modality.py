"""The modality of each tower's input."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.types import Modality

MODALITY: Mapping[str, Modality] = {"image": "image", "text": "text", "array": "array"}
"""Tower → modality, for every tower that a model may have."""

MODALITIES = tuple(dict.fromkeys(MODALITY.values()))
"""All modalities; the first one that a store holds is the default."""


def modality_of(tower: str) -> Modality:
    """Return the modality of a tower's input.

    Raises
    ------
    KeyError
        If there is no tower of this name.
    """
    return MODALITY[tower]
