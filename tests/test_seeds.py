"""Seeds derived from recipes."""

from __future__ import annotations

import hashlib

import pytest
import torch

from pipeline.seeds import derived_seed


def test_derived_seed__golden() -> None:
    # another value would silently draw other weights under the same name
    content = b'{"recipe": {"a": 1, "seed": 0}, "use": "weights"}'
    expected = int(hashlib.sha256(content).hexdigest()[:16], 16) // 2
    assert derived_seed({"seed": 0, "a": 1}, "weights") == expected
    assert 0 <= expected < 2**63


@pytest.mark.parametrize(
    ("recipe", "use"),
    [({"seed": 1}, "weights"), ({"seed": 0, "a": 1}, "weights"), ({"seed": 0}, "order")],
)
def test_derived_seed__streams_are_apart(recipe: dict[str, int], use: str) -> None:
    seeds = derived_seed({"seed": 0}, "weights"), derived_seed(recipe, use)
    first, second = (torch.rand(8, generator=torch.Generator().manual_seed(s)) for s in seeds)
    assert not torch.isclose(first, second).any()
