"""Which encoders meet which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder import Encoder
from pipeline.stimuli import Subset

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """One subset with the encoders that meet on it."""

    subset: Subset
    encoders: Sequence[Encoder]
    wanted: Mask
    calibrated: Mask
    """The pairs among them whose null is wanted too."""


def wanted_pairs(encoders: Sequence[Encoder], kinds: Iterable[str]) -> Mask:
    """Return a symmetric mask `(encoder, encoder)`: the union of the kinds of pairs.

    `final` and `init` pair the last, or the initial, checkpoints of all models; `same_step` those
    at equal training step; `within_model` everything of one model, each encoder with itself
    included; `all` everything.
    """
    n = len(encoders)
    final = np.array([e.final for e in encoders], dtype=bool)
    initial = np.array([e.initial for e in encoders], dtype=bool)
    step = np.array([e.step for e in encoders])
    model = np.array([e.model for e in encoders], dtype=object)
    apart = ~np.eye(n, dtype=bool)
    of_kind: dict[str, Callable[[], Mask]] = {
        "all": lambda: np.ones((n, n), bool),
        "final": lambda: final[:, None] & final & apart,
        "init": lambda: initial[:, None] & initial & apart,
        "same_step": lambda: (step[:, None] == step) & (step >= 0) & apart,
        "within_model": lambda: np.asarray(model[:, None] == model),
    }
    wanted = np.zeros((n, n), bool)
    for kind in kinds:
        wanted |= of_kind[kind]()
    return wanted


def with_text(encoders: Sequence[Encoder]) -> Mask:
    """Return the pairs in which at least one encoder is a text tower."""
    text = np.array([e.tower == "text" for e in encoders], dtype=bool)
    return np.asarray(text[:, None] | text)


def spread(mask: Mask, counts: Sequence[int]) -> Mask:
    """Repeat a mask over encoders for the layers of each."""
    return np.repeat(np.repeat(mask, counts, axis=0), counts, axis=1)
