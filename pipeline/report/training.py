"""Alignment over training: between models, and of each with its last checkpoint; and accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.absences import missing_at_step, missing_encoders, models_of, phrase
from pipeline.report.modality import (
    convergence_of,
    modalities,
    section_name,
    section_title,
)
from pipeline.report.results import (
    Results,
    encoder_mask,
    is_calibrated,
    no_accuracy,
    stages,
    text,
)
from pipeline.report.section import Section, SectionMaker
from pipeline.report.style import LINES, MARKERS, PALETTE, WIDTH, draw, new_figure
from pipeline.types import Float64

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def training_figures(results: Results) -> Iterator[Section]:
    """Draw, for each modality, alignment and accuracy at each common stage of training."""
    for modality in modalities(results):
        yield _training_figure(results, modality)


TRAINING = SectionMaker("Figures", ("alignment", "convergence"), training_figures)


def _training_figure(results: Results, modality: str) -> Section:
    name = section_name(results, "training", modality)
    title = section_title(results, "Alignment over training", modality)
    of_label, every = {}, {}
    for label in results.labels:
        convergence = convergence_of(results, label, modality)
        every[label] = convergence
        known = stages(results.alignment[label], convergence, modality)
        if len(known) > 1:
            of_label[label] = convergence.sel(stage=known)
    if not of_label:
        return Section(
            name, title,
            "Fewer than two stages of training were compared (the models have one checkpoint, or "
            "no two of them share a training step), so nothing is drawn over training."
            + "".join(f" {said}" for said in _lost_stages(results, modality, every.values())),
        )  # fmt: skip
    panels = _panels(of_label)
    png = draw(lambda: _figure(of_label, panels))
    return Section(name, title, " ".join(_caption(results, modality, of_label, panels)), png)


def _caption(
    results: Results,
    modality: str,
    of_label: Mapping[str, xr.Dataset],
    panels: Mapping[str, str],
) -> list[str]:
    said = [
        f"Alignment is the mean over pairs of {modality} towers of unrelated models at equal "
        "training step; bands and bars are 95% intervals from a bootstrap over models. Stages (the "
        "steps that most models have in common, and the end of each training) are spaced evenly, "
        "not by step, and the marks of one stage are drawn side by side.",
    ]
    if "calibrated" in panels:
        said.append(
            "Calibrated means are shown only at stages whose pairs were calibrated, and are "
            "joined only where neighbouring stages were."
        )
    uncalibrated = [label for label in of_label if not is_calibrated(results.alignment[label])]
    if uncalibrated:
        said.append(f"Not calibrated: {', '.join(uncalibrated)}.")
    if "to_final" in panels:
        said.append(
            f"“With last checkpoint” is the mean raw alignment of a model's {modality} tower with "
            "that of its own last checkpoint; it is 1 at the end if an encoder was compared with "
            "itself."
        )
    said += _left_out(results, modality, of_label)
    said += _lost_stages(results, modality, of_label.values())
    said.append(
        "Accuracy is that of a cross-validated linear probe on the last layer, mean over models."
        if "probe_accuracy" in panels
        else f"{no_accuracy(results, modality)}, so it is not drawn."
    )
    return said


def _left_out(results: Results, modality: str, of_label: Mapping[str, xr.Dataset]) -> list[str]:
    """Say which models are missing from a stage, for measures together where they agree."""
    n_models = len(models_of(results, modality))
    labels: dict[str, list[str]] = {}
    for label, convergence in of_label.items():
        for name, step in zip(convergence["stage"].values, convergence["step"].values, strict=True):
            reasons = (
                missing_encoders(results, label, "final", modality)
                if str(name) == "end"
                else missing_at_step(results, label, int(step), modality)
            )
            if reasons:
                labels.setdefault(f"At {name}: {phrase(reasons, n_models)}.", []).append(label)
    return [
        said if len(of) == len(of_label) else f"{', '.join(of)}: {said}"
        for said, of in labels.items()
    ]


def _lost_stages(results: Results, modality: str, drawn_from: Iterable[xr.Dataset]) -> list[str]:
    """Say which steps are not stages because a model's checkpoint could not be extracted."""
    models = models_of(results, modality)
    broken = {
        checkpoint.step
        for model in models
        for checkpoint in results.checkpoints.get((model, modality), ())
        if checkpoint.step >= 0 and not checkpoint.is_complete
    }
    drawn = {str(name) for convergence in drawn_from for name in convergence["stage"].values}
    alignment = results.alignment[results.labels[0]]
    final = encoder_mask(alignment, "final", modality)
    mine = text(alignment, "modality_x") == modality
    # the end is a stage of its own
    broken -= {s for s in broken if final[mine & (alignment["step_x"].values == s)].all()}
    said = {
        step: phrase(missing_at_step(results, results.labels[0], step, modality), len(models))
        for step in sorted(broken)
        if f"step {step}" not in drawn
    }
    return [
        f"Step {step} is not a stage, because not all models have it: {who}."
        for step, who in said.items()
    ]


def _panels(of_label: Mapping[str, xr.Dataset]) -> dict[str, str]:
    """Return the panels for which there is something to draw, with their titles."""
    titles = {
        "raw": "between models, raw", "calibrated": "between models, calibrated",
        "to_final": "with last checkpoint, raw", "probe_accuracy": "accuracy",
    }  # fmt: skip

    def any_of(name: str) -> bool:
        for convergence in of_label.values():
            found = (
                convergence["mean"].sel(value=name)
                if name in ("raw", "calibrated") else convergence[name]
            )  # fmt: skip
            if np.isfinite(found.values).any():
                return True
        return False

    return {name: title for name, title in titles.items() if any_of(name)}


def _figure(of_label: Mapping[str, xr.Dataset], panels: Mapping[str, str]) -> Figure:
    longest = max(of_label.values(), key=lambda c: c.sizes["stage"])
    names = [str(s) for s in longest["stage"].values]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(WIDTH if columns > 1 else 4.4, 2.5 * lines + 0.4)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
    axes_of = dict(zip(panels, grid.ravel(), strict=False))
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    handles = []
    for k, (label, convergence) in enumerate(of_label.items()):
        look = {
            "color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)],
            "linestyle": LINES[k % len(LINES)], "markersize": 4, "linewidth": 1.3,
        }  # fmt: skip
        at = np.array([names.index(str(s)) for s in convergence["stage"].values], dtype=float)
        at += min(0.1, 0.5 / len(of_label)) * (k - (len(of_label) - 1) / 2)
        for value in ("raw", "calibrated"):
            if value in axes_of:
                line = _means(axes_of[value], at, convergence.sel(value=value), look)
                if value == "raw":
                    handles.append((line, label))
        if "to_final" in axes_of:
            axes_of["to_final"].plot(at, convergence["to_final"].values, **look)
    if "probe_accuracy" in axes_of:
        # one curve: accuracy belongs to the models, whatever they are compared by
        axes_of["probe_accuracy"].plot(
            range(len(names)), longest["probe_accuracy"].values, color="#333333", marker="o",
            markersize=4, linewidth=1.3,
        )  # fmt: skip
    for name, axes in axes_of.items():
        axes.set_title(panels[name])
        axes.set_ylabel("linear-probe accuracy" if name == "probe_accuracy" else "mean alignment")
        axes.set_ylim(min(0.0, axes.dataLim.y0) - 0.02, 1.03)
        axes.grid(True, axis="y")
        axes.set_xlim(-0.4, len(names) - 0.6)
    _stage_axis(grid, len(panels), names, longest)
    figure.legend(
        [h for h, _ in handles], [n for _, n in handles], loc="outside upper center",
        ncols=min(6, len(handles)), title="measure", title_fontsize=7.5,
    )  # fmt: skip
    return figure


def _means(axes: Axes, at: Float64, chosen: xr.Dataset, look: dict[str, Any]) -> Artist:
    """Draw means with their intervals: a band, and bars, which also show isolated stages."""
    mean, low, high = (chosen[n].values for n in ("mean", "mean_low", "mean_high"))
    (line,) = axes.plot(at, mean, **look)
    axes.fill_between(at, low, high, color=str(look["color"]), alpha=0.15, linewidth=0)
    axes.vlines(at, low, high, color=str(look["color"]), linewidth=0.9)
    return line


def _stage_axis(
    grid: np.ndarray,
    n_panels: int,
    names: list[str],
    convergence: xr.Dataset,
) -> None:
    """Name the stages below the lowest panel of each column."""
    end = int(convergence["step"].values[-1])
    labels = [n.removeprefix("step ") for n in names]
    if labels[-1] == "end" and end >= 0:
        labels[-1] = f"end\n(median {end:,})"
    columns = grid.shape[1]
    for k in range(n_panels):
        axes = grid[k // columns, k % columns]
        lowest = k + columns >= n_panels
        axes.set_xticks(range(len(labels)), labels)
        axes.tick_params(labelbottom=lowest)
        if lowest:
            axes.set_xlabel("training step")
