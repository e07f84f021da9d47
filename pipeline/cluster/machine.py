"""GPUs and cores of this machine, and the folder of a worker."""

from __future__ import annotations

import os


def n_gpus() -> int:
    """Return how many GPUs torch sees on this machine."""
    import torch

    return int(torch.cuda.device_count())


def cpu_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_folder() -> str | None:
    """Return the folder of the Dask worker that this runs in, or None outside of one."""
    from distributed import get_worker

    try:
        return str(get_worker().local_directory)
    except ValueError:
        return None
