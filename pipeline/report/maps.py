"""Heat maps: alignment of all final encoders, and similarity of the layers of a pair."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder import Encoder
from pipeline.report.absences import missing_encoders, models_of, phrase
from pipeline.report.results import (
    Results,
    encoder_mask,
    is_calibrated,
    pair_values,
    text,
    value_names,
)
from pipeline.report.style import (
    ABSENT,
    COLOURS,
    WIDTH,
    Section,
    draw,
    new_figure,
    number,
    upper_limit,
)

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED_ENCODERS = 14  # up to so many each encoder gets its own label, else each family
LETTER = 0.06  # inches that a letter of a name takes, at most
NUMBERED_CELLS = 6  # up to so many layers on a side the numbers are written


def alignment_map(results: Results, label: str) -> Section:
    """Draw the alignment of the final encoders, raw and calibrated side by side."""
    heading = f"{label}: alignment of the final encoders"
    alignment = results.alignment[label]
    final = np.flatnonzero(alignment["final_x"].values.astype(bool))
    if len(final) < 2:
        return Section(
            heading, f"map-{label}", "There are fewer than two final encoders, so no map is drawn."
        )
    order = final[_order(alignment, final)]
    chosen = alignment.isel(encoder_x=order, encoder_y=order)
    names = value_names(alignment)
    grids = {}
    for value, name in names.items():
        grids[value] = np.array(chosen[name].values, dtype=np.float64)
        np.fill_diagonal(grids[value], np.nan)  # an encoder with itself says nothing
    if not any(np.isfinite(values).any() for values in grids.values()):
        return Section(
            heading, f"map-{label}", "No two final encoders were compared, so no map is drawn."
        )
    top = upper_limit(np.stack(list(grids.values())))
    png = draw(lambda: _map_figure(chosen, grids, label, top))
    absent = [
        f" No row of {article} {tower} tower: {said}."
        for article, tower in (("an", "image"), ("a", "text"))
        if (said := phrase(missing_encoders(results, label, "final", tower),
                           len(models_of(results, tower))))
    ]  # fmt: skip
    sides = (
        "Left, the raw similarity of the best pair of layers; right, the same calibrated: 0 is no "
        "more than chance allows, 1 the highest the measure can give."
        if "calibrated" in grids
        else "The raw similarity of the best pair of layers. No pair was calibrated, so there is "
        "no second panel."
    )
    caption = (
        f"{sides} Each row and column is one of {len(order)} final encoders, ordered by tower, "
        "then family, then number of parameters, smallest first. "
        f"{'Both panels have one' if len(grids) > 1 else 'The'} colour scale from 0 to {top:.1f}"
        "; lower values are drawn as 0. Hatched: not compared, or an encoder with itself. Pairs "
        "of related models are shown here, but enter no mean and no trend." + "".join(absent)
    )
    return Section(heading, f"map-{label}", caption, png)


def _order(alignment: xr.Dataset, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    size = np.nan_to_num(alignment["n_parameters_x"].values[chosen], nan=np.inf)
    model, family, tower = (
        text(alignment, name)[chosen] for name in ("model_x", "family_x", "tower_x")
    )
    return np.lexsort((model, size, family, tower))


def _groups(chosen: xr.Dataset) -> tuple[list[str], list[int], list[int]]:
    """Return labels of the rows' groups, where each begins (and the end), and the tower breaks."""
    towers, families = text(chosen, "tower_x"), text(chosen, "family_x")
    models = text(chosen, "model_x")
    both = len(set(towers)) > 1
    single = len(models) <= NAMED_ENCODERS
    keys = list(zip(towers, models if single else families, strict=True))
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    names = [
        _short(keys[i][1]) + (" (text)" if both and keys[i][0] == "text" else "") for i in starts
    ]
    breaks = [i for i in range(1, len(towers)) if towers[i] != towers[i - 1]]
    return names, [*starts, len(models)], breaks


def _short(name: str, length: int = 28) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _map_figure(
    chosen: xr.Dataset, grids: dict[str, NDArray[np.float64]], label: str, top: float
) -> Figure:
    names, edges, breaks = _groups(chosen)
    # a label wants about 9 points; very many families get a taller figure rather than none
    height = float(np.clip(0.125 * len(names) + 1.6, 3.8, 12.0))
    width = WIDTH if len(grids) > 1 else 4.8
    # the panels are square: below them stand names as long as those on the left
    named = LETTER * max(map(len, names))
    side = (width - named - 0.9) / len(grids)
    figure = new_figure(width, max(height, side + named + 0.6))
    panels = figure.subplots(1, len(grids), squeeze=False, sharey=True)[0]
    image = None
    for axes, (value, values) in zip(panels, grids.items(), strict=True):
        image = _heat(axes, values, top)
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


def _heat(axes: Axes, values: NDArray[np.float64], top: float) -> Any:
    """Draw values from 0 to `top`; what is NaN shows the hatched ground."""
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (-0.5, -0.5), values.shape[1], values.shape[0],
            facecolor=ABSENT, hatch="//////", linewidth=0, zorder=0,
        )
    )  # fmt: skip
    image = axes.imshow(
        np.ma.masked_invalid(values), vmin=0, vmax=top, cmap=COLOURS, interpolation="nearest",
        zorder=1,
    )  # fmt: skip
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def layer_map(results: Results) -> Section:
    """Draw, for each measure, the layers of the best aligned pair of models of two families."""
    heading = "Layers of the best aligned pairs"
    found = {}
    for label in results.labels:
        pair = _best_pair(results.alignment[label])
        block = None if pair is None else _block(results, label, *pair)
        if block is not None:
            found[label] = block
    if not found:
        return Section(
            heading, "layers",
            "No two final image towers of unrelated models of different families were compared, "
            "so there is no pair to show layer by layer.",
        )  # fmt: skip
    by_what = {
        "calibrated" if is_calibrated(results.alignment[label]) else "raw" for label in found
    }
    caption = (
        "Raw similarity of every layer of one encoder (rows, input at the top) with every layer "
        "of another (columns, input at the left), for the pair of final image towers of different "
        f"families with the highest {' or '.join(sorted(by_what))} alignment under each measure. "
        "The framed cell is the best pair of layers, whose similarity is the raw alignment of the "
        "two encoders. The best of many pairs is a high one by choice: it is an example, not a "
        "finding. Each panel has its own colour scale from 0."
    )
    return Section(heading, "layers", caption, draw(lambda: _layer_figure(found)))


def _best_pair(alignment: xr.Dataset) -> tuple[str, str] | None:
    final = encoder_mask(alignment, "final")
    ids = text(alignment, "encoder_x")[final]
    family = text(alignment, "family_x")[final]
    raw = pair_values(alignment, "score", final, final)
    calibrated = pair_values(alignment, "calibrated", final, final)
    apart = np.triu(family[:, None] != family, 1)
    rank = np.where(apart, calibrated if np.isfinite(calibrated[apart]).any() else raw, np.nan)
    if not np.isfinite(rank).any():
        return None
    i, j = np.unravel_index(int(np.nanargmax(rank)), rank.shape)
    return str(ids[i]), str(ids[j])


def _block(
    results: Results, label: str, x: str, y: str
) -> tuple[Encoder, Encoder, NDArray[np.float64]] | None:
    """Return two encoders with the scores of their layers; None where the store lost them."""
    known = {e.id: e for e in results.store.encoders(str(results.attributes["set"]))}
    if x not in known or y not in known:
        return None
    a, b = known[x], known[y]
    for grid in results.grids(label):
        if all(r in grid.members for r in (*a.representations, *b.representations)):
            rows, columns = (np.array([grid.members[r] for r in e.representations]) for e in (a, b))
            scores = np.asarray(grid.array("score").oindex[rows, columns], dtype=np.float64)
            if np.isfinite(scores).any():
                return a, b, scores
    return None


def _layer_figure(
    found: dict[str, tuple[Encoder, Encoder, NDArray[np.float64]]],
) -> Figure:
    from matplotlib.patches import Rectangle

    columns = min(len(found), 3)
    lines = -(-len(found) // columns)
    figure = new_figure(
        {1: 3.6, 2: 6.0}.get(columns, WIDTH), {1: 3.3, 2: 3.0}.get(columns, 2.35) * lines
    )
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    for axes, (label, (x, y, scores)) in zip(panels, found.items(), strict=False):
        top = upper_limit(scores)
        image = _heat(axes, scores, top)
        axes.set_aspect("auto")
        axes.set_box_aspect(1)  # panels of one size, however many layers
        i, j = np.unravel_index(int(np.nanargmax(scores)), scores.shape)
        axes.add_patch(
            Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2,
                      zorder=3)
        )  # fmt: skip
        if max(scores.shape) <= NUMBERED_CELLS:
            for (r, c), value in np.ndenumerate(scores):
                axes.text(c, r, number(value, 2), ha="center", va="center", fontsize=6.5,
                          color="black" if value > 0.6 * top else "white")  # fmt: skip
        for axis, encoder in ((axes.yaxis, x), (axes.xaxis, y)):
            every = -(-len(encoder.layers) // 12)
            axis.set_ticks(range(0, len(encoder.layers), every), encoder.layers[::every])
            axis.set_label_text(_two_lines(encoder), fontsize=7)
        axes.tick_params(length=0, labelsize=6.5)
        axes.tick_params(axis="x", rotation=90)
        axes.set_title(label)
        bar = figure.colorbar(image, cax=axes.inset_axes((1.04, 0, 0.06, 1)))
        bar.outline.set_linewidth(0.4)
        bar.ax.tick_params(labelsize=6.5)
    return figure


def _two_lines(encoder: Encoder) -> str:
    return f"{_short(encoder.model, 38)}\n{_short(f'@{encoder.checkpoint}#{encoder.tower}', 38)}"
