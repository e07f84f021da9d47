"""The table of provenance: what the numbers come from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from pipeline.report.results import NullSummary, Results, null_summary
from pipeline.report.section import Section, SectionMaker
from pipeline.report.templating import render


def provenance_table(results: Results) -> Iterator[Section]:
    """Tabulate stimuli, versions, seeds and nulls."""
    yield Section("provenance", html=render("provenance", provenance=_rows(results)))


PROVENANCE = SectionMaker("Provenance", ("alignment", "convergence"), provenance_table)


def _rows(results: Results) -> list[tuple[str, str]]:
    """Return what each row is about, and what it says."""
    about = results.metadata
    set_key, stimuli = results.set_key, results.stimuli
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
        *_decoding(stimuli.get("details", {})),
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
        by_null.setdefault(_null(null_summary(dataset)), []).append(label)
    rows += [(f"null of {', '.join(labels)}", how) for how, labels in by_null.items()]
    return rows


def _decoding(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how image files were decoded, where the stimuli are files."""
    if "rules" not in details:
        return []
    rules = "; ".join(f"{kind}: {rule}" for kind, rule in details["rules"].items())
    return [("decoding of images", f"{details['decoder']}; {rules}")]


def _null(null: NullSummary | None) -> str:
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


def _phrase(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "not recorded" if value is None else str(value)
