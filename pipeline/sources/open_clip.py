"""`source: open_clip`: models with an image and a text tower."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.sources.source import Entry, ModelSource

_FOLDER_PREFIX = "local-dir:"


class OpenClipSource(ModelSource):
    """Two-tower models of open_clip: its own, those of a JSON file, those of a folder."""

    packages = (
        "torch",
        "torchvision",
        "pillow",
        "timm",
        "open-clip-torch",
    )  # timm: many of its image towers
    towers = ("image", "text")
    objective: Literal["classification", "contrastive"] = "contrastive"
    size_arguments = "force_image_size, force_context_length"
    torch_module = "pipeline.extraction.torch_open_clip"

    def check_entry(self, entry: Entry) -> None:
        """Accept every key."""

    def published_name(self, entry: Entry, tag: str | None) -> str:
        """Return `architecture.tag`."""
        tag = tag or entry.pretrained
        return f"{entry.name}.{tag}" if tag else entry.name

    def folder(self, entry: Entry) -> Path | None:
        """Return the folder of a name `local-dir:FOLDER`."""
        if entry.name.startswith(_FOLDER_PREFIX):
            return Path(entry.name.removeprefix(_FOLDER_PREFIX))
        return None

    def folder_name(self, folder: str | Path) -> str:
        """Return `local-dir:FOLDER`."""
        return f"{_FOLDER_PREFIX}{folder}"

    def vocabulary(self, entry: Entry) -> Path | None:
        """Return the `bpe_path` of `config:`, which is relative to the JSON file."""
        text = entry.architecture.get("text_cfg", {})
        path: str | None = text.get("tokenizer_kwargs", {}).get("bpe_path")
        if entry.config is None or path is None:
            return None
        return (Path(entry.config).parent / path).resolve()

    def vocabulary_size(self, entry: Entry) -> int | None:
        """Return the `vocab_size` of `config:`."""
        size: int | None = entry.architecture.get("text_cfg", {}).get("vocab_size")
        return size
