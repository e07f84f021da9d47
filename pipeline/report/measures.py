"""The table of measures: their conventions, and how many stimuli have ties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.report.prose import count_of
from pipeline.report.results import Results
from pipeline.report.section import Section, SectionMaker
from pipeline.report.templating import render


def measures_table(results: Results) -> Iterator[Section]:
    """Tabulate the measures with their conventions."""
    yield Section("measures", html=render("measures", conventions=_rows(results)))


MEASURES = SectionMaker("Measures", (), measures_table)


def _rows(results: Results) -> list[dict[str, str]]:
    """Return a row for each measure."""
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
                f"({count_of(len(ties), 'representation')} of {n:,} {unit})"
            )
    return "; ".join(said) or "no neighbours"
