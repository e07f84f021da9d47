"""`source: timm`: published weights, and one's own training runs."""

from __future__ import annotations

from typing import Literal

from pipeline.sources.source import Entry, ModelSource


class TimmSource(ModelSource):
    """Image models of timm, whose names carry their pretrained tag."""

    packages = ("torch", "torchvision", "pillow", "timm")
    towers = ("image",)
    objective: Literal["classification", "contrastive"] = "classification"
    size_arguments = "num_classes, img_size"
    torch_module = "pipeline.extraction.torch_timm"

    def check_entry(self, entry: Entry) -> None:
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

    def published_name(self, entry: Entry, tag: str | None) -> str:
        """Return `architecture.tag`."""
        architecture, _, of_name = entry.name.partition(".")
        tag = tag or of_name
        return f"{architecture}.{tag}" if tag else architecture
