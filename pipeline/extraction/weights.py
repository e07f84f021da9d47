"""Identity of weights: the file, seed or published revision of a checkpoint. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config.model import Checkpoint, ModelSpec
from pipeline.sources import SOURCES
from pipeline.types import Weights


def weights_identity(
    spec: ModelSpec, checkpoint: Checkpoint, known: Weights | None = None
) -> Weights:
    """Return the identity of a checkpoint's weights.

    A file, or a folder of files (`local-dir:`), is hashed only where its size or modification time
    differs from `known`: a file overwritten with both unchanged counts as the same.
    """
    if checkpoint.init is not None:
        seed = checkpoint.init.seed
        # with the generator's own seed, so that weights of another rule for seeds, or of another
        # architecture, have another identity
        return Weights(f"init:seed={seed}@{spec.initial_seed(seed):016x}")
    if checkpoint.file is not None:
        return _of_files([Path(checkpoint.file)], known, _selection(spec, checkpoint))
    if spec.folder is None:
        name = SOURCES[spec.source].published_name(spec, checkpoint.pretrained)
        return Weights(f"{spec.source}:{name}@{checkpoint.revision or 'published'}")
    return _of_files(sorted(f for f in spec.folder.rglob("*") if f.is_file()), known)


def _selection(spec: ModelSpec, checkpoint: Checkpoint) -> str:
    """Return which weights of the file are loaded, and what the others are, as text."""
    if not checkpoint.selection:
        return ""
    chosen = dict(checkpoint.selection)
    if checkpoint.ignore:
        chosen["ignore"] = sorted(checkpoint.ignore)
        chosen["initial"] = f"{spec.initial_seed(0):016x}"
    return json.dumps(chosen, sort_keys=True)


def _of_files(files: Sequence[Path], known: Weights | None, selection: str = "") -> Weights:
    stats = [f.stat() for f in files]
    size, mtime = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
    if known is not None and (known.size, known.mtime_ns) == (size, mtime):
        content = known.digest.partition(" ")[0]
        return replace(known, digest=f"{content} {selection}".rstrip())
    digests = []
    for name in files:
        with open(name, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    digest = digests[0]
    if len(files) > 1:  # by the order of their names: which file is which matters
        digest = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    return Weights(f"sha256:{digest} {selection}".rstrip(), size, mtime)
