"""Alignment against the number of parameters and against accuracy, over pairs of models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.analysis.convergence import LOGARITHMIC, MINIMUM_MODELS
from pipeline.report.absences import sentences
from pipeline.report.modality import (
    convergence_of,
    modalities,
    section_name,
    section_title,
)
from pipeline.report.results import (
    Results,
    encoder_mask,
    no_accuracy,
    pair_values,
    value_names,
)
from pipeline.report.section import Section, SectionMaker
from pipeline.report.style import (
    FINAL,
    INIT,
    INIT_TEXT,
    WIDTH,
    count,
    draw,
    new_figure,
    number,
    p_value,
    upper_limit,
)
from pipeline.types import Float64

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Predictor:
    """How a predictor is drawn: its axis, and the increase for which its slope is given."""

    name: str
    axis: str
    step: float
    per: str


PREDICTORS = (
    Predictor(
        "n_parameters", "parameters (geometric mean of the pair)", 1.0, "per tenfold parameters"
    ),
    Predictor(
        "probe_accuracy", "linear-probe accuracy (mean of the pair)", 0.1, "per 0.1 of accuracy"
    ),
)
CONDITIONS = ("final", "init")
Points = Mapping[tuple[str, str, str], tuple[Float64, Float64]]
"""(predictor, raw or calibrated, condition) → predictor and alignment of each pair."""


def trend_figures(results: Results) -> Iterator[Section]:
    """Draw, for each modality and measure, alignment against scale and against accuracy."""
    for modality in modalities(results):
        for label in results.labels:
            yield _trend_figure(results, label, modality)


TRENDS = SectionMaker("Figures", ("alignment", "convergence"), trend_figures)


def _trend_figure(results: Results, label: str, modality: str) -> Section:
    name = section_name(results, f"scale-{label}", modality)
    title = section_title(results, f"{label}: alignment against scale and accuracy", modality)
    alignment, convergence = results.alignment[label], convergence_of(results, label, modality)
    points = {
        (predictor.name, value, condition): _points(
            alignment, predictor.name, variable, condition, modality
        )
        for predictor in PREDICTORS
        for value, variable in value_names(alignment).items()
        for condition in CONDITIONS
    }
    drawn = [p for p in PREDICTORS if len(points[p.name, "raw", "final"][0])]
    if not drawn:
        return Section(
            name, title,
            f"No pair of unrelated final {modality} towers has both an alignment and a number of "
            "parameters or an accuracy, so nothing is drawn.",
        )  # fmt: skip
    png = draw(lambda: _figure(points, convergence, label, drawn))
    caption = [_caption(results, points, convergence, drawn, modality)]
    predictors = [p.name for p in drawn]
    caption += sentences(results, label, "final", modality, predictors)
    if _has_control(points):
        caption += sentences(results, label, "init", modality, predictors)
    return Section(name, title, " ".join(caption), png)


def _points(
    alignment: xr.Dataset, predictor: str, name: str, condition: str, modality: str
) -> tuple[Float64, Float64]:
    """Return predictor and alignment of each unrelated pair of a modality's towers."""
    mask = encoder_mask(alignment, condition, modality)
    values = pair_values(alignment, name, mask, mask)
    x = np.asarray(alignment[f"{predictor}_x"].values[mask], dtype=np.float64)
    if predictor in LOGARITHMIC:
        x = np.log10(np.where(x > 0, x, np.nan))
    i, j = np.triu_indices(len(x), 1)
    pair = (x[i] + x[j]) / 2
    keep = np.isfinite(pair) & np.isfinite(values[i, j])
    pair = 10**pair if predictor in LOGARITHMIC else pair
    return pair[keep], values[i, j][keep]


def _has_control(points: Points) -> bool:
    """Return whether any pair at initialisation is drawn."""
    return any(len(x) for (_, _, condition), (x, _) in points.items() if condition == "init")


def _caption(
    results: Results,
    points: Points,
    convergence: xr.Dataset,
    drawn: list[Predictor],
    modality: str,
) -> str:
    lacking = {p.name for p in PREDICTORS if p not in drawn}
    said = [
        f"Each point is a pair of {modality} towers of unrelated models: "
        + (
            "filled blue, final; grey crosses, at initialisation (init), the control: what rises "
            "there owes nothing to training."
            if _has_control(points)
            else "final. No encoders at initialisation were compared, so there is no random-init "
            "control."
        ),
        "Left raw, right calibrated, on one scale."
        if any(value == "calibrated" for _, value, _ in points)
        else "No pair was calibrated, so only raw scores are shown.",
        "Lines are least-squares fits; above each panel are their slopes with the 95% interval "
        f"from {convergence.attrs.get('n_bootstrap', '')} bootstrap draws of models (not of pairs, "
        "which share models) and the two-sided p from permuting the models (QAP).",
    ]
    if "probe_accuracy" in lacking:
        said.append(
            f"{no_accuracy(results, modality)}, so there is no panel of alignment against accuracy."
        )
    if "n_parameters" in lacking:
        said.append(
            "No numbers of parameters are in the store, so there is no panel of alignment against "
            "scale."
        )
    return " ".join(said)


def _figure(
    points: Points,
    convergence: xr.Dataset,
    label: str,
    drawn: list[Predictor],
) -> Figure:
    values = list(dict.fromkeys(value for _, value, _ in points))
    figure = new_figure(WIDTH if len(values) > 1 else 4.4, 3.1 * len(drawn))
    figure.get_layout_engine().set(h_pad=0.08, hspace=0.06)  # type: ignore[union-attr, call-arg]
    panels = figure.subplots(len(drawn), len(values), squeeze=False, sharey=True, sharex="row")
    every = np.concatenate([y for _, y in points.values()])
    low = min(0.0, float(every.min()))
    for row, predictor in zip(panels, drawn, strict=True):
        for axes, value in zip(row, values, strict=True):
            for condition in ("init", "final"):
                x, y = points[predictor.name, value, condition]
                trend = convergence.sel(condition=condition, value=value, predictor=predictor.name)
                _panel(axes, x, y, trend, predictor, condition)
            axes.set_title(f"{label}, {value}", pad=41)
            axes.set_xlabel(predictor.axis)
            axes.grid(True)
        row[0].set_ylabel("alignment (best pair of layers)")
        if predictor.name in LOGARITHMIC:
            _log_axis(row[0], np.concatenate(
                [points[predictor.name, v, c][0] for v in values for c in CONDITIONS]
            ))  # fmt: skip
    margin = 0.03 * (upper_limit(every) - low)
    panels[0, 0].set_ylim(low - margin, upper_limit(every) + margin)
    return figure


def _panel(
    axes: Axes, x: Float64, y: Float64, trend: xr.Dataset, predictor: Predictor, condition: str
) -> None:
    """Draw one condition: its pairs, its line, and the line's numbers above the panel."""
    final = condition == "final"
    colour = FINAL if final else INIT
    crowd = float(np.clip(250 / max(1, len(x)), 0.3, 0.8))
    axes.scatter(
        x, y, s=9 if final else 11, marker="o" if final else "x", color=colour,
        alpha=crowd, linewidths=0 if final else 0.7, zorder=3 if final else 2,
    )  # fmt: skip
    slope, intercept = float(trend["slope"]), float(trend["intercept"])
    if len(x) and np.isfinite(slope):
        ends = np.array([x.min(), x.max()])
        at = np.log10(ends) if predictor.name in LOGARITHMIC else ends
        axes.plot(
            ends, intercept + slope * at, color="#004C78" if final else INIT_TEXT,
            linestyle="-" if final else "--", linewidth=1.6, zorder=4,
        )  # fmt: skip
    note = axes.annotate(
        _numbers(trend, predictor, condition, len(x)), (0, 1), xytext=(0, 21 if final else 3),
        xycoords="axes fraction", textcoords="offset points", fontsize=6.5, linespacing=1.15,
        color="#004C78" if final else INIT_TEXT,
    )  # fmt: skip
    note.set_in_layout(False)  # the title's padding makes room; it may be wider than the axes


def _numbers(trend: xr.Dataset, predictor: Predictor, condition: str, n_points: int) -> str:
    """Return a trend's slope, interval and p, in two lines."""
    if not n_points:
        return f"{condition}: no pairs"
    n = f"{int(trend['n_models'])} models, {int(trend['n_pairs'])} pairs"
    slope, low, high = (
        float(trend[name]) * predictor.step for name in ("slope", "slope_low", "slope_high")
    )
    if not np.isfinite(slope):
        few = int(trend["n_models"]) < MINIMUM_MODELS
        why = f"a trend needs {MINIMUM_MODELS} models" if few else "the predictor does not vary"
        return f"{condition}: no trend: {why};\n{n}"
    interval = (
        f"[{number(low, sign=True)}, {number(high, sign=True)}]"
        if np.isfinite(low)
        else "(too few models for an interval)"
    )
    return (
        f"{condition}: {number(slope, sign=True)} {interval} {predictor.per},\n"
        f"p {p_value(float(trend['p_qap']))}; {n}"
    )


def _log_axis(axes: Axes, x: Float64) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    decades = np.log10(x.max() / x.min()) if len(x) else 0.0
    subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: count(v)))
    axes.xaxis.set_minor_formatter(NullFormatter())
