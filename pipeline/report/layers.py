"""Heat maps of the similarity of the layers of a pair of encoders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pipeline.encoder import Encoder
from pipeline.report.axes import heat_map, shorten
from pipeline.report.modality import modalities, section_name, section_title
from pipeline.report.results import Results, encoder_mask, is_calibrated, pair_values, text
from pipeline.report.section import Section, SectionMaker
from pipeline.report.style import WIDTH, draw, new_figure, number, upper_limit
from pipeline.types import Float64

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

NUMBERED_CELLS = 6  # cells show their numbers if neither side has more layers


def layer_maps(results: Results) -> Iterator[Section]:
    """Draw, for each measure, the layers of the best aligned pair of models of two families."""
    for modality in modalities(results):
        yield _layer_maps(results, modality)


LAYER_MAPS = SectionMaker("Figures", ("alignment",), layer_maps)


def _layer_maps(results: Results, modality: str) -> Section:
    name = section_name(results, "layers", modality)
    title = section_title(results, "Layers of the best aligned pairs", modality)
    found = {}
    for label in results.labels:
        pair = _best_pair(results.alignment[label], modality)
        block = None if pair is None else _block(results, label, *pair)
        if block is not None:
            found[label] = block
    if not found:
        return Section(
            name, title,
            f"No two final {modality} towers of unrelated models of different families were "
            "compared, so there is no pair to show layer by layer.",
        )  # fmt: skip
    by_what = {
        "calibrated" if is_calibrated(results.alignment[label]) else "raw" for label in found
    }
    caption = (
        "Raw similarity of every layer of one encoder (rows, input at the top) with every layer "
        f"of another (columns, input at the left), for the pair of final {modality} towers of "
        f"different families with the highest {' or '.join(sorted(by_what))} alignment under each "
        "measure. The framed cell is the best pair of layers, whose similarity is the raw "
        "alignment of the two encoders. The best of many pairs is high by selection: it is an "
        "example, not a finding. Each panel has its own colour scale from 0."
    )
    return Section(name, title, caption, draw(lambda: _layer_figure(found)))


def _best_pair(alignment: xr.Dataset, modality: str) -> tuple[str, str] | None:
    """Return the ids of the encoders that align best; None if no pair can be chosen."""
    final = encoder_mask(alignment, "final", modality)
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


def _block(results: Results, label: str, x: str, y: str) -> tuple[Encoder, Encoder, Float64] | None:
    """Return two encoders with the scores of their layers; None if they are gone."""
    known = {e.id: e for e in results.store.encoders(results.set_key)}
    if x not in known or y not in known:
        return None
    scores = results.store.layer_scores(label, known[x], known[y], results.key)
    return None if scores is None else (known[x], known[y], scores)


def _layer_figure(
    found: dict[str, tuple[Encoder, Encoder, Float64]],
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
        image = heat_map(axes, scores, top)
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
    return f"{shorten(encoder.model, 38)}\n{shorten(f'@{encoder.checkpoint}#{encoder.tower}', 38)}"
