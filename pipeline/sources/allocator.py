"""Where large arrays get their memory from, on workers that are told to keep what they free."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "MALLOC_MMAP_THRESHOLD_"
_M_MMAP_THRESHOLD = -3
OWN_PAGES = 2**15
"""From so many bytes on: less than one small image takes."""


@contextmanager
def own_pages() -> Iterator[None]:
    """Give large arrays pages of their own meanwhile, which go back when they are freed.

    Workers keep freed memory for numpy's sake. But torch asks for aligned memory, which glibc
    before 2.38 does not find again among what was freed: a forward pass after the other, a worker
    would take more.
    """
    kept = os.environ.get(VARIABLE)
    if kept is None or not _set(OWN_PAGES):
        yield
        return
    try:
        yield
    finally:
        _set(int(kept))


def _set(threshold: int) -> bool:
    """Tell glibc; return whether it is there and has understood."""
    try:
        return bool(ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, threshold))
    except (OSError, AttributeError):  # another system's library
        return False
