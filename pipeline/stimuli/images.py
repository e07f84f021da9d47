"""Pixels as images that a model's preprocessing takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def as_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return pixels `(height, width)` or `(height, width, 3)` as an RGB image."""
    return Image.fromarray(pixels).convert("RGB")
