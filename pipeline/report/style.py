"""The look of figures: colours that are safe for colour-blind readers, sizes for print."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.2  # inches: the text width of A4 and letter paper
DPI = 200
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's, without the yellow, which is illegible on white."""
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FINAL, INIT, INIT_TEXT = PALETTE[0], "#A6A6A6", "#666666"
ABSENT = "#E9E9E9"
COLOURS = "viridis"

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "hatch.linewidth": 0.4,
    "hatch.color": "#BDBDBD",
    "text.usetex": False,
    "text.parse_math": False,  # a family may be called anything, $ included
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
}


def draw(make: Callable[[], Figure]) -> bytes:
    """Draw a figure as PNG in the report's style, whatever the user's own settings."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(cast(Any, STYLE)):
        figure = make()
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that lays out its own panels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def number(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """Format a number: fixed digits, a true minus sign, a dash for NaN."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def p_value(value: float) -> str:
    """Format a p-value with its relation sign."""
    return f"= {value:.3f}" if value >= 0.0005 else "< 0.001"


def count(value: float) -> str:
    """Format a number of parameters: 5.5M, 320k."""
    if not np.isfinite(value):
        return "–"
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def upper_limit(values: Any) -> float:
    """Return the highest finite value rounded up to a tenth: the top of a scale from 0."""
    finite = np.asarray(values)[np.isfinite(values)]
    return min(1.0, max(0.1, float(np.ceil(finite.max() * 10 - 1e-9) / 10))) if len(finite) else 1.0
