"""The nearest of known names, for messages about an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` of `known` that look most like `name`."""
    candidates = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), list(candidates), n=n, cutoff=0.5)
    return [candidates[f] for f in found]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Phrase the nearest names as the end of a message; empty where nothing is near."""
    found = nearest(name, known)
    return f" Did you mean {' or '.join(repr(f) for f in found)}?" if found else ""
