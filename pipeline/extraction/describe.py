"""Description of a model from its architecture alone, before its weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pipeline.config.model import Checkpoint, ModelSpec
from pipeline.errors import ConsilienceError, InputError, ModelError, first_line
from pipeline.extraction.reader import LayerReader
from pipeline.extraction.torch_source import TorchSource, checkpoint_reader, torch_source
from pipeline.lru import LruCache
from pipeline.modality import modality_of
from pipeline.sources.source import TowerInfo

# entries that differ in seeds only, as a zoo's do, share one recipe and one build
_architectures: LruCache[str, dict[str, TowerInfo]] = LruCache(limit=256)
# checkpoints of an entry are checked one after the other
_models: LruCache[str, torch.nn.Module] = LruCache(limit=2)


def _architecture(spec: ModelSpec) -> dict[str, TowerInfo]:
    key = f"{spec.recipe_digest} {spec.towers}"
    known = _architectures.get(key)
    if known is not None:
        return known
    source, model = torch_source(spec.source), _meta_model(spec)
    towers: dict[str, TowerInfo] = {t: _tower_info(spec, source, model, t) for t in spec.towers}
    _architectures.put(key, towers)
    return towers


def _meta_model(spec: ModelSpec) -> torch.nn.Module:
    """Build the architecture on torch's meta device."""
    model = _models.get(spec.recipe_digest)
    if model is None:
        # `_dependent` asks for the gradients of some weights
        model = torch_source(spec.source).build(spec, device="meta").requires_grad_(False)
        _models.put(spec.recipe_digest, model)
    return model


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
        return _architecture(spec)


def check_fit(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint's file can be read, and has the weights of the architecture.

    Names and shapes are read, and the weights themselves only where several sets of them fit.

    Raises
    ------
    InputError
        Where it cannot or has not, or where a layer depends on weights that `ignore:` leaves out.
    """
    source, model = torch_source(spec.source), _meta_model(spec)
    reader = checkpoint_reader(source, spec, checkpoint, model)
    try:
        reader.read()
    except ModelError as error:
        raise InputError(str(error)) from None
    if not reader.ignored:
        return
    for tower in spec.towers:
        dependent = _dependent(spec, model, tower, reader.ignored)
        if dependent:
            patterns = ", ".join(checkpoint.ignore)
            layers = f"{', '.join(dependent[:3])}{', …' if len(dependent) > 3 else ''}"
            raise InputError(
                f"model {spec.id}: ignore: [{patterns}] leaves out weights that layers of the "
                f"{tower} tower depend on ({layers}). Load these weights, or leave the layers out "
                "of `layers:`, or the tower out of `towers:`."
            )


def _dependent(
    spec: ModelSpec, model: torch.nn.Module, tower: str, names: Sequence[str]
) -> list[str]:
    """Return the layers that depend on the named weights: those with a gradient."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = [parameters[name] for name in names if name in parameters]
    for owner in {name.rpartition(".")[0] for name in names if name not in parameters}:
        # buffers have no gradient, but the parameters beside them have
        chosen += model.get_submodule(owner).parameters(recurse=False)
    try:
        for parameter in chosen:
            parameter.requires_grad_(True)
        with _blamed(spec, f"reading the {tower} tower"):
            reader = LayerReader(spec, model, tower)
            example = torch_source(spec.source).example(spec, model, tower)
            return [layer for layer, pooled in reader.read(example).items() if pooled.requires_grad]
    finally:
        model.requires_grad_(False)


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
