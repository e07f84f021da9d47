"""Which models are missing from a figure or a mean, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.report.modality import modalities, with_article
from pipeline.report.results import Results, encoder_mask, text, value_names
from pipeline.types import Mask

if TYPE_CHECKING:
    import xarray as xr

    from pipeline.store.catalog import StoredCheckpoint

NAMED = 6
"""Most models that are named for a reason; of more, the first ones and a count."""
NAMES = {"final": "Final models", "init": "Models at initialisation"}
PREDICTORS = {"n_parameters": "numbers of parameters", "probe_accuracy": "accuracy"}
Reasons = Mapping[str, Sequence[str]]
"""Reason for which something is left out → models to which it applies."""


def models_of(results: Results, modality: str | None = None) -> list[str]:
    """Return the models that any measure compared, sorted; or those with a modality's tower."""
    found: set[str] = set()
    for alignment in results.alignment.values():
        models = text(alignment, "model_x")
        found |= set(
            models if modality is None else models[text(alignment, "modality_x") == modality]
        )
    return sorted(map(str, found))


def missing_encoders(results: Results, label: str, condition: str, modality: str) -> Reasons:
    """Return why models have no `final`, or `init`, encoder among those a measure compared."""
    alignment = results.alignment[label]
    there = set(text(alignment, "model_x")[encoder_mask(alignment, condition, modality)])
    which = "last checkpoint" if condition == "final" else "checkpoint at initialisation"
    reasons: dict[str, list[str]] = {}
    for model in models_of(results, modality):
        if model in there:
            continue
        checkpoints = results.checkpoints.get((model, modality), [])
        meant = checkpoints[-1:] if condition == "final" else []
        if condition == "init":
            meant = [c for c in checkpoints if c.step == 0]
        _add(reasons, model, which, meant)
    return reasons


def missing_at_step(results: Results, label: str, step: int, modality: str) -> Reasons:
    """Return why models have no encoder of a modality at a training step."""
    alignment = results.alignment[label]
    at = (alignment["step_x"].values == step) & (text(alignment, "modality_x") == modality)
    there = set(text(alignment, "model_x")[at])
    reasons: dict[str, list[str]] = {}
    for model in models_of(results, modality):
        if model not in there:
            checkpoints = results.checkpoints.get((model, modality), [])
            meant = [c for c in checkpoints if c.step == step]
            _add(reasons, model, "checkpoint at this step", meant)
    return reasons


def _add(
    reasons: dict[str, list[str]], model: str, which: str, meant: Sequence[StoredCheckpoint]
) -> None:
    """Note why a checkpoint of a model was not compared; `meant` is empty if it has none."""
    if not meant:
        why, name = f"no {which}", model
    elif not meant[0].is_complete:
        why, name = f"{which} not fully extracted", f"{model}@{meant[0].label}"
    else:
        why, name = f"{which} not among those compared", f"{model}@{meant[0].label}"
    reasons.setdefault(why, []).append(name)


def missing_values(
    results: Results,
    label: str,
    condition: str,
    value: str,
    modality: str,
    predictor: str | None = None,
) -> Reasons:
    """Return why models have no value in the means and trends of a modality.

    Parameters
    ----------
    condition
        `final` or `init`.
    value
        `score` or `calibrated`.
    predictor
        Of a trend: `n_parameters` or `probe_accuracy`.

    Returns
    -------
    Reasons
        Those of `missing_encoders` first.
    """
    alignment = results.alignment[label]
    missing = missing_encoders(results, label, condition, modality)
    reasons = {why: list(models) for why, models in missing.items()}
    mask = encoder_mask(alignment, condition, modality)
    for i in np.flatnonzero(mask):
        why = _why_no_value(alignment, int(i), mask, value)
        if not why and predictor is not None:
            known = np.isfinite(alignment[f"{predictor}_x"].values[i])
            why = "" if known else f"{PREDICTORS[predictor]} not known"
        if why:
            reasons.setdefault(why, []).append(str(alignment["model_x"].values[i]))
    return reasons


def _why_no_value(alignment: xr.Dataset, i: int, mask: Mask, value: str) -> str:
    """Say why an encoder has no value with any unrelated one; empty if it has one."""
    others = mask.copy()
    others[i] = False
    if not others.any():
        return "no other model to compare with"
    others &= ~alignment["related"].values[i].astype(bool)
    if not others.any():
        return "related to all others"
    if np.isfinite(alignment[value].values[i, others]).any():
        return ""
    if np.isfinite(alignment["score"].values[i, others]).any():
        return "not calibrated"
    if (alignment["n_stimuli"].values[i, others] == 0).all():
        return "not compared, or the comparison failed"
    return "the measure is undefined for it"


def phrase(reasons: Reasons, n_models: int) -> str:
    """Say how many of the models compared are left out, which, and why; empty if none is."""
    if not reasons:
        return ""
    n = sum(map(len, reasons.values()))
    parts = [f"{named(models)} ({why})" for why, models in reasons.items()]
    return f"{n} of {n_models} models left out: {'; '.join(parts)}"


def named(models: Sequence[str]) -> str:
    """List models if they are few; otherwise the first of them and how many more."""
    if len(models) <= NAMED:
        return ", ".join(models)
    return f"{', '.join(models[: NAMED - 1])} and {len(models) - NAMED + 1} more"


def sentences(
    results: Results, label: str, condition: str, modality: str, predictors: Sequence[str] = ()
) -> list[str]:
    """Say which models the means and trends of a measure leave out, each once.

    Parameters
    ----------
    condition
        `final` or `init`.
    predictors
        Of trends.

    Returns
    -------
    list of str
        For raw alignment; then what else is missing from calibrated alignment and from each trend.
    """
    n_models = len(models_of(results, modality))
    whose = NAMES[condition]
    if len(modalities(results)) > 1:
        whose += f" with {with_article(modality)} tower"
    raw = missing_values(results, label, condition, "score", modality)
    said = [(whose, raw)]
    for value, name in value_names(results.alignment[label]).items():
        of_value = missing_values(results, label, condition, name, modality)
        if value != "raw":
            said.append((f"{whose}, {value}", _besides(of_value, raw)))
        for predictor in predictors if value == "raw" else ():
            of_trend = missing_values(results, label, condition, name, modality, predictor)
            of_trend = _besides(of_trend, of_value)
            said.append((f"{whose}, trend over {PREDICTORS[predictor]}", of_trend))
    return [f"{where}: {phrase(why, n_models)}." for where, why in said if why]


def _besides(reasons: Reasons, others: Reasons) -> Reasons:
    """Return those that are not among the others."""
    found = {
        why: [m for m in models if m not in others.get(why, ())] for why, models in reasons.items()
    }
    return {why: models for why, models in found.items() if models}


def left_out(results: Results) -> list[str]:
    """Say which models the final comparisons leave out, for measures together where they agree.

    Returns
    -------
    list of str
        Empty if every model that takes part in any comparison takes part in these.
    """
    labels: dict[str, list[str]] = {}
    for modality in modalities(results):
        for label in results.labels:
            for said in sentences(results, label, "final", modality):
                labels.setdefault(said, []).append(label)
    return [
        said if of == results.labels else f"{', '.join(of)}: {said}" for said, of in labels.items()
    ]
