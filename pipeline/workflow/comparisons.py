"""Which encoders are compared with which, and on which rows."""

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
    """One subset with the encoders that are compared on it."""

    subset: Subset
    encoders: Sequence[Encoder]
    compare_mask: Mask
    """`(n_encoders, n_encoders)`, symmetric: the pairs to compare."""
    calibrate_mask: Mask
    """Same shape: those of the compared pairs that need a null too."""


def comparisons_of(
    workflow: Workflow, subset: Subset, encoders: Sequence[Encoder]
) -> list[Comparison]:
    """Return which pairs of encoders are compared on which rows.

    Pairs without a text tower are compared on the whole subset. Pairs with one are compared on its
    distinct captions, since repeated captions would be exact ties.

    Raises
    ------
    InputError
        If there are fewer distinct captions than the measures need.
    """
    pairs = workflow.compare.pairs
    null_pairs = workflow.calibrate.pairs if workflow.calibrate else ()

    def comparison(subset: Subset, selected: Sequence[Encoder], allowed: Any = True) -> Comparison:
        calibrated = (
            wanted_pairs(selected, null_pairs) & ~np.eye(len(selected), dtype=bool) & allowed
        )
        # a null is useless without its score, so calibrated pairs are compared as well
        return Comparison(
            subset, selected, wanted_pairs(selected, pairs) & allowed | calibrated, calibrated
        )

    text = with_modality(encoders, "text")
    non_text = [e for e, is_text in zip(encoders, text.diagonal(), strict=True) if not is_text]
    found = [comparison(subset, non_text)] if non_text else []
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
    """Return the union of selected kinds of pairs as a symmetric mask `(n_encoders, n_encoders)`.

    Parameters
    ----------
    kinds
        `final` and `init` pair the last, or the initial, checkpoints of all models; `same_step`
        pairs checkpoints at equal training step; `within_model` pairs all encoders of a model,
        each with itself included; `all` pairs everything.
    """
    n = len(encoders)
    final = np.array([e.final for e in encoders], dtype=bool)
    initial = np.array([e.initial for e in encoders], dtype=bool)
    step = np.array([e.step for e in encoders])
    model = np.array([e.model for e in encoders], dtype=object)
    distinct = ~np.eye(n, dtype=bool)
    of_kind: dict[str, Callable[[], Mask]] = {
        "all": lambda: np.ones((n, n), bool),
        "final": lambda: final[:, None] & final & distinct,
        "init": lambda: initial[:, None] & initial & distinct,
        "same_step": lambda: (step[:, None] == step) & (step >= 0) & distinct,
        "within_model": lambda: np.asarray(model[:, None] == model),
    }
    wanted = np.zeros((n, n), bool)
    for kind in kinds:
        wanted |= of_kind[kind]()
    return wanted


def with_modality(encoders: Sequence[Encoder], modality: Modality) -> Mask:
    """Return the mask `(n_encoders, n_encoders)` of pairs with at least one of a modality."""
    has_modality = np.array([e.modality == modality for e in encoders], dtype=bool)
    return np.asarray(has_modality[:, None] | has_modality)


def expand_to_layers(mask: Mask, counts: Sequence[int]) -> Mask:
    """Expand a mask over encoders to their layers.

    Parameters
    ----------
    mask
        `(n_encoders, n_encoders)`.
    counts
        Number of layers of each encoder.

    Returns
    -------
    numpy.ndarray
        `(sum(counts), sum(counts))`.
    """
    return np.repeat(np.repeat(mask, counts, axis=0), counts, axis=1)
