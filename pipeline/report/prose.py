"""What the report says in words: what was compared, and what was not."""

from __future__ import annotations

import numpy as np

from pipeline.encoder import equal_weights
from pipeline.report.absences import left_out, models_of, named
from pipeline.report.modality import convergence_of, modalities
from pipeline.report.results import (
    PROBE_NEEDS,
    NullSummary,
    Results,
    encoder_mask,
    has_accuracy,
    is_calibrated,
    null_summary,
    stages,
    text,
)


def summary(results: Results) -> str:
    """Say in one paragraph what was compared."""
    alignment = next(iter(results.alignment.values()))
    models = models_of(results)
    families = np.unique(text(alignment, "family_x"))
    towers = text(alignment, "modality_x")
    representations = max(
        len({name for part in results.diagnostics(label) for name in part.representation.values})
        for label in results.labels
    )
    encoders = count_of(len(towers), "encoder")
    if len(modalities(results)) > 1:
        of = [f"{int((towers == m).sum())} {m} towers" for m in modalities(results)]
        encoders += f" ({', '.join(of[:-1])} and {of[-1]})"
    parts = [
        f"{count_of(len(models), 'model')} of "
        f"{count_of(len(families), 'family', 'families')}, as {encoders} "
        f"with {count_of(representations, 'representation')}, were compared on {_stimuli(results)}"
        f"{_captions(results)}, by {count_of(len(results.labels), 'measure')}: "
        f"{', '.join(results.labels)}."
    ]
    nulls = {label: null_summary(dataset) for label, dataset in results.alignment.items()}
    calibrated: dict[str, list[str]] = {}
    for label, null in nulls.items():
        calibrated.setdefault(_calibration(null), []).append(label)
    for how, labels in calibrated.items():
        everything = len(labels) == len(results.labels)
        parts.append(f"{'Scores' if everything else ', '.join(labels) + ': scores'} {how}")
    if any(null is not None for null in nulls.values()):
        parts.append(
            "On the calibrated scale, 0 is the threshold that chance exceeds with probability α, "
            "the search for the best layers included, and 1 is the measure's maximum."
        )
    parts.append(
        "Alignment is the similarity of the best pair of layers of two encoders. An encoder is one "
        "model, at one checkpoint, seen through one tower."
    )
    return " ".join(parts)


def _stimuli(results: Results) -> str:
    n = int(results.metadata["n_stimuli"])
    if results.metadata["kind"] == "captions":
        return count_of(n, "distinct caption")
    return count_of(n, "stimulus", "stimuli")


def _captions(results: Results) -> str:
    key = results.store.captions_subset(results.key)
    if key is None:
        return ""
    n = int(results.store.subset_metadata(key)["n_stimuli"])
    return f" (pairs with a text tower on {n:,} distinct captions)"


def _calibration(null: NullSummary | None) -> str:
    """Say how the scores of a measure were calibrated, and how small p can be."""
    if null is None:
        return "were not calibrated."
    n, least = null.n_permutations, f"1/{null.n_permutations + 1:,}"
    level = f"at α = {null.alpha:g}"
    if null.method == "permutation":
        return (
            f"were calibrated by {n:,} permutations of the stimuli, {level}; the smallest p that "
            f"these can give is {least}."
        )
    return (
        f"were calibrated against {n:,} draws from nulls with exact moments, {level}; a p below "
        f"{least} is an upper bound from the moments{_flagged(null)}."
    )


def _flagged(null: NullSummary) -> str:
    if not null.flagged:
        return ""
    return (
        f". {null.flagged:,} of {null.n_pairs:,} pairs have nulls that their moments do not "
        f"determine: these were calibrated by {null.n_permutations:,} permutations of the stimuli"
    )


def notes(results: Results) -> list[str]:
    """Say what the report cannot show, and what to know of the stimuli, a sentence each."""
    said = list(results.stimuli.get("notes", ()))
    said += _shared_weights(results)
    if results.unfinished:
        said.append(
            f"Compared but not yet aggregated, so left out: {', '.join(results.unfinished)}."
        )
    said += _absent_models(results)
    said += left_out(results)
    said += [f"Left out: {why}" for why in results.outdated.values()]
    if plain := [label for label, a in results.alignment.items() if not is_calibrated(a)]:
        said.append(
            f"Not calibrated: {', '.join(plain)}. They have no calibrated scores, p or q; "
            "raw scores also reflect the numbers of features and of layers searched."
        )
    said += _missing_controls(results)
    if not has_accuracy(results):
        said.append(f"No probe accuracy is in the store: it needs {PROBE_NEEDS}.")
    if not any(
        len(stages(results.alignment[label], convergence_of(results, label, modality), modality))
        > 1
        for label in results.labels
        for modality in modalities(results)
    ):
        said.append("Only one stage of training was compared, so nothing is shown over training.")
    return said


def _shared_weights(results: Results) -> list[str]:
    """Say which checkpoints have the same weights, although they have other names."""
    said = []
    chosen = {str(e) for a in results.alignment.values() for e in a["encoder_x"].values}
    compared = [e for e in results.store.encoders(results.set_key) if e.id in chosen]
    for names in equal_weights(compared):
        listed = f"{named(names)} have the same weights"
        if len({name.partition("@")[0] for name in names}) > 1:
            said.append(f"{listed}: they count as related, and their pairs enter no mean.")
        else:
            said.append(f"{listed}: nothing was learnt between them, or files were copied.")
    return said


def _absent_models(results: Results) -> list[str]:
    """Say which models and checkpoints of the store are in no comparison."""
    said = []
    extracted: dict[str, bool] = {}
    for (model, _), checkpoints in results.checkpoints.items():
        any_complete = any(c.is_complete for c in checkpoints)
        extracted[model] = extracted.get(model, False) or any_complete
    absent = sorted(extracted.keys() - set(models_of(results)))
    if others := [model for model in absent if extracted[model]]:
        said.append(
            "In the store but not in these comparisons, which belong to another workflow: "
            f"{', '.join(others)}."
        )
    if nowhere := [model for model in absent if not extracted[model]]:
        said.append(
            f"Not compared at all, because no checkpoint was fully extracted: {', '.join(nowhere)}."
        )
    broken = [
        f"{model}@{checkpoint.label}"
        for (model, _), checkpoints in sorted(results.checkpoints.items())
        for checkpoint in checkpoints
        if not checkpoint.is_complete
    ]
    if broken:
        said.append(
            f"Not fully extracted, so in no comparison: {named(list(dict.fromkeys(broken)))}. "
            "`consilience store log` shows what went wrong; the next run tries again."
        )
    return said


def _missing_controls(results: Results) -> list[str]:
    """Say for which modalities no encoder at initialisation was compared."""
    alignment = next(iter(results.alignment.values()))
    known = modalities(results)
    lacking = [m for m in known if not encoder_mask(alignment, "init", m).any()]
    if len(lacking) == len(known):
        return ["No encoder at initialisation was compared, so there is no random-init control."]
    return [
        f"No {m} tower at initialisation was compared, so there is no random-init control of "
        f"{m} towers."
        for m in lacking
    ]


def count_of(n: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun, in the singular or the plural."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
