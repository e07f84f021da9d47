"""The forward pass: a model and its inputs → pooled activations of every layer. Knows no Zarr."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.config.model import EveryN, ModelSpec
from pipeline.errors import ConsilienceError, InputError, ModelError
from pipeline.sources import get_source
from pipeline.sources.base import Source, Tokens, differences, first_line, misfit_message
from pipeline.stimuli import StimulusSet
from pipeline.suggest import did_you_mean
from pipeline.towers import PeakMemory, TowerInfo

Float32 = NDArray[np.float32]


class Tap:
    """Reads the chosen layers of one tower, pooled, in one forward pass."""

    def __init__(self, spec: ModelSpec, model: torch.nn.Module, tower: str) -> None:
        self.spec, self.model, self.tower = spec, model, tower
        self.source: Source = get_source(spec.source)
        self.blocks = self.source.blocks(model, tower)
        self.layers = self._choose()
        self.pooling: str | None = None

    def _choose(self) -> list[str]:
        spec = self.spec
        if isinstance(spec.layers, EveryN):
            return self._some_blocks()[::-1][:: spec.layers.every][::-1]
        if spec.layers == "blocks":
            return self._some_blocks()
        if spec.layers == "last":
            return self._some_blocks()[-1:]
        finer = [n for n, _ in self.source.modules(self.model, self.tower).named_modules() if n]
        # in the order of the modules, where the blocks are among them
        known = list(dict.fromkeys((*(b for b in self.blocks if b not in finer), *finer)))
        if spec.layers == "all":
            return known
        patterns = (spec.layers,) if isinstance(spec.layers, str) else spec.layers
        chosen: list[str] = []
        for pattern in patterns:
            found = [n for n in known if fnmatch.fnmatchcase(n, pattern)]
            if not found:
                raise InputError(
                    f"model {spec.id}: no layer of the {self.tower} tower matches {pattern!r}."
                    f"{did_you_mean(pattern, known)} Blocks: {', '.join(self.blocks)}."
                )
            chosen += [n for n in found if n not in chosen]
        order = {n: i for i, n in enumerate(known)}
        return sorted(chosen, key=order.__getitem__)

    def _some_blocks(self) -> list[str]:
        if not self.blocks:
            raise InputError(
                f"model {self.spec.id}: {self.spec.name} does not offer its blocks. "
                "Name modules instead (layers: a list of names, or a glob)."
            )
        return self.blocks

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return layer → `(batch, width)`, on the inputs' device."""
        hooked: dict[str, torch.Tensor] = {}
        wanted = [n for n in self.layers if n not in self.blocks]
        modules = dict(self.source.modules(self.model, self.tower).named_modules())
        handles = [modules[n].register_forward_hook(self._keep(hooked, n)) for n in wanted]
        try:
            outputs = self.source.intermediates(self.model, self.tower, inputs)
        finally:
            for handle in handles:
                handle.remove()
        tokens = dict(zip(self.blocks, outputs, strict=True))
        block = outputs[-1] if outputs else None
        tokens |= {n: _like(block, t) for n, t in hooked.items() if len(t) == len(inputs)}
        if self.spec.layers == "all":  # containers that run nothing, heads that are not reached
            self.layers = [n for n in self.layers if n in tokens]
        missing = [n for n in self.layers if n not in tokens]
        if missing:
            raise ModelError(
                f"model {self.spec.id}: layers {', '.join(missing)} gave no output of one row per "
                "stimulus in the forward pass. Leave them out of `layers:`."
            )
        return {n: self._pool(n, tokens[n]) for n in self.layers}

    @staticmethod
    def _keep(kept: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.ndim >= 2:
                # an in-place operation further on would overwrite what was seen
                kept[name] = output.detach().clone()

        return hook

    def _pool(self, layer: str, tokens: Tokens) -> torch.Tensor:
        body, mode = tokens.body, self.spec.pool
        if mode == "auto":
            mode = "cls" if tokens.summary is not None else "mean"
        if self.pooling is None:
            self.pooling = "eot" if mode == "cls" and self.tower == "text" else mode
        if mode == "cls":
            if tokens.summary is None:
                raise InputError(
                    f"model {self.spec.id}, layer {layer}: pool: cls needs a class token, and "
                    "there is none. Use pool: mean, or auto."
                )
            return tokens.summary.float()
        body = body.float()  # sums over positions in full precision, whatever the autocast
        if mode == "flatten" or body.ndim == 2:
            return body.flatten(1)
        if body.ndim == 3:  # (batch, length, width)
            if tokens.mask is None:
                return body.mean(1) if mode == "mean" else body.amax(1)
            mask = tokens.mask[..., None]
            if mode == "mean":
                return (body * mask).sum(1) / mask.sum(1)
            return body.masked_fill(~mask, -torch.inf).amax(1)
        positions = tuple(range(2, body.ndim))  # (batch, channels, height, width)
        return body.mean(positions) if mode == "mean" else body.amax(positions)


def _like(block: Tokens | None, output: torch.Tensor) -> Tokens:
    """Read what a hooked module gave in the way a block of the same tower is read."""
    if output.ndim == 4 and output.shape[1] == output.shape[2] != output.shape[3]:
        return Tokens(output.movedim(3, 1))  # square positions first: channels stand last
    if block is None or output.ndim != 3:
        return Tokens(output)
    if block.mask is not None:
        if block.position is None or output.shape[1] != block.mask.shape[1]:
            return Tokens(output)
        rows = torch.arange(len(output), device=output.device)
        return Tokens(output, output[rows, block.position], block.mask, block.position)
    n_prefix = output.shape[1] - block.body[0, 0].numel()
    if n_prefix <= 0:
        return Tokens(output)
    summary = None if block.summary is None else output[:, 0]
    return Tokens(output[:, n_prefix:], summary)


@dataclass(frozen=True)
class _Architecture:
    towers: dict[str, TowerInfo]
    shapes: dict[str, tuple[int, ...]]


# entries that differ in seeds only, as a zoo's do, share one recipe and one build
_architectures: dict[str, _Architecture] = {}


def _architecture(spec: ModelSpec) -> _Architecture:
    key = f"{spec.recipe_digest} {spec.towers}"
    if key in _architectures:
        return _architectures[key]
    source = get_source(spec.source)
    # the counter of operations breaks on weights that are handed from module to module otherwise
    model = source.build(spec, device="meta").requires_grad_(False)
    towers: dict[str, TowerInfo] = {t: _tower_info(spec, source, model, t) for t in spec.towers}
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    _architectures[key] = _Architecture(towers, shapes)
    return _architectures[key]


def _tower_info(spec: ModelSpec, source: Source, model: torch.nn.Module, tower: str) -> TowerInfo:
    """Find out all there is to know of a tower on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with _blamed(spec, f"reading the {tower} tower"):
        tap = Tap(spec, model, tower)
        example = source.example(spec, model, tower)
        n_parameters, n_embedding_parameters = source.count_parameters(model, tower)
        preprocessing = _jsonable(source.preprocessing(spec, model))
    with (
        _blamed(spec, f"a forward pass with an input of shape {tuple(example.shape[1:])}"),
        FlopCounterMode(display=False) as counter,
        PeakMemory() as memory,
    ):
        pooled = tap(example)
    return TowerInfo(
        layers=tuple(pooled),
        widths=tuple(int(p.shape[1]) for p in pooled.values()),
        n_parameters=n_parameters,
        n_embedding_parameters=n_embedding_parameters,
        flops=float(counter.get_total_flops()),
        pooling=str(tap.pooling),
        preprocessing=preprocessing,
        input_bytes=example.nbytes,
        working_bytes=memory.peak,
        weight_bytes=sum(weight.nbytes for weight in model.state_dict().values()),
    )


@contextmanager
def _blamed(spec: ModelSpec, doing: str) -> Iterator[None]:
    """Turn whatever a library raises on an architecture into one error of that model."""
    try:
        yield
    except ConsilienceError:
        raise
    except Exception as error:  # of whatever kind: libraries break on some of their own models
        why = f"{type(error).__name__}: {first_line(error)}"
        if "meta tensor" in why or "meta device" in why:
            raise ModelError(
                f"model {spec.id}: {spec.name} cannot be described before its weights are there, "
                f"because its code decides by the values of its input: {why} Leave the entry out, "
                "or take another architecture."
            ) from error
        raise ModelError(
            f"model {spec.id}: {doing} fails: {why} Set `preprocessing: {{input_size: …}}` or "
            f"`arguments:` to what the model takes; if they are right, {spec.source} itself does "
            "not cope with this architecture: leave the entry out."
        ) from error


def describe(spec: ModelSpec) -> dict[str, TowerInfo]:
    """Return what is known of each tower, from the architecture on torch's meta device.

    Nothing is downloaded and no weights are made.

    Raises
    ------
    InputError, ModelError
        Where the source does not know the model, cannot build or run it, or a layer does not exist.
    """
    get_source(spec.source).check(spec)
    return _architecture(spec).towers


def check_fit(spec: ModelSpec, file: str) -> None:
    """Raise where a checkpoint's weights have other names or shapes than the architecture's.

    A file that cannot be read at all is left to the extraction, which reports it and goes on.

    Raises
    ------
    InputError
        Naming the first differences.
    """
    try:
        weights = get_source(spec.source).read_weights(file)
    except Exception:  # whatever a broken file makes safetensors, zipfile or torch raise
        return
    misfit = differences(_architecture(spec).shapes, weights)
    if misfit:
        raise InputError(misfit_message(spec, file, misfit))


def extract(
    spec: ModelSpec,
    model: torch.nn.Module,
    tower: str,
    stimuli: StimulusSet,
    blocks: Sequence[tuple[int, int]],
    *,
    batch_size: int = 256,
    device: str = "cpu",
) -> Iterator[tuple[tuple[int, int], dict[str, Float32]]]:
    """Yield, for each block of rows, the pooled activations of every chosen layer.

    Parameters
    ----------
    model
        The model in eval mode, on `device`.
    blocks
        Half-open ranges of rows of the base set.
    batch_size
        Stimuli in one forward pass; halved, for good, where the device runs out of memory.

    Yields
    ------
    tuple
        The block, and layer → float32 array `(rows, features)`.

    Raises
    ------
    ModelError
        Where an activation is not finite: names model, layer and the first stimulus.
    """
    tap = Tap(spec, model, tower)
    inputs = _Inputs(spec, model, tower, stimuli)
    ids = stimuli.ids(tower)
    for start, stop in blocks:
        parts: list[dict[str, Float32]] = []
        row = start
        while row < stop:
            rows = slice(row, min(row + batch_size, stop))
            try:
                parts.append(_forward(tap, inputs[rows].to(device), spec.precision))
            except torch.cuda.OutOfMemoryError:
                if batch_size == 1:
                    raise ModelError(
                        f"model {spec.id}: one stimulus does not fit into the memory of {device}."
                    ) from None
                torch.cuda.empty_cache()
                batch_size //= 2
                continue
            row = rows.stop
        whole = {layer: np.concatenate([p[layer] for p in parts]) for layer in parts[0]}
        for layer, values in whole.items():
            finite = np.isfinite(values).all(1)
            if not finite.all():
                first = start + int(np.argmin(finite))
                raise ModelError(
                    f"model {spec.id}, {tower} tower, layer {layer}: the activations of "
                    f"{int((~finite).sum())} stimuli are not finite, first row {first} "
                    f"(stimulus {ids[first]}). Look at the weights, or use precision: float32."
                )
        yield (start, stop), whole


def _forward(tap: Tap, inputs: torch.Tensor, precision: str) -> dict[str, Float32]:
    dtype = getattr(torch, precision)
    with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype is not torch.float32):
        pooled = tap(inputs)
    # copies: a class token is a view, which would keep the tokens of all positions
    return {n: p.float().cpu().numpy().copy() for n, p in pooled.items()}


class _Inputs:
    """Preprocessed inputs by rows; models with one preprocessing share the decoded images."""

    def __init__(
        self, spec: ModelSpec, model: torch.nn.Module, tower: str, stimuli: StimulusSet
    ) -> None:
        source = get_source(spec.source)
        self.stimuli = stimuli
        self.tokens: torch.Tensor | None = None
        if tower == "text":
            key = f"{stimuli.caption_fingerprint()} {spec.recipe_digest}"
            self.tokens = _decoded.get(key)
            if self.tokens is None:  # once for all checkpoints of a model
                assert stimuli.captions is not None
                self.tokens = source.tokenizer(spec)(stimuli.captions)
                _decoded.put(key, self.tokens)
        else:
            self.transform = source.image_transform(spec, model)
            self.key = f"{stimuli.fingerprint} {self.transform}"

    def __getitem__(self, rows: slice) -> torch.Tensor:
        if self.tokens is not None:
            return self.tokens[rows]
        key = (self.key, rows.start, rows.stop)
        batch = _decoded.get(key)
        if batch is None:
            batch = torch.stack([self.transform(as_image(i)) for i in self.stimuli.images[rows]])
            _decoded.put(key, batch)
        return batch


class _Cache:
    """The most recent decoded batches, within a budget of bytes."""

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self.held: dict[Any, torch.Tensor] = {}

    def get(self, key: Any) -> torch.Tensor | None:
        batch = self.held.pop(key, None)
        if batch is not None:
            self.held[key] = batch  # now the most recent
        return batch

    def put(self, key: Any, batch: torch.Tensor) -> None:
        self.get(key)
        self.used += batch.nbytes - (self.held[key].nbytes if key in self.held else 0)
        self.held[key] = batch
        while self.used > self.budget:
            self.used -= self.held.pop(next(iter(self.held))).nbytes


_decoded = _Cache(budget=256 * 2**20)


def as_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return pixels `(height, width)` or `(height, width, 3)` as an RGB image."""
    return Image.fromarray(pixels).convert("RGB")


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
