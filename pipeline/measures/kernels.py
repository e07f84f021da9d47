"""All kernels, by the measure's name."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.measures import (
    locality,
    matching,
    neighbourhood,
    regression,
    sampled,
    subspace,
)
from pipeline.measures.kernel import Kernel

KERNELS: Mapping[str, Kernel] = {
    **neighbourhood.KERNELS,
    **locality.KERNELS,
    **subspace.KERNELS,
    **regression.KERNELS,
    **matching.KERNELS,
    **sampled.KERNELS,
}
