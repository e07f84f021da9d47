"""What the tests of torch models share: random weights, hooks, checkpoints, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.config.model import Checkpoint, Init, ModelSpec
from pipeline.extraction.torch_source import load_checkpoint, seeded_build


def randomised(source: Any, chosen: ModelSpec, scale: float) -> Any:
    """Build a model whose layers all change their input (some start out scaled by 1e-5)."""
    model = seeded_build(source, chosen, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return model


def hooked(
    model: torch.nn.Module, names: list[str], run: Callable[[], Any]
) -> dict[str, torch.Tensor]:
    """Run a model, and return the outputs of the named modules."""
    kept: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(n).register_forward_hook(
            lambda _m, _i, out, n=n: kept.__setitem__(n, out.clone())
        )
        for n in names
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return kept


def equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def check_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    loaded = model.state_dict()
    assert set(loaded) == set(weights)
    for name, weight in weights.items():
        torch.testing.assert_close(loaded[name], weight, rtol=0, atol=0)


def check_seed(source: Any, chosen: ModelSpec) -> None:
    """Check that a seed determines the initial weights, and torch's generator is left alone."""

    def weights(seed: int) -> torch.Tensor:
        model = load_checkpoint(source, chosen, Checkpoint(init=Init(seed=seed)))
        assert not model.training
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.manual_seed(99)
    before = torch.get_rng_state()
    first = weights(1)
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    torch.rand(3)
    torch.testing.assert_close(weights(1), first, rtol=0, atol=0)
    assert not torch.equal(weights(2), first)


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))
