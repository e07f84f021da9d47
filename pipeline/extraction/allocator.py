"""How glibc allocates large arrays, on workers that are set up to keep freed memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "MALLOC_MMAP_THRESHOLD_"
_M_MMAP_THRESHOLD = -3
OWN_PAGES = 2**15
"""Threshold in bytes: less than one small image."""


@contextmanager
def own_pages() -> Iterator[None]:
    """Allocate large arrays on pages of their own, which return to the system when freed.

    Workers keep freed memory, which suits numpy. But torch asks for aligned memory, which glibc
    before 2.38 does not reuse from what was freed: a worker would grow with each forward pass.
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
    """Set glibc's threshold; return whether that worked."""
    try:
        return bool(ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, threshold))
    except (OSError, AttributeError):  # not glibc
        return False
