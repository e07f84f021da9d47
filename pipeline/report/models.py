"""The table of models: sizes, accuracies, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.report.absences import named
from pipeline.report.modality import modalities
from pipeline.report.results import Results, has_accuracy, text
from pipeline.report.section import Section, SectionMaker
from pipeline.report.style import count, number
from pipeline.report.templating import render
from pipeline.types import Index

ACCURACIES = ("probe_accuracy", "knn_accuracy")


def models_table(results: Results) -> Iterator[Section]:
    """Tabulate the models that were compared."""
    measured = _measured(results)
    yield Section("models", html=render("models", models=_rows(results), measured=measured))


MODELS = SectionMaker("Models", ("alignment",), models_table)


def _measured(results: Results) -> list[str]:
    """Return the modalities whose accuracies are shown; all if there are none."""
    known = modalities(results)
    return [m for m in known if has_accuracy(results, m, ACCURACIES)] or list(known)


def _rows(results: Results) -> list[dict[str, Any]]:
    """Return a row for each model, by family and size."""
    alignment = next(iter(results.alignment.values()))
    of_model, family, tower = (
        text(alignment, name) for name in ("model_x", "family_x", "modality_x")
    )
    columns = {
        name: alignment[f"{name}_x"].values
        for name in ("step", "final", "n_parameters", *ACCURACIES)
    }
    measured = _measured(results)
    rows: list[dict[str, Any]] = []
    for model in np.unique(of_model):
        mine = of_model == model
        of_tower = {t: np.flatnonzero(mine & (tower == t)) for t in modalities(results)}
        size = {t: float(columns["n_parameters"][at[0]]) for t, at in of_tower.items() if len(at)}
        last = {t: np.flatnonzero(mine & columns["final"] & (tower == t)) for t in measured}
        accuracy = {
            name: {
                t: value
                for t, at in last.items()
                if len(at) and np.isfinite(value := float(columns[name][at[0]]))
            }
            for name in ACCURACIES
        }
        lost = [
            c.label
            for t in of_tower
            for c in results.checkpoints.get((str(model), t), ())
            if not c.is_complete
        ]
        one = mine & (tower == tower[mine][0])
        rows.append(
            {
                "model": str(model),
                "family": str(family[mine][0]),
                "parameters": _by_modality(
                    {t: count(n) for t, n in size.items()}, " + ", len(size) > 1
                ),
                **{
                    name: _by_modality(
                        {t: number(v) for t, v in of.items()}, ", ", len(measured) > 1
                    )
                    for name, of in accuracy.items()
                },
                "checkpoints": _checkpoints(columns["step"][one])
                + (f"; not extracted: {named(list(dict.fromkeys(lost)))}" if lost else ""),
                "order": (str(family[mine][0]), next(iter(size.values()), 0.0)),
            }
        )
    rows.sort(key=lambda row: (row["order"], row["model"]))
    return rows


def _by_modality(values: dict[str, str], separator: str, with_names: bool) -> str:
    """Write the values of a model's towers, if need be with their modalities."""
    return separator.join(v + f" {t}" * with_names for t, v in values.items()) or "–"


def _checkpoints(steps: Index) -> str:
    known = steps[steps >= 0]
    if len(known) < 2:
        return str(len(steps))
    return f"{len(steps)}, steps {known.min():,} to {known.max():,}"
