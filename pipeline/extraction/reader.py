"""Pooled activations of the chosen layers of one tower, from one forward pass."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

import torch

from pipeline.config.model import EveryN, ModelSpec
from pipeline.errors import InputError, ModelError
from pipeline.extraction.torch_source import NoEmbeddingError, Tokens, torch_source
from pipeline.modality import modality_of
from pipeline.suggest import did_you_mean

EMBEDDING = "embedding"
"""The layer that a model is used by: see `TorchSource.intermediates`."""


class LayerReader:
    """Reads the chosen layers of one tower, pooled, in one forward pass."""

    def __init__(self, spec: ModelSpec, model: torch.nn.Module, tower: str) -> None:
        self.spec, self.model, self.tower = spec, model, tower
        self.modality = modality_of(tower)
        self.source = torch_source(spec.source)
        self.blocks = self.source.blocks(model, tower)
        self.layers = self._choose()
        pool = spec.pool
        # layer suffix → read-out
        self.pools = {"": pool} if isinstance(pool, str) else {f".{p}": p for p in pool}
        self.pooling = "none"
        """What was done to the layers; known after a forward pass. The embedding is not pooled."""

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
            match pattern:
                case "blocks":
                    found = self._some_blocks()
                case "last":
                    found = self._some_blocks()[-1:]
                case "embedding":
                    found = [EMBEDDING]
                case _:
                    found = [n for n in known if fnmatch.fnmatchcase(n, pattern)]
            if not found:
                raise InputError(
                    f"model {spec.id}: no layer of the {self.tower} tower matches {pattern!r}."
                    f"{did_you_mean(pattern, [*known, EMBEDDING])} Blocks: "
                    f"{', '.join(self.blocks)}."
                )
            chosen += [n for n in found if n not in chosen]
        order = {n: i for i, n in enumerate([*known, EMBEDDING])}
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
        return self.read(inputs)

    def read(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the same, with gradients where weights have them."""
        hooked: dict[str, torch.Tensor] = {}
        given = [*self.blocks, *([EMBEDDING] if EMBEDDING in self.layers else [])]
        wanted = [n for n in self.layers if n not in given]
        modules = dict(self.source.modules(self.model, self.tower).named_modules())
        handles = [modules[n].register_forward_hook(self._keep(hooked, n)) for n in wanted]
        try:
            outputs = self.source.intermediates(
                self.model, self.tower, inputs, embedding=EMBEDDING in given
            )
        except NoEmbeddingError as error:
            raise ModelError(
                f"model {self.spec.id}: {self.spec.name} has no embedding: {error} Leave "
                f"`{EMBEDDING}` out of `layers:`."
            ) from None
        finally:
            for handle in handles:
                handle.remove()
        tokens = dict(zip(given, outputs, strict=True))
        block = tokens[self.blocks[-1]] if self.blocks else None
        tokens |= {n: _like(block, t) for n, t in hooked.items() if len(t) == len(inputs)}
        if self.spec.layers == "all":  # without containers that do not run, and unused heads
            self.layers = [n for n in self.layers if n in tokens]
        missing = [n for n in self.layers if n not in tokens]
        if missing:
            raise ModelError(
                f"model {self.spec.id}: layers {', '.join(missing)} gave no output of one row per "
                "stimulus in the forward pass. Leave them out of `layers:`."
            )
        pooled: dict[str, torch.Tensor] = {}
        for n in self.layers:
            if n == EMBEDDING:
                pooled[n] = tokens[n].body.float()
            else:
                pooled |= {f"{n}{s}": self._pool(n, tokens[n], p) for s, p in self.pools.items()}
        blocks = [n for n in self.layers if n != EMBEDDING]
        if blocks:
            resolved = (_resolve(p, tokens[blocks[0]]) for p in self.pools.values())
            self.pooling = ", ".join(resolved)
            if self.modality == "text":
                self.pooling = self.pooling.replace("cls", "eot")
        return pooled

    @staticmethod
    def _keep(kept: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.ndim >= 2:
                # a later in-place operation would overwrite it
                kept[name] = output.clone()

        return hook

    def _pool(self, layer: str, tokens: Tokens, pool: str) -> torch.Tensor:
        mode = _resolve(pool, tokens)
        if "cls" in mode and tokens.summary is None:
            raise InputError(
                f"model {self.spec.id}, layer {layer}: pool: {mode} needs a class token, and "
                "there is none. Use pool: mean, or auto."
            )
        if mode == "cls+mean":
            return torch.cat([_pooled(tokens, "cls"), _pooled(tokens, "mean")], 1)
        return _pooled(tokens, mode)


def _resolve(pool: str, tokens: Tokens) -> str:
    if pool != "auto":
        return pool
    return "cls" if tokens.summary is not None else "mean"


def _pooled(tokens: Tokens, mode: str) -> torch.Tensor:
    if mode == "cls" and tokens.summary is not None:
        return tokens.summary.float()
    body = tokens.body.float()  # sum over positions in full precision, even under autocast
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
    """Interpret the output of a hooked module like that of a block of the same tower."""
    if output.ndim == 4 and output.shape[1] == output.shape[2] != output.shape[3]:
        return Tokens(output.movedim(3, 1))  # square positions come first, so channels are last
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
