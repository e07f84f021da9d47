"""`source: timm`: published weights, and one's own training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.sources.source import ModelSource

if TYPE_CHECKING:
    from pipeline.config.model import Checkpoint, ModelSpec
    from pipeline.sources.torch_source import TorchSource


class TimmSource(ModelSource):
    """Image models of timm, whose names carry their pretrained tag."""

    packages = ("torch", "torchvision", "timm")
    towers = ("image",)
    objective: Literal["classification", "contrastive"] = "classification"

    def check_entry(self, entry: ModelSpec) -> None:
        """Raise ValueError for open_clip's keys, and for another tower than image."""
        if entry.pretrained is not None:
            raise ValueError(
                f"timm names carry their tag: write name: {entry.name}.{entry.pretrained}, "
                "without `pretrained`."
            )
        if entry.towers != self.towers:
            raise ValueError("timm models have one tower: towers: [image].")
        if entry.config is not None:
            raise ValueError("`config` is for open_clip; use `arguments` with timm.")

    def published_name(self, entry: ModelSpec, checkpoint: Checkpoint) -> str:
        """Return `architecture.tag`."""
        architecture, _, tag = entry.name.partition(".")
        tag = checkpoint.pretrained or tag
        return f"{architecture}.{tag}" if tag else architecture

    def torch_source(self) -> TorchSource:
        """Import timm."""
        from pipeline.sources.torch_timm import SOURCE

        return SOURCE
