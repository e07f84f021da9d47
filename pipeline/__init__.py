"""Consilience: how alike independently trained networks come to represent the world.

Importing this package and opening a store imports neither torch, timm nor dask.distributed.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.calibration import calibrate, calibrate_layers
    from pipeline.measures import compare, list_measures, similarity
    from pipeline.store import Store, open_store

__version__ = version("consilience")

_HOME = {
    "open_store": "pipeline.store",
    "Store": "pipeline.store",
    "similarity": "pipeline.measures",
    "compare": "pipeline.measures",
    "list_measures": "pipeline.measures",
    "calibrate": "pipeline.calibration",
    "calibrate_layers": "pipeline.calibration",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


__all__ = [
    "Store",
    "__version__",
    "calibrate",
    "calibrate_layers",
    "compare",
    "list_measures",
    "open_store",
    "similarity",
]
