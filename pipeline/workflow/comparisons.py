"""Which encoders meet which, and on which rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.encoder import Encoder
from pipeline.errors import InputError
from pipeline.stimuli import Subset
from pipeline.types import Mask, Modality

if TYPE_CHECKING:
    from pipeline.workflow.spec import Workflow


@dataclass(frozen=True)
class Comparison:
    """One subset with the encoders that meet on it."""

    subset: Subset
    encoders: Sequence[Encoder]
    compare_mask: Mask
    """`(encoder, encoder)`: the pairs that are compared."""
    calibrate_mask: Mask
    """The pairs among them whose null is wanted too."""


def comparisons_of(
    workflow: Workflow, subset: Subset, encoders: Sequence[Encoder]
) -> list[Comparison]:
    """Return who meets whom on which rows.

    Pairs of encoders meet on the subset. Those with a text tower meet on its distinct captions,
    since repeated captions would be exact ties.

    Raises
    ------
    InputError
        Where the distinct captions are fewer than the measures need.
    """
    pairs = workflow.compare.pairs
    pairs_of_null = workflow.calibrate.pairs if workflow.calibrate else ()

    def comparison(subset: Subset, some: Sequence[Encoder], only: Any = True) -> Comparison:
        calibrated = wanted_pairs(some, pairs_of_null) & ~np.eye(len(some), dtype=bool) & only
        # what is calibrated is also compared: a null says nothing without its score
        return Comparison(subset, some, wanted_pairs(some, pairs) & only | calibrated, calibrated)

    text = with_modality(encoders, "text")
    apart = [e for e, is_text in zip(encoders, text.diagonal(), strict=True) if not is_text]
    found = [comparison(subset, apart)] if apart else []
    if text.any():
        captions = subset.distinct_captions()
        needed = max(spec.minimum_stimuli for spec in workflow.compare.specs.values())
        if len(captions) < needed:
            raise InputError(
                f"subset: its {len(subset)} rows have {len(captions)} distinct captions, too few "
                f"for these measures, which need {needed}. Raise subset.n, or lower k."
            )
        found.append(comparison(captions, encoders, text))
    return found


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


def with_modality(encoders: Sequence[Encoder], modality: Modality) -> Mask:
    """Return the pairs `(encoder, encoder)` in which at least one is of a modality."""
    of_it = np.array([e.modality == modality for e in encoders], dtype=bool)
    return np.asarray(of_it[:, None] | of_it)


def expand_to_layers(mask: Mask, counts: Sequence[int]) -> Mask:
    """Repeat a mask over encoders for the layers of each."""
    return np.repeat(np.repeat(mask, counts, axis=0), counts, axis=1)
