"""The rows of the findings table: one per measure, plain numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.convergence import mean_alignment
from pipeline.report.results import (
    Float,
    Results,
    encoder_mask,
    load_results,
    pair_values,
)

if TYPE_CHECKING:
    import xarray as xr

    from pipeline.store import Store

ALPHA = 0.05  # where the store names no level
COLUMNS = (
    "measure",
    "raw_final",
    "raw_init",
    "calibrated_final",
    "calibrated_init",
    "significant",
    "slope_raw",
    "slope_raw_low",
    "slope_raw_high",
    "slope_calibrated",
    "slope_calibrated_low",
    "slope_calibrated_high",
    "n_models",
    "n_pairs",
)


def findings(store: Store, subset: str | None = None) -> list[dict[str, Any]]:
    """Return what was found, one row per measure.

    Parameters
    ----------
    store
        An open store.
    subset
        Its key; may be left out where the store has one subset only.

    Returns
    -------
    list of dict
        Keys as `COLUMNS` has them, in this order. `measure` is its label. Over pairs of image
        towers of unrelated models: mean alignments `raw_final`, `raw_init`, `calibrated_final`,
        `calibrated_init`; `significant`, the fraction of final pairs with q at most alpha;
        `slope_raw` and `slope_calibrated`, the change of final alignment per tenfold parameters,
        with 95% intervals `…_low`, `…_high` of a bootstrap over models; `n_models` and `n_pairs`,
        those of the raw final alignment. NaN where a value was not computed.

    Raises
    ------
    InputError
        Where there is no such subset, or nothing has been aggregated on it yet.

    Examples
    --------
    >>> import pandas as pd                                    # doctest: +SKIP
    >>> pd.DataFrame(findings(open_store("quickstart.zarr")))  # doctest: +SKIP
    """
    return [{name: row[name] for name in COLUMNS} for row in detailed(load_results(store, subset))]


def detailed(results: Results) -> list[dict[str, Any]]:
    """Return the findings with what the report adds: intervals, tests, pairs with text towers."""
    return [
        {"measure": label, **_row(results.alignment[label], results.convergence[label])}
        for label in results.labels
    ]


def _row(alignment: xr.Dataset, convergence: xr.Dataset) -> dict[str, Any]:
    row: dict[str, Any] = {}
    final = encoder_mask(alignment, "final")
    text = encoder_mask(alignment, "final", "text")
    for value, name in (("raw", "score"), ("calibrated", "calibrated")):
        for condition in ("final", "init"):
            mask = encoder_mask(alignment, condition)
            mean, low, high, n = mean_alignment(pair_values(alignment, name, mask, mask))
            key = f"{value}_{condition}"
            row |= {key: mean, f"{key}_low": low, f"{key}_high": high, f"{key}_pairs": n}
        trend = convergence.sel(condition="final", value=value, predictor="n_parameters")
        for suffix, field in (("", "slope"), ("_low", "slope_low"), ("_high", "slope_high")):
            row[f"slope_{value}{suffix}"] = float(trend[field])
        row[f"p_{value}"] = float(trend["p_qap"])
        across = pair_values(alignment, name, final, text)
        across = across[np.isfinite(across)]
        row[f"{value}_image_text"] = float(across.mean()) if len(across) else np.nan
        row[f"{value}_image_text_pairs"] = len(across)
    row["alpha"] = float(alignment.attrs.get("alpha", ALPHA))
    q = _each_once(pair_values(alignment, "q", final, final))
    row["significant"] = float(np.mean(q <= row["alpha"])) if len(q) else np.nan
    raw = pair_values(alignment, "score", final, final)
    row["n_models"] = int(np.isfinite(raw).any(axis=1).sum())
    row["n_pairs"] = row["raw_final_pairs"]
    return row


def _each_once(values: Float) -> Float:
    """Return the finite values of unordered pairs."""
    above = values[np.triu_indices(len(values), 1)]
    return above[np.isfinite(above)]
