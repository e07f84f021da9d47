"""Files of a training run: checkpoints, and `training.json`, which marks it complete."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.training.recipe import STEP, TrainingRecipe, planned_steps

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "training.json"
_PARTIAL = ".partial"


def read_record(recipe: TrainingRecipe) -> dict[str, Any] | None:
    """Return the content of `training.json`, or None where this recipe has not been trained.

    Trained means: this very recipe wrote the record, and every file of it is there. The record is
    written last, so an interrupted training has none.
    """
    record = _read(recipe)
    if record is None or record.get("recipe_digest") != recipe.digest:
        return None
    files = [recipe.file(step) for step in planned_steps(recipe)]
    if recipe.model.vocabulary is not None:
        files.append(recipe.model.vocabulary)
    return record if all(f.is_file() for f in files) else None


def is_trained(recipe: TrainingRecipe) -> bool:
    """Return whether every checkpoint of this very recipe is there; reads one small file."""
    return read_record(recipe) is not None


def is_trained_otherwise(recipe: TrainingRecipe) -> bool:
    """Return whether the folder holds models of another recipe, or of an older rule for seeds."""
    record = _read(recipe)
    return record is not None and record.get("recipe_digest") not in (None, recipe.digest)


def _read(recipe: TrainingRecipe) -> dict[str, Any] | None:
    try:
        record = json.loads((recipe.directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write_record(recipe: TrainingRecipe, record: Mapping[str, Any]) -> None:
    """Write `training.json`."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_atomically(recipe.directory / RECORD, text.encode())


def write_checkpoint(
    recipe: TrainingRecipe, step: int, epoch: int, weights: Mapping[str, Tensor]
) -> str:
    """Save the weights of a step and return the SHA-256 of the file.

    The same weights give the same bytes: safetensors sorts its tensors, and `torch.save` writes
    the name of a file into it, but none where it writes to a buffer.
    """
    path = recipe.file(step)
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        content = save({k: w.contiguous() for k, w in weights.items()}, {"format": "pt"})
    else:
        import torch

        buffer = io.BytesIO()
        # the keys of timm's own training checkpoints, without the optimiser
        state = {
            "epoch": epoch,
            "arch": recipe.model.name,
            "state_dict": dict(weights),
            "version": 2,
        }
        torch.save(state, buffer)
        content = buffer.getvalue()
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL}")
    partial.write_bytes(content)
    partial.replace(path)


def clear(recipe: TrainingRecipe) -> None:
    """Remove the files of an interrupted training, or of another recipe.

    The record goes first, so that the folder never looks complete while files are removed.
    """
    (recipe.directory / RECORD).unlink(missing_ok=True)
    pattern = Path(recipe.template).name.replace(STEP, "*")
    for left in (*recipe.directory.glob(pattern), *recipe.directory.glob(f"*{_PARTIAL}")):
        left.unlink()
