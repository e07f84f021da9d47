"""What several figures draw the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.report.style import ABSENT, COLOURS
from pipeline.types import Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def heat_map(axes: Axes, values: Float64, top: float) -> AxesImage:
    """Draw values on a scale from 0 to `top`; NaN shows the hatched ground."""
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


def shorten(name: str, length: int = 28) -> str:
    """Cut a name that is too long for a label."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
