"""What is known of a model's tower before its weights are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class TowerInfo:
    """What is known of a tower without its weights.

    Attributes
    ----------
    layers
        Layer names, from input to output.
    widths
        Features of each layer after pooling.
    n_parameters
        Parameters without classifier head and without token embeddings.
    n_embedding_parameters
        Parameters of the token embedding.
    flops
        Floating-point operations of one forward pass for one stimulus (a multiply-add is two).
    pooling
        How each layer is pooled in the end: `auto` resolved; `eot` is the token that a text tower
        reads out.
    preprocessing
        What the source does to an input.
    input_bytes, working_bytes
        Memory of one stimulus as the model takes it, and of what a forward pass makes of it.
    weight_bytes
        Memory of the whole model.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    n_parameters: int
    n_embedding_parameters: int
    flops: float
    pooling: str
    preprocessing: dict[str, Any]
    input_bytes: int
    working_bytes: int
    weight_bytes: int


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations make, and the most alive at once.

    On torch's meta device, where nothing is computed, as on any other.

    Attributes
    ----------
    peak
        Bytes, views counted with what they look at.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, tuple[Any, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        outputs = func(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _is_tensor(t)}
        for output in tree_leaves(outputs):
            if _is_tensor(output):
                storage = output.untyped_storage()
                if id(storage) not in given:
                    self._count(storage)
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.alive:
            return

        def gone(_: Any) -> None:
            self.now -= self.alive.pop(key)[1]

        self.alive[key] = ref(storage, gone), size
        self.now += size
        self.peak = max(self.peak, self.now)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
