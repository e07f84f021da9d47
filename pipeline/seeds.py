"""Random seeds derived from a recipe's content: no two recipes share a stream."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def derived_seed(recipe: Any, use: str) -> int:
    """Return the seed of one use of random numbers by one recipe.

    Generators seeded with the same number give every model the same stream, so that models of
    different shapes start from the same weights up to scale. Here each recipe, and each use in it,
    has a stream of its own, which is the same on every machine.

    Parameters
    ----------
    recipe
        What identifies the model, its own `seed` included; JSON-able.
    use
        What the random numbers are for, such as `weights` or `order`.

    Returns
    -------
    int
        In [0, 2**63).
    """
    content = json.dumps({"recipe": recipe, "use": use}, sort_keys=True)
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") >> 1
