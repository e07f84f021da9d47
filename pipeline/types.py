"""Types that all rooms share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Floating = NDArray[np.floating[Any]]
Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]
Index = NDArray[np.intp]

Block = tuple[int, int]
"""Half-open range of stimuli: one chunk of the activations."""
Modality = Literal["image", "text", "array"]
"""What a tower takes."""


@dataclass(frozen=True)
class Weights:
    """Identity of one checkpoint's weights."""

    digest: str
    size: int = -1
    mtime_ns: int = -1
