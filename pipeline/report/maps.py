"""Heat maps of the alignment of all final encoders."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipeline.report.absences import missing_encoders, models_of, phrase
from pipeline.report.axes import heat_map, shorten
from pipeline.report.modality import modalities, with_article
from pipeline.report.results import Results, text, value_names
from pipeline.report.section import Section, SectionMaker
from pipeline.report.style import WIDTH, draw, new_figure, upper_limit
from pipeline.types import Float64, Index

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

NAMED_ENCODERS = 14  # up to so many encoders each get a label of their own, beyond that each family
LETTER = 0.06  # inches that a letter of a name takes, at most


def alignment_maps(results: Results) -> Iterator[Section]:
    """Draw, for each measure, the alignment of the final encoders, raw and calibrated."""
    for label in results.labels:
        yield _alignment_map(results, label)


ALIGNMENT_MAPS = SectionMaker("Figures", ("alignment",), alignment_maps)


def _alignment_map(results: Results, label: str) -> Section:
    name, title = f"map-{label}", f"{label}: alignment of the final encoders"
    alignment = results.alignment[label]
    final = np.flatnonzero(alignment["final_x"].values.astype(bool))
    if len(final) < 2:
        return Section(name, title, "There are fewer than two final encoders, so no map is drawn.")
    order = final[_order(alignment, final)]
    chosen = alignment.isel(encoder_x=order, encoder_y=order)
    grids = {}
    for value, variable in value_names(alignment).items():
        grids[value] = np.array(chosen[variable].values, dtype=np.float64)
        np.fill_diagonal(grids[value], np.nan)  # an encoder is not compared with itself
    if not any(np.isfinite(values).any() for values in grids.values()):
        return Section(name, title, "No two final encoders were compared, so no map is drawn.")
    top = upper_limit(np.stack(list(grids.values())))
    png = draw(lambda: _map_figure(chosen, grids, label, top))
    absent = [
        f" No row for {with_article(modality)} tower: {said}."
        for modality in modalities(results)
        if (said := phrase(missing_encoders(results, label, "final", modality),
                           len(models_of(results, modality))))
    ]  # fmt: skip
    sides = (
        "Left, the raw similarity of the best pair of layers; right, the same calibrated: 0 means "
        "no more than chance allows, 1 is the measure's maximum."
        if "calibrated" in grids
        else "The raw similarity of the best pair of layers. No pair was calibrated, so there is "
        "no second panel."
    )
    caption = (
        f"{sides} Each row and column is one of {len(order)} final encoders, ordered by tower, "
        "then family, then number of parameters, smallest first. "
        f"{'Both panels share one' if len(grids) > 1 else 'The'} colour scale "
        f"{'' if len(grids) > 1 else 'runs '}from 0 to {top:.1f}; lower values are drawn as 0. "
        "Hatched: not compared, or an encoder with itself. Pairs of related models are shown here "
        "but enter no mean and no trend." + "".join(absent)
    )
    return Section(name, title, caption, png)


def _order(alignment: xr.Dataset, chosen: Index) -> Index:
    size = np.nan_to_num(alignment["n_parameters_x"].values[chosen], nan=np.inf)
    model, family, tower = (
        text(alignment, name)[chosen] for name in ("model_x", "family_x", "modality_x")
    )
    return np.lexsort((model, size, family, tower))


def _groups(chosen: xr.Dataset) -> tuple[list[str], list[int], list[int]]:
    """Return labels of groups of rows, where each begins (and the end), and where towers change."""
    towers, families = text(chosen, "modality_x"), text(chosen, "family_x")
    models = text(chosen, "model_x")
    single = len(models) <= NAMED_ENCODERS
    keys = list(zip(towers, models if single else families, strict=True))
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    names = [
        shorten(keys[i][1]) + ("" if keys[i][0] == towers[0] else f" ({keys[i][0]})")
        for i in starts
    ]
    breaks = [i for i in range(1, len(towers)) if towers[i] != towers[i - 1]]
    return names, [*starts, len(models)], breaks


def _map_figure(chosen: xr.Dataset, grids: dict[str, Float64], label: str, top: float) -> Figure:
    names, edges, breaks = _groups(chosen)
    # a label needs about 9 points: with very many families the figure grows taller
    height = float(np.clip(0.125 * len(names) + 1.6, 3.8, 12.0))
    width = WIDTH if len(grids) > 1 else 4.8
    # the panels are square, and the names below them are as long as those on the left
    named = LETTER * max(map(len, names))
    side = (width - named - 0.9) / len(grids)
    figure = new_figure(width, max(height, side + named + 0.6))
    panels = figure.subplots(1, len(grids), squeeze=False, sharey=True)[0]
    image = None
    for axes, (value, values) in zip(panels, grids.items(), strict=True):
        image = heat_map(axes, values, top)
        for edge in edges[1:-1]:
            width = 2.0 if edge in breaks else 0.7
            axes.axhline(edge - 0.5, color="white", linewidth=width)
            axes.axvline(edge - 0.5, color="white", linewidth=width)
        axes.set_title(f"{label}, {value}")
        middles = [(a + b - 1) / 2 for a, b in pairwise(edges)]
        axes.set_xticks(middles, names, rotation=90)
        axes.set_yticks(middles, names)
        axes.tick_params(length=0, pad=2, labelsize=7)
        if axes is not panels[0]:
            axes.tick_params(labelleft=False)
    assert image is not None
    bar = figure.colorbar(image, ax=list(panels), shrink=0.75, aspect=28, pad=0.02)
    bar.set_label("alignment (best pair of layers)")
    bar.outline.set_linewidth(0.4)
    return figure
