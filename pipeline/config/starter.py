"""Files to begin with: a workflow and a registry, with comments, for a person's own stimuli."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from string import Template

from pipeline.config.builtin import builtin_workflows
from pipeline.errors import InputError

_WORKFLOW = Template("""\
# What to extract, compare and calibrate. Paths are relative to the working directory: run
#   consilience plan workflow.yaml    # checks everything, and shows the cost; computes nothing
#   consilience run workflow.yaml     # computes what the store does not have yet
# from this folder. The store is plain Zarr; `consilience report alignment.zarr` draws it.
store: alignment.zarr
registry: [builtin, models.yaml]   # builtin: `consilience models list builtin` shows its models

# The union of what is named. Weights of published models are downloaded when they are needed.
models:
  sets: [mine]
  ids:
    - timm/vit_tiny_patch16_224.augreg_in21k
    - timm/vit_small_patch16_224.augreg_in21k
    - timm/vit_base_patch16_224.mae

$stimuli
# Comparing on other rows, or by further measures, extracts nothing again.
# subset: {n: 1024, seed: 0}

compare:
  measures:                        # `consilience measures` explains all
    knn10: {measure: mutual_knn, k: 10}
    cka_debiased: {}
  pairs: [final, init]             # last checkpoints, and untrained ones as controls
calibrate: {method: analytic}      # against what chance gives
""")
_MODELS = """\
# Models of your own; published ones are in `builtin`. Every entry with `sets: [mine]` takes part.
models:
  # untrained controls: what is alike without any training
  - id: timm/vit_tiny-untrained
    source: timm
    name: vit_tiny_patch16_224
    family: control
    sets: [mine]
    checkpoints: {init: {init: {seed: 0}}}
  - id: timm/resnet18-untrained
    source: timm
    name: resnet18
    family: control
    sets: [mine]
    checkpoints: {init: {init: {seed: 0}}}

  # a training run of your own, with all its checkpoints:
  # - id: timm/my-resnet50
  #   source: timm
  #   name: resnet50
  #   arguments: {num_classes: 100}
  #   checkpoints: runs/r50/checkpoint-{step}.pth.tar
  #   family: resnet
  #   sets: [mine]
"""
_IMAGES = """\
# Every image below this folder. `labels: folders` makes its subfolders classes.
stimuli: {{source: images, root: {root}}}
"""
_DATASET = """\
# A data set of the Hugging Face hub, or a local folder: pip install 'consilience[datasets]'.
stimuli: {{source: huggingface, dataset: {name}}}
"""


def write_starter(
    folder: str | Path, *, images: str | None = None, dataset: str | None = None
) -> list[Path]:
    """Write files to begin with into a folder; return them, the workflow first.

    Parameters
    ----------
    folder
        Made if it does not exist; none of the files may exist.
    images
        A folder of images, relative to the working directory.
    dataset
        A data set of the Hugging Face hub, or a folder. With neither, the quickstart is written:
        reference models that are trained on the built-in digits.

    Raises
    ------
    InputError
        Where a file exists, or `images` is no folder.
    """
    folder = Path(folder)
    if images is None and dataset is None:
        source = builtin_workflows()
        names = [f.relative_to(source) for f in sorted(source.rglob("*")) if f.is_file()]
        targets = [folder / "workflows" / name for name in names]
        _check_absent(targets)
        for name, target in zip(names, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)
        return sorted(targets, key=lambda target: target.name != "quickstart.yaml")
    if images is not None:
        if not Path(images).is_dir():
            raise InputError(f"--images: there is no folder {images} (from {Path.cwd()}).")
        root = Path(images).resolve()
        base = folder.resolve()
        shown = root.relative_to(base) if root.is_relative_to(base) else root
        stimuli = _IMAGES.format(root=json.dumps(shown.as_posix(), ensure_ascii=False))
    else:
        stimuli = _DATASET.format(name=json.dumps(dataset))
    files = {
        folder / "workflow.yaml": _WORKFLOW.substitute(stimuli=stimuli),
        folder / "models.yaml": _MODELS,
    }
    _check_absent([*files])
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return [*files]


def _check_absent(paths: Sequence[Path]) -> None:
    there = [path for path in paths if path.exists()]
    if there:
        raise InputError(f"{there[0]} exists, and is not overwritten. Name another folder.")
