"""Description of a model from its architecture alone, before its weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pipeline.config.model import ModelSpec
from pipeline.errors import ConsilienceError, InputError, ModelError
from pipeline.extraction.reader import LayerReader
from pipeline.extraction.torch_source import (
    TorchSource,
    differences,
    first_line,
    misfit_message,
    torch_source,
)
from pipeline.lru import LruCache
from pipeline.modality import modality_of
from pipeline.sources.source import TowerInfo


@dataclass(frozen=True)
class _Architecture:
    towers: dict[str, TowerInfo]
    shapes: dict[str, tuple[int, ...]]


# entries that differ in seeds only, as a zoo's do, share one recipe and one build
_architectures: LruCache[str, _Architecture] = LruCache(limit=256)


def _architecture(spec: ModelSpec) -> _Architecture:
    key = f"{spec.recipe_digest} {spec.towers}"
    known = _architectures.get(key)
    if known is not None:
        return known
    source = torch_source(spec.source)
    model = source.build(spec, device="meta")
    towers: dict[str, TowerInfo] = {t: _tower_info(spec, source, model, t) for t in spec.towers}
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    made = _Architecture(towers, shapes)
    _architectures.put(key, made)
    return made


def _tower_info(
    spec: ModelSpec, source: TorchSource, model: torch.nn.Module, tower: str
) -> TowerInfo:
    """Run one forward pass on the meta device, and count what it takes."""
    with _blamed(spec, f"reading the {tower} tower"):
        reader = LayerReader(spec, model, tower)
        example = source.example(spec, model, tower)
        n_parameters, n_embedding_parameters = source.count_parameters(model, tower)
        preprocessing = _jsonable(source.preprocessing(spec, model))
    with (
        _blamed(spec, f"a forward pass with an input of shape {tuple(example.shape[1:])}"),
        OperationCounter() as counter,
        PeakMemory() as memory,
    ):
        pooled = reader(example)
    return TowerInfo(
        modality=modality_of(tower),
        layers=tuple(pooled),
        widths=tuple(int(p.shape[1]) for p in pooled.values()),
        n_parameters=n_parameters,
        n_embedding_parameters=n_embedding_parameters,
        flops=float(counter.total),
        pooling=str(reader.pooling),
        preprocessing=preprocessing,
        input_bytes=example.nbytes,
        working_bytes=memory.peak,
        weight_bytes=sum(weight.nbytes for weight in model.state_dict().values()),
    )


@contextmanager
def _blamed(spec: ModelSpec, doing: str) -> Iterator[None]:
    """Turn any error of a library on an architecture into an error of that model."""
    try:
        yield
    except ConsilienceError:
        raise
    except Exception as error:  # of any type: libraries break on some of their own models
        why = f"{type(error).__name__}: {first_line(error)}"
        if "meta tensor" in why or "meta device" in why:
            raise ModelError(
                f"model {spec.id}: {spec.name} cannot be described without its weights, because "
                f"its code branches on the values of its input: {why} Leave the entry out, or take "
                "another architecture."
            ) from error
        raise ModelError(
            f"model {spec.id}: {doing} fails: {why} Set `preprocessing: {{input_size: …}}` or "
            f"`arguments:` to what the model takes; if they are right, {spec.source} itself does "
            "not support this architecture: leave the entry out."
        ) from error


def describe(spec: ModelSpec) -> dict[str, TowerInfo]:
    """Describe each tower from the architecture, on torch's meta device.

    Nothing is downloaded and no weights are allocated.

    Raises
    ------
    InputError, ModelError
        Where the source does not know the model, cannot build or run it, or a layer does not exist;
        of any error of a library.
    """
    with _blamed(spec, "its description"):
        torch_source(spec.source).check(spec)
        return _architecture(spec).towers


def check_fit(spec: ModelSpec, file: str) -> None:
    """Check that a checkpoint's weights have the names and shapes of the architecture's.

    A file that cannot be read is left to the extraction, which reports it and goes on.

    Raises
    ------
    InputError
        Where they have not, with the first differences.
    """
    try:
        weights = torch_source(spec.source).read_weights(file)
    except Exception:  # safetensors, zipfile and torch raise errors of any type on a broken file
        return
    misfit = differences(_architecture(spec).shapes, weights)
    if misfit:
        raise InputError(misfit_message(spec, file, misfit))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations by torch's own formulas.

    Torch's `FlopCounterMode` counts the same, but attributes it to modules by hooks, which break
    on architectures whose modules pass tuples to each other.

    Attributes
    ----------
    total
        Operations; a multiply-add is two.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, in parts where it is composed of others, and count it."""
        kwargs = kwargs or {}
        with self:
            outputs = func.decompose(*args, **kwargs)
        if outputs is not NotImplemented:
            return outputs
        outputs = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=outputs)
        return outputs


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations allocate, and their peak.

    Works on torch's meta device, where nothing is computed, as on any other.

    Attributes
    ----------
    peak
        Peak in bytes; a view shares the storage of its base.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, tuple[Any, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the tensors it allocates."""
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

        def on_freed(_: Any) -> None:
            self.now -= self.alive.pop(key)[1]

        self.alive[key] = ref(storage, on_freed), size
        self.now += size
        self.peak = max(self.peak, self.now)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
