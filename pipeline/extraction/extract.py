"""Extraction: the loop over stimuli that yields the pooled activations of every layer.

Knows nothing of Zarr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pipeline.config.model import ModelSpec
from pipeline.errors import ModelError
from pipeline.extraction.reader import LayerReader
from pipeline.extraction.torch_source import torch_source
from pipeline.lru import LruCache
from pipeline.stimuli import StimulusReader
from pipeline.stimuli.ids import hex_ids
from pipeline.types import Block, Float32, Modality


def extract(
    spec: ModelSpec,
    model: torch.nn.Module,
    tower: str,
    stimuli: StimulusReader,
    blocks: Sequence[Block],
    *,
    batch_size: int = 256,
    device: str = "cpu",
) -> Iterator[tuple[Block, dict[str, Float32]]]:
    """Yield, for each block of rows, the pooled activations of every chosen layer.

    Parameters
    ----------
    model
        The model in eval mode, on `device`.
    stimuli
        Read a batch at a time.
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
        Where an activation is not finite: names model, layer and first stimulus.
    """
    reader = LayerReader(spec, model, tower)
    inputs = _Inputs(spec, model, reader.modality, stimuli)
    for start, stop in blocks:
        parts: list[dict[str, Float32]] = []
        row = start
        while row < stop:
            rows = slice(row, min(row + batch_size, stop))
            try:
                parts.append(_forward(reader, inputs[rows].to(device), spec.precision))
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
                ids = stimuli.table.ids_at(reader.modality, slice(first, first + 1))
                raise ModelError(
                    f"model {spec.id}, {tower} tower, layer {layer}: the activations of "
                    f"{int((~finite).sum())} stimuli are not finite, first row {first} "
                    f"(stimulus {hex_ids(ids)[0]}). Look at the weights, or use precision: "
                    "float32."
                )
        yield (start, stop), whole


def _forward(reader: LayerReader, inputs: torch.Tensor, precision: str) -> dict[str, Float32]:
    dtype = getattr(torch, precision)
    with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype is not torch.float32):
        pooled = reader(inputs)
    # copies: a class token is a view, which would keep the tokens of all positions in memory
    return {n: p.float().cpu().numpy().copy() for n, p in pooled.items()}


# of this process: models with one preprocessing share images, checkpoints of one model its tokens
_inputs: LruCache[Any, torch.Tensor] = LruCache(256 * 2**20, size=lambda batch: batch.nbytes)


class _Inputs:
    """Preprocessed inputs of one tower by rows, made when asked for and kept for others."""

    def __init__(
        self, spec: ModelSpec, model: torch.nn.Module, modality: Modality, stimuli: StimulusReader
    ) -> None:
        self.spec, self.stimuli, self.modality = spec, stimuli, modality
        self.source = torch_source(spec.source)
        how = spec.recipe_digest
        if modality == "image":
            self.transform = self.source.image_transform(spec, model)
            # what a transform shows of itself is rounded
            how = f"{self.transform} {self.source.preprocessing(spec, model)}"
        self.key = stimuli.table.digest, modality, how

    @cached_property
    def tokenize(self) -> Callable[[Sequence[str]], torch.Tensor]:
        """The tokenizer, which takes a while to load."""
        return self.source.tokenizer(self.spec)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        key = (*self.key, rows.start, rows.stop)
        batch = _inputs.get(key)
        if batch is None:
            batch = self._made(rows)
            _inputs.put(key, batch)
        return batch

    def _made(self, rows: slice) -> torch.Tensor:
        if self.modality == "text":
            return self.tokenize(self.stimuli.read("text", rows))
        return torch.stack(
            [
                self.transform(image)
                for row in range(rows.start, rows.stop)
                # one at a time: a batch of photographs, decoded, may take gigabytes
                for image in self.stimuli.read("image", slice(row, row + 1))
            ]
        )
