"""What the report says in words: what was compared, what was not, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.report.absences import left_out, models_of, named
from pipeline.report.results import (
    NullFacts,
    Results,
    encoder_mask,
    is_calibrated,
    null_facts,
    stages,
    text,
)
from pipeline.report.style import count, number


def summary(results: Results) -> str:
    """Say in one paragraph what was compared."""
    alignment = next(iter(results.alignment.values()))
    models = models_of(results)
    families = np.unique(text(alignment, "family_x"))
    towers = text(alignment, "tower_x")
    representations = max(
        len({name for part in results.diagnostics(label) for name in part.representation.values})
        for label in results.labels
    )
    n_text = int((towers == "text").sum())
    encoders = _of(len(towers), "encoder")
    if n_text:
        encoders += f" ({len(towers) - n_text} image towers and {n_text} text towers)"
    parts = [
        f"{_of(len(models), 'model')} of {_of(len(families), 'family', 'families')}, as {encoders} "
        f"with {_of(representations, 'representation')}, were compared on "
        f"{_of(int(results.metadata['n_stimuli']), 'stimulus', 'stimuli')}"
        f"{_captions(results)}, by {_of(len(results.labels), 'measure')}: "
        f"{', '.join(results.labels)}."
    ]
    facts = {label: null_facts(dataset) for label, dataset in results.alignment.items()}
    by_way: dict[str, list[str]] = {}
    for label, null in facts.items():
        by_way.setdefault(_calibration(null), []).append(label)
    for way, labels in by_way.items():
        everything = len(labels) == len(results.labels)
        parts.append(f"{'Scores' if everything else ', '.join(labels) + ': scores'} {way}")
    if any(null is not None for null in facts.values()):
        parts.append(
            "Calibrated, 0 is the threshold that chance passes with probability α, with the search "
            "for the best layers included, and 1 is the measure's maximum."
        )
    parts.append(
        "Alignment is the similarity of the best pair of layers of two encoders. An encoder is one "
        "model, at one checkpoint, seen through one tower."
    )
    return " ".join(parts)


def _captions(results: Results) -> str:
    key = results.store.captions_subset(results.key)
    if key is None:
        return ""
    n = int(results.store.subset_metadata(key)["n_stimuli"])
    return f" (pairs with a text tower on {n:,} distinct captions)"


def _calibration(null: NullFacts | None) -> str:
    """Say how the scores of a measure were calibrated, and how low p can be."""
    if null is None:
        return "were not calibrated."
    n, least = null.n_permutations, f"1/{null.n_permutations + 1:,}"
    level = f"at α = {null.alpha:g}"
    if null.method == "permutation":
        return (
            f"were calibrated by {n:,} permutations of the stimuli, {level}; the lowest p that "
            f"these can give is {least}."
        )
    return (
        f"were calibrated against {n:,} draws from nulls of exact moments, {level}; p below "
        f"{least} is an upper bound from the moments{_flagged(null)}."
    )


def _flagged(null: NullFacts) -> str:
    if not null.flagged:
        return ""
    return (
        f", but for {null.flagged:,} of {null.n_pairs:,} pairs, whose moments do not determine the "
        f"null: these were calibrated by {null.n_permutations:,} permutations of the stimuli"
    )


def notes(results: Results) -> list[str]:
    """Say what the report cannot show, a sentence each."""
    said = []
    if results.unfinished:
        said.append(
            f"Compared, but not aggregated yet, and so left out: {', '.join(results.unfinished)}."
        )
    alignment = next(iter(results.alignment.values()))
    whole: dict[str, bool] = {}
    for (model, _), checkpoints in results.checkpoints.items():
        whole[model] = whole.get(model, False) or any(c.is_complete for c in checkpoints)
    absent = {model: whole[model] for model in sorted(whole.keys() - set(models_of(results)))}
    if others := [model for model, is_whole in absent.items() if is_whole]:
        said.append(
            "In the store, but not in these comparisons, which are another workflow's: "
            f"{', '.join(others)}."
        )
    if nowhere := [model for model, is_whole in absent.items() if not is_whole]:
        said.append(
            f"Not compared at all, because no checkpoint was wholly extracted: {', '.join(nowhere)}"
            "."
        )
    broken = [
        f"{model}@{checkpoint.label}"
        for (model, _), checkpoints in sorted(results.checkpoints.items())
        for checkpoint in checkpoints
        if not checkpoint.is_complete
    ]
    if broken:
        said.append(
            f"Not wholly extracted, and so in no comparison: {named(list(dict.fromkeys(broken)))}. "
            "`consilience store log` shows what went wrong; the next run tries again."
        )
    said += left_out(results)
    said += [f"Left out: {why}" for why in results.outdated.values()]
    plain = [label for label, a in results.alignment.items() if not is_calibrated(a)]
    if plain:
        said.append(
            f"Not calibrated: {', '.join(plain)}. There are no calibrated scores, no p and no q; "
            "raw scores also reflect the number of features and of layers searched."
        )
    if not encoder_mask(alignment, "init").any():
        said.append(
            "No encoder at initialisation was compared, so there is no random-init control."
        )
    image = text(alignment, "tower_x") == "image"
    if not np.isfinite(alignment["probe_accuracy_x"].values[image]).any():
        said.append("No accuracy is in the store: stimuli without labels have none.")
    if all(len(stages(results.alignment[n], c)) < 2 for n, c in results.convergence.items()):
        said.append("Only one stage of training was compared, so there is nothing over training.")
    return said


def conventions(results: Results) -> list[dict[str, str]]:
    """Return, for each measure, what decides its numbers, and the ties that were met."""
    rows = []
    for label in results.labels:
        spec = results.store.measure(label, results.key)
        said = {k: v for k, v in spec.conventions().items() if k != "measure"}
        rows.append(
            {
                "label": label,
                "measure": spec.name,
                "conventions": ", ".join(
                    f"{k.replace('_', ' ')}: {_yes_no(v)}" for k, v in said.items()
                ),
                "reference": spec.measure.reference,
                "ties": _ties(results, label),
            }
        )
    return rows


def _null(null: NullFacts | None) -> str:
    """Say where the null of a measure comes from, pair by pair."""
    if null is None:
        return "none"
    pairs = f"{null.n_pairs:,} pairs"
    if null.method == "permutation":
        return f"{null.n_permutations:,} permutations, seed {null.seed}; {pairs}"
    return (
        f"{null.n_permutations:,} draws from exact moments, seed {null.seed}; "
        f"{null.flagged:,} of {pairs} by as many permutations instead"
    )


def _yes_no(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _ties(results: Results, label: str) -> str:
    """Say how many stimuli have neighbours that tie, on the subset and on its captions."""
    said = []
    for part in results.diagnostics(label):
        unit = "distinct captions" if part.attrs["kind"] == "captions" else "stimuli"
        ties, n = part["n_ties"].values, part.attrs["n_stimuli"]
        ties = ties[ties >= 0]
        if len(ties):
            said.append(
                f"{int(ties.sum()):,} of {len(ties) * n:,} "
                f"({_of(len(ties), 'representation')} of {n:,} {unit})"
            )
    return "; ".join(said) or "no neighbours"


def models(results: Results) -> list[dict[str, Any]]:
    """Return the rows of the table of models, by family and size."""
    alignment = next(iter(results.alignment.values()))
    of_model, family, tower = (text(alignment, name) for name in ("model_x", "family_x", "tower_x"))
    columns = {
        name: alignment[f"{name}_x"].values
        for name in ("step", "final", "n_parameters", "probe_accuracy", "knn_accuracy")
    }
    rows: list[dict[str, Any]] = []
    for model in np.unique(of_model):
        mine = of_model == model
        last = {
            t: np.flatnonzero(mine & columns["final"] & (tower == t)) for t in ("image", "text")
        }
        of_tower = {t: np.flatnonzero(mine & (tower == t)) for t in last}
        size = {t: float(columns["n_parameters"][at[0]]) for t, at in of_tower.items() if len(at)}
        lost = [
            c.label
            for t in of_tower
            for c in results.checkpoints.get((str(model), t), ())
            if not c.is_complete
        ]
        image = last["image"]
        accuracy = {
            name: number(float(columns[name][image[0]])) if len(image) else "–"
            for name in ("probe_accuracy", "knn_accuracy")
        }
        one = mine & (tower == tower[mine][0])
        rows.append(
            {
                "model": str(model),
                "family": str(family[mine][0]),
                "parameters": " + ".join(
                    count(n) + (f" {t}" if len(size) > 1 else "") for t, n in size.items()
                ),
                **accuracy,
                "checkpoints": _checkpoints(columns["step"][one])
                + (f"; not extracted: {named(list(dict.fromkeys(lost)))}" if lost else ""),
                "order": (str(family[mine][0]), next(iter(size.values()), 0.0)),
            }
        )
    rows.sort(key=lambda row: (row["order"], row["model"]))
    return rows


def _checkpoints(steps: NDArray[np.int64]) -> str:
    known = steps[steps >= 0]
    if len(known) < 2:
        return str(len(steps))
    return f"{len(steps)}, steps {known.min():,} to {known.max():,}"


def provenance(results: Results) -> list[tuple[str, str]]:
    """Return what the numbers come from: stimuli, versions, seeds."""
    about = results.metadata
    set_key = results.set_key
    stimuli = results.store.set_metadata(set_key) if set_key in results.store.sets else {}
    convergence = next(iter(results.convergence.values())).attrs
    versions = {
        json.dumps(e.attributes["versions"], sort_keys=True)
        for e in results.store.encoders(set_key)
        if "versions" in e.attributes
    }
    rows = [
        ("store", str(results.store.path)),
        ("stimulus set", set_key),
        ("source of the stimuli", _phrase(stimuli.get("source"))),
        ("subset", f"{results.key}, fingerprint {about.get('fingerprint', 'not recorded')}"),
        (
            "versions at extraction",
            "; ".join(_phrase(json.loads(v)) for v in sorted(versions)) or "not recorded",
        ),
        ("version of this report", f"consilience {version('consilience')}"),
        (
            "bootstrap and QAP",
            f"{convergence.get('n_bootstrap', 'unknown number of')} draws and permutations of "
            f"models, seed {convergence.get('seed', 'not recorded')}",
        ),
    ]
    by_null: dict[str, list[str]] = {}
    for label, dataset in results.alignment.items():
        by_null.setdefault(_null(null_facts(dataset)), []).append(label)
    rows += [(f"null of {', '.join(labels)}", how) for how, labels in by_null.items()]
    return rows


def _phrase(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "not recorded" if value is None else str(value)


def _of(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def image_text(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether any image tower was compared with a text tower."""
    return any(row["raw_image_text_pairs"] for row in rows)
