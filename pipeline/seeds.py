"""Seeds of what is drawn at random, from a recipe's content: no two recipes share a stream."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def derived_seed(recipe: Any, use: str) -> int:
    """Return the seed of one use of random numbers by one recipe.

    A generator at the same number gives every model the same stream, so that two of different
    shapes begin with the same weights up to scale. Here each recipe, and each use in it, has a
    stream of its own; the same recipe has the same one on every machine.

    Parameters
    ----------
    recipe
        What identifies the model, its own `seed` included; JSON-able.
    use
        What is drawn, such as `weights` or `order`.

    Returns
    -------
    int
        In [0, 2**63).
    """
    content = json.dumps({"recipe": recipe, "use": use}, sort_keys=True)
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") >> 1
