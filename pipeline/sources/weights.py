"""Identity of weights: which file, seed or published revision a checkpoint is. Knows no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.registry import Checkpoint, ModelSpec
from pipeline.store.activations import Weights


def weights_identity(
    spec: ModelSpec, checkpoint: Checkpoint, known: Weights | None = None
) -> Weights:
    """Return the identity of a checkpoint's weights.

    A file is hashed only where its size or modification time differ from what is `known`.
    """
    if checkpoint.init is not None:
        return Weights(f"init:seed={checkpoint.init.seed}")
    if checkpoint.file is None:
        name, _, tag = spec.name.partition(".") if spec.source == "timm" else (spec.name, "", None)
        tag = checkpoint.pretrained or spec.pretrained or tag
        published = f"{spec.source}:{name}{f'.{tag}' if tag else ''}"
        return Weights(f"{published}@{checkpoint.revision or 'published'}")
    stat = Path(checkpoint.file).stat()
    if known is not None and (known.size, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return known
    with open(checkpoint.file, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Weights(f"sha256:{digest}", stat.st_size, stat.st_mtime_ns)
