"""How alignment changes with scale, with competence and over training.

Pairs that share a model are not independent, so pairs are never treated as samples. Intervals come
from a bootstrap over *models* (each draw weights a pair by the product of its models'
multiplicities), and tests from node permutations (QAP, Krackhardt 1988). Pairs of related models,
which were not trained independently, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.analysis import Analysis
from pipeline.analysis.competence import COLUMNS
from pipeline.schema import Variable
from pipeline.types import Float64

if TYPE_CHECKING:
    import xarray as xr

PREDICTORS = ("n_parameters", "flops", "samples_seen", *COLUMNS)
LOGARITHMIC = frozenset({"n_parameters", "flops", "samples_seen"})
"""Predictors taken as log10: their slopes are per tenfold increase."""
VALUES = {"raw": "score", "calibrated": "calibrated"}
CONDITIONS = ("final", "init")
N_BOOTSTRAP = 999
MINIMUM_MODELS = 4


@dataclass(frozen=True)
class Trend:
    """A straight line through pairs, its rank correlation, intervals and p-value."""

    slope: float = np.nan
    slope_low: float = np.nan
    slope_high: float = np.nan
    intercept: float = np.nan
    spearman: float = np.nan
    spearman_low: float = np.nan
    spearman_high: float = np.nan
    p_qap: float = np.nan
    n_models: int = 0
    n_pairs: int = 0


TREND_PROSE = {
    "slope": "Least-squares slope of alignment on the mean of the pair's predictor values.",
    "slope_low": "2.5% quantile of the slope over the bootstrap of models.",
    "slope_high": "97.5% quantile of the slope over the bootstrap of models.",
    "intercept": "Alignment at predictor value 0.",
    "spearman": "Rank correlation of alignment and predictor over pairs.",
    "spearman_low": "2.5% quantile of the rank correlation over the bootstrap of models.",
    "spearman_high": "97.5% quantile of the rank correlation over the bootstrap of models.",
    "p_qap": "Two-sided p of the slope under permutations of the models (QAP).",
    "n_models": "Models with an alignment and a predictor.",
    "n_pairs": "Pairs of models, related ones left out.",
}


def trend(
    values: Float64, predictor: Float64, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> Trend:
    """Regress the alignment of pairs on a predictor of their models, by least squares.

    Parameters
    ----------
    values
        Alignment, symmetric `(n_models, n_models)`; NaN for pairs to leave out. The diagonal is
        ignored.
    predictor
        `(n_models,)`, NaN for models to leave out. A pair's value is the mean over its two models.
    n_bootstrap
        Number of bootstrap draws of models, and number of permutations of models.
    seed
        Seed of the draws and permutations.

    Returns
    -------
    Trend
        With intervals of 95%. Statistics are NaN with fewer than 4 models or a constant predictor.

    Notes
    -----
    Rank correlations in the bootstrap weight the ranks of the whole sample; ranks are not
    recomputed for each draw.
    """
    usable = np.isfinite(predictor)
    i, j = np.triu_indices(len(predictor), 1)
    keep = np.isfinite(values[i, j]) & usable[i] & usable[j]
    i, j = i[keep], j[keep]
    models = np.union1d(i, j)
    if len(models) < MINIMUM_MODELS:
        return Trend(n_models=len(models), n_pairs=len(i))
    y, x = values[i, j], (predictor[i] + predictor[j]) / 2
    if np.ptp(x) < 1e-12 * max(1.0, float(np.abs(x).max())):
        return Trend(n_models=len(models), n_pairs=len(i))
    rng = np.random.default_rng(seed)
    weights = pair_weights(len(predictor), models, i, j, n_bootstrap, rng)
    rank_x, rank_y = _ranks(x), _ranks(y)
    slope, intercept = _line(x, y, np.ones((1, len(x))))
    slopes, _ = _line(x, y, weights)
    rho = _correlation(rank_x, rank_y, np.ones((1, len(x))))
    rhos = _correlation(rank_x, rank_y, weights)
    shuffled = np.tile(predictor, (n_bootstrap, 1))
    shuffled[:, models] = rng.permuted(shuffled[:, models], axis=1)
    permuted_x = (shuffled[:, i] + shuffled[:, j]) / 2
    permuted_x -= permuted_x.mean(1, keepdims=True)
    null = permuted_x @ (y - y.mean()) / np.sum(permuted_x**2, axis=1)
    p = (1 + np.sum(np.abs(null) >= np.abs(slope[0]) * (1 - 1e-12))) / (n_bootstrap + 1)
    return Trend(
        float(slope[0]),
        *_interval(slopes),
        float(intercept[0]),
        float(rho[0]),
        *_interval(rhos),
        float(p),
        len(models),
        len(i),
    )


def pair_weights(
    n: int,
    models: NDArray[np.int64],
    i: NDArray[np.int64],
    j: NDArray[np.int64],
    n_bootstrap: int,
    rng: np.random.Generator,
) -> Float64:
    """Return how often each pair occurs when models are resampled with replacement.

    A model paired with its own copy is not counted: such a pair carries no information.

    Parameters
    ----------
    n
        Number of all models.
    models
        Indices of the models to resample.
    i, j
        Indices of each pair's models `(n_pairs,)`.

    Returns
    -------
    numpy.ndarray
        `(n_bootstrap, n_pairs)`, whole numbers ≥ 0.
    """
    draws = rng.multinomial(len(models), np.full(len(models), 1 / len(models)), size=n_bootstrap)
    counts = np.zeros((n_bootstrap, n))
    counts[:, models] = draws
    return counts[:, i] * counts[:, j]


def _line(x: Float64, y: Float64, weights: Float64) -> tuple[Float64, Float64]:
    """Return weighted least-squares slopes and intercepts, one per row of weights."""
    total = weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mx, my = weights @ x / total, weights @ y / total
        variance = weights @ (x * x) / total - mx**2
        variance = np.where(variance > 1e-12 * np.maximum(1.0, mx**2), variance, np.nan)
        slope = (weights @ (x * y) / total - mx * my) / variance
    return slope, my - slope * mx


def _correlation(x: Float64, y: Float64, weights: Float64) -> Float64:
    slope, _ = _line(x, y, weights)
    reverse_slope, _ = _line(y, x, weights)
    return np.sign(slope) * np.sqrt(np.clip(slope * reverse_slope, 0, 1))


def _ranks(values: Float64) -> Float64:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values), dtype=np.float64)


def _interval(draws: Float64) -> tuple[float, float]:
    draws = draws[np.isfinite(draws)]
    if len(draws) < 100:
        return np.nan, np.nan
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def mean_alignment(
    values: Float64, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> tuple[float, float, float, int]:
    """Return the mean alignment over pairs, with a bootstrap interval over models.

    Parameters
    ----------
    values
        Alignment, symmetric `(n_models, n_models)`; NaN for pairs to leave out. The diagonal is
        ignored.
    n_bootstrap
        Number of bootstrap draws of models.
    seed
        Seed of the draws.

    Returns
    -------
    mean, low, high
        Mean, and bounds of its 95% interval. The mean is NaN without pairs, the bounds with fewer
        than 4 models.
    n_pairs
        Number of pairs.
    """
    i, j = np.triu_indices(len(values), 1)
    keep = np.isfinite(values[i, j])
    i, j = i[keep], j[keep]
    if not len(i):
        return np.nan, np.nan, np.nan, 0
    y = values[i, j]
    models = np.union1d(i, j)
    if len(models) < MINIMUM_MODELS:
        return float(y.mean()), np.nan, np.nan, len(i)
    weights = pair_weights(len(values), models, i, j, n_bootstrap, np.random.default_rng(seed))
    total = weights.sum(1)
    nonzero = total > 0
    low, high = _interval((weights @ y)[nonzero] / total[nonzero])
    return float(y.mean()), low, high, len(i)


def convergence_dataset(
    alignment: xr.Dataset, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> xr.Dataset:
    """Summarise an alignment dataset: trends over models, and means over training.

    Each modality is summarised separately; pairs of encoders of different modalities are left out.

    Parameters
    ----------
    alignment
        As returned by `pipeline.analysis.alignment.alignment_dataset`.
    n_bootstrap, seed
        As for `trend`.

    Returns
    -------
    xarray.Dataset
        The fields of `Trend` have dimensions `(modality, condition, value, predictor)`:
        `condition` is `final`, or `init`, the control at random initialisation; `value` is `raw`
        or `calibrated`. `mean`, `mean_low`, `mean_high` and `n_pairs_stage` have `(modality,
        stage, value)`: mean alignment of unrelated models at equal training step, and at `end`,
        the final checkpoints. `(modality, stage)`: `to_final`, the mean raw alignment of a model
        with its own final checkpoint, `probe_accuracy`, and `step`. Stages that a modality does
        not have are NaN, or 0 for `n_pairs_stage` and -1 for `step`.
    """
    import xarray as xr

    modality = alignment.modality_x.values.astype(str)
    modalities = list(dict.fromkeys(modality.tolist()))
    found = [
        _summarise_modality(
            alignment.isel(encoder_x=(modality == each), encoder_y=(modality == each)),
            n_bootstrap,
            seed,
        )
        for each in modalities
    ]
    names = {str(stage) for each in found for stage in each.stage.values}
    # in order of steps, then the end
    stages = sorted(
        names, key=lambda n: (n == "end", int(n.removeprefix("step ") if n != "end" else 0))
    )
    fill = {"n_pairs_stage": 0, "step": -1}
    return xr.concat(
        [
            each.reindex(
                stage=stages,
                fill_value=fill | dict.fromkeys(set(each.data_vars) - fill.keys(), np.nan),
            )
            for each in found
        ],
        xr.DataArray(modalities, dims="modality", name="modality"),
        combine_attrs="identical",
    )


def _summarise_modality(alignment: xr.Dataset, n_bootstrap: int, seed: int) -> xr.Dataset:
    """Summarise the encoders of one modality."""
    import xarray as xr

    masks = {"final": alignment.final_x.values, "init": alignment.initial_x.values}
    trends = [
        [
            [
                trend(
                    _unrelated(alignment, masks[condition], name),
                    _predictor(alignment, predictor, masks[condition]),
                    n_bootstrap=n_bootstrap,
                    seed=seed,
                )
                for predictor in PREDICTORS
            ]
            for name in VALUES.values()
        ]
        for condition in CONDITIONS
    ]
    dims = ("condition", "value", "predictor")
    variables: dict[str, Any] = {
        field: (
            dims,
            [[[getattr(t, field) for t in v] for v in c] for c in trends],
            {"description": prose},
        )
        for field, prose in TREND_PROSE.items()
    }
    variables.update(_training_variables(alignment, n_bootstrap, seed))
    return xr.Dataset(
        variables,
        coords={
            "condition": list(CONDITIONS),
            "value": list(VALUES),
            "predictor": list(PREDICTORS),
        },
        attrs={
            "n_bootstrap": n_bootstrap,
            "seed": seed,
            "bootstrap": "over models",
            "log10_predictors": sorted(LOGARITHMIC),
        },
    )


def _unrelated(alignment: xr.Dataset, mask: NDArray[np.bool_], name: str) -> Float64:
    """Return the values among the selected encoders, NaN for related pairs."""
    values = np.where(alignment.related.values.astype(bool), np.nan, alignment[name].values)
    return np.asarray(values[np.ix_(mask, mask)], dtype=np.float64)


def _predictor(alignment: xr.Dataset, name: str, mask: NDArray[np.bool_]) -> Float64:
    values = np.asarray(alignment[f"{name}_x"].values[mask], dtype=np.float64)
    if name in LOGARITHMIC:
        with np.errstate(divide="ignore"):
            values = np.where(values > 0, np.log10(values), np.nan)
    return values


def _training_variables(alignment: xr.Dataset, n_bootstrap: int, seed: int) -> dict[str, Any]:
    step, final = alignment.step_x.values, alignment.final_x.values
    models = alignment.model_x.values.astype(str)
    # keep only the steps with the most models: a mean over fewer, as at one model's own last step,
    # would be of another population
    counts = {int(s): int((step == s).sum()) for s in np.unique(step[step >= 0])}
    common = [s for s, n in counts.items() if n >= max([2, *counts.values()])]
    stages = {f"step {s}": (step == s, s) for s in sorted(common)}
    ends = step[final & (step >= 0)]
    stages["end"] = (final, int(np.median(ends)) if len(ends) else -1)
    rows = {name: [] for name in ("mean", "mean_low", "mean_high", "n_pairs_stage")}  # type: ignore[var-annotated]
    to_final, accuracy = [], []
    for mask, _ in stages.values():
        found = [
            mean_alignment(_unrelated(alignment, mask, name), n_bootstrap=n_bootstrap, seed=seed)
            for name in VALUES.values()
        ]
        for k, name in enumerate(rows):
            rows[name].append([f[k] for f in found])
        same_model = models[mask][:, None] == models[final]
        to_own_final = alignment.score.values[np.ix_(mask, final)][same_model]
        to_own_final = to_own_final[np.isfinite(to_own_final)]
        to_final.append(float(to_own_final.mean()) if len(to_own_final) else np.nan)
        probes = alignment.probe_accuracy_x.values[mask]
        probes = probes[np.isfinite(probes)]
        accuracy.append(float(probes.mean()) if len(probes) else np.nan)
    prose = {
        "mean": "Mean alignment of unrelated models at this stage.",
        "mean_low": "2.5% quantile of the mean over the bootstrap of models.",
        "mean_high": "97.5% quantile of the mean over the bootstrap of models.",
        "n_pairs_stage": "Pairs of unrelated models at this stage.",
    }
    return {
        **{
            name: (("stage", "value"), values, {"description": prose[name]})
            for name, values in rows.items()
        },
        "to_final": (
            "stage",
            to_final,
            {"description": "Mean raw alignment of a model with its own final checkpoint."},
        ),
        "probe_accuracy": ("stage", accuracy, {"description": "Mean linear-probe accuracy."}),
        "step": (
            "stage",
            [s for _, s in stages.values()],
            {"description": "Training step; for `end` the median."},
        ),
        "stage": ("stage", list(stages)),
    }


_TREND = ("modality", "condition", "value", "predictor")

CONVERGENCE = Analysis(
    name="convergence",
    version=2,  # 1 was of image towers alone
    scope="measure",
    needs=("alignment",),
    variables={
        name: Variable(name, _TREND, "int64" if name.startswith("n_") else "float64", prose)
        for name, prose in TREND_PROSE.items()
    },
    compute=lambda inputs: convergence_dataset(inputs.datasets["alignment"]),
)
