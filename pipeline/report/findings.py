"""Tables of findings: mean alignment and its slope, and alignment between modalities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.convergence import mean_alignment
from pipeline.report.modality import convergence_of, modalities, modality_pairs
from pipeline.report.results import Results, encoder_mask, pair_values, value_names
from pipeline.report.section import Section, SectionMaker
from pipeline.report.templating import render
from pipeline.types import Float64

if TYPE_CHECKING:
    import xarray as xr

ALPHA = 0.05  # where the store names no level


def findings_tables(results: Results) -> Iterator[Section]:
    """Tabulate the findings of each modality, then those between modalities."""
    rows = findings_rows(results)
    within = {m: [row for row in rows if row["modality"] == m] for m in modalities(results)}
    across = {
        pair: found for pair in modality_pairs(results) if (found := _rows_between(results, *pair))
    }
    yield Section("findings", html=render("findings", within=within, across=across))


FINDINGS = SectionMaker("Findings", ("alignment", "convergence"), findings_tables)


def findings_rows(results: Results) -> list[dict[str, Any]]:
    """Return what was found by each measure in each modality, with intervals and tests."""
    return [
        {
            "measure": label,
            "modality": modality,
            **_row(results.alignment[label], convergence_of(results, label, modality), modality),
        }
        for modality in modalities(results)
        for label in results.labels
    ]


def _row(alignment: xr.Dataset, convergence: xr.Dataset, modality: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for value, name in (("raw", "score"), ("calibrated", "calibrated")):
        for condition in ("final", "init"):
            mask = encoder_mask(alignment, condition, modality)
            mean, low, high, n = mean_alignment(pair_values(alignment, name, mask, mask))
            key = f"{value}_{condition}"
            row |= {key: mean, f"{key}_low": low, f"{key}_high": high, f"{key}_pairs": n}
        row |= _slope(convergence, value)
    final = encoder_mask(alignment, "final", modality)
    row["alpha"] = float(alignment.attrs.get("alpha", ALPHA))
    q = _each_once(pair_values(alignment, "q", final, final))
    row["significant"] = float(np.mean(q <= row["alpha"])) if len(q) else np.nan
    raw = pair_values(alignment, "score", final, final)
    row["n_models"] = int(np.isfinite(raw).any(axis=1).sum())
    row["n_pairs"] = row["raw_final_pairs"]
    return row


def _slope(convergence: xr.Dataset, value: str) -> dict[str, float]:
    """Return the slope per tenfold parameters of the final pairs, its interval and its p."""
    fields = {
        f"slope_{value}": "slope",
        f"slope_{value}_low": "slope_low",
        f"slope_{value}_high": "slope_high",
        f"p_{value}": "p_qap",
    }
    trend = convergence.sel(condition="final", value=value, predictor="n_parameters")
    return {key: float(trend[field]) for key, field in fields.items()}


def _rows_between(results: Results, x: str, y: str) -> list[dict[str, Any]]:
    """Return the mean alignment of final towers of two modalities; empty if none were compared."""
    rows = []
    for label, alignment in results.alignment.items():
        final_x, final_y = (encoder_mask(alignment, "final", modality) for modality in (x, y))
        row: dict[str, Any] = {"measure": label, "raw": np.nan, "calibrated": np.nan}
        for value, name in value_names(alignment).items():
            values = pair_values(alignment, name, final_x, final_y)
            values = values[np.isfinite(values)]
            row[value] = float(values.mean()) if len(values) else np.nan
            row.setdefault("n_pairs", len(values))  # raw comes first
        rows.append(row)
    return rows if any(row["n_pairs"] for row in rows) else []


def _each_once(values: Float64) -> Float64:
    """Return the finite values of unordered pairs."""
    above = values[np.triu_indices(len(values), 1)]
    return above[np.isfinite(above)]
