"""A tiny real zoo: networks of timm and open_clip, checkpoint files, a registry, a workflow."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from rich.console import Console
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from pipeline.stimuli.digits import load_digits, pixels
from pipeline.store import Store, open_store
from pipeline.store.io.location import LOCK
from pipeline.training.vocabulary import write_merges
from pipeline.workflow import Plan, RunReport, load_workflow, plan_workflow, run_workflow

STEPS = (0, 10)
SPARE_STEP = 20
"""A checkpoint that the files of a model have, but not under the template's name."""
HALF = [0.5, 0.5, 0.5]
PIXELS = {
    "input_size": 16,
    "mean": HALF,
    "std": HALF,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}
VIT = {
    "num_classes": 10,
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 2,
}
TIMM = {
    "timm/vit-a": (
        "vit_base_patch16_clip_224",
        {**VIT, "class_token": False, "global_pool": "avg"},
    ),
    "timm/vit-b": ("vit_tiny_patch16_224", {**VIT, "embed_dim": 24}),
    "timm/conv": (
        "convnext_atto",
        {"num_classes": 10, "patch_size": 2, "depths": [1, 1, 1, 1], "dims": [4, 6, 8, 12]},
    ),
    "timm/late": ("vit_tiny_patch16_224", {**VIT, "embed_dim": 16}),
}
SIZES = {"timm/conv": 32}
"""Side of the input in pixels, where it is not 16."""
CLIP = "open_clip/clip"
MEASURES = {
    "knn": {"measure": "mutual_knn", "k": 5},
    "cka": {},
    "cka_debiased": {},
    "prh": {"measure": "cka_debiased", "preset": "prh"},
}
N_PERMUTATIONS = 39
WORKFLOW = {
    "store": "store.zarr",
    "registry": "registry.yaml",
    "models": {"sets": ["tiny"]},
    "stimuli": {"source": "digits", "part": "test"},
    "subset": {"n": 64, "seed": 0},
    "compare": {"measures": MEASURES, "pairs": ["final", "init", "same_step", "within_model"]},
    "calibrate": {"n_permutations": N_PERMUTATIONS, "pairs": ["final", "init"], "seed": 3},
    "cluster": {"kind": "local", "n_workers": 2},
}


def name_of(model: str) -> str:
    return model.partition("/")[2]


def build(model: str) -> torch.nn.Module:
    architecture, arguments = TIMM[model]
    return timm.create_model(architecture, **arguments).eval()


def build_clip(folder: Path) -> torch.nn.Module:
    """Build the CLIP by open_clip's own classes, from the JSON file."""
    config = json.loads((folder / "clip.json").read_text())
    config["text_cfg"].pop("tokenizer_kwargs")
    return open_clip.CLIP(**config).eval()


def state_at(model: torch.nn.Module, step: int, seed: int) -> dict[str, torch.Tensor]:
    """Give the initial weights, moved a little for every step but the first."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return {
        name: (
            weight + 0.02 * (step > 0) * torch.randn(weight.shape, generator=generator)
            if weight.is_floating_point() and "running" not in name
            else weight
        ).contiguous()
        for name, weight in model.state_dict().items()
    }


def write_checkpoints(folder: Path, model: torch.nn.Module, name: str, seed: int) -> None:
    (folder / "run" / name).mkdir(parents=True)
    for step in (*STEPS, SPARE_STEP):
        stem = "step" if step != SPARE_STEP else "spare"
        file = folder / "run" / name / f"{stem}-{step}.safetensors"
        save_file(state_at(model, step, seed), str(file))


def entry(model: str) -> dict[str, Any]:
    architecture, arguments = TIMM[model]
    name = name_of(model)
    checkpoints: Any = f"run/{name}/step-{{step}}.safetensors"
    if name == "conv":
        checkpoints = {
            "init": {"init": {"seed": 0}},
            "end": {"file": f"run/{name}/step-10.safetensors", "step": 10},
        }
    return {
        "id": model,
        "source": "timm",
        "name": architecture,
        "family": name.partition("-")[0],
        "sets": ["late" if name == "late" else "tiny"],
        "preprocessing": {**PIXELS, "input_size": SIZES.get(model, 16)},
        "arguments": arguments,
        "checkpoints": checkpoints,
        "metadata": {"samples_seen": 640, "objective": "none"},
    }


def clip_entry() -> dict[str, Any]:
    return {
        "id": CLIP,
        "source": "open_clip",
        "name": "tiny-digits-clip",
        "config": "clip.json",
        "family": "clip",
        "sets": ["tiny"],
        "preprocessing": {k: v for k, v in PIXELS.items() if k != "crop_pct"},
        "checkpoints": "run/clip/step-{step}.safetensors",
        "metadata": {"samples_seen": 640},
    }


def write_zoo(folder: Path) -> None:
    """Write checkpoint files, architectures, a registry and a workflow."""
    with torch.random.fork_rng(devices=[]):
        for seed, model in enumerate(TIMM):
            torch.manual_seed(seed)
            write_checkpoints(folder, build(model), name_of(model), seed)
        size = write_merges(
            folder / "bpe.txt.gz", list(map(str, load_digits("all").columns["caption"]))
        )
        config = {
            "embed_dim": 12,
            "vision_cfg": {
                "image_size": 16,
                "patch_size": 4,
                "layers": 2,
                "width": 16,
                "head_width": 8,
            },
            "text_cfg": {
                "context_length": 12,
                "vocab_size": size,
                "width": 12,
                "heads": 2,
                "layers": 2,
                "tokenizer_kwargs": {"bpe_path": "bpe.txt.gz"},
            },
        }
        (folder / "clip.json").write_text(json.dumps(config))
        torch.manual_seed(9)
        write_checkpoints(folder, build_clip(folder), "clip", 9)
    write_yaml(folder / "registry.yaml", {"models": [*map(entry, TIMM), clip_entry()]})
    write_yaml(folder / "workflow.yaml", WORKFLOW)


def write_yaml(path: Path, content: Any) -> None:
    yaml = YAML()
    yaml.representer.ignore_aliases = lambda *_: True
    with path.open("w") as file:
        yaml.dump(json.loads(json.dumps(content)), file)


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


@dataclass(frozen=True)
class Zoo:
    """A folder with everything in it, run from there."""

    folder: Path
    cluster: str | None = None
    """A scheduler that runs already."""

    @property
    def path(self) -> Path:
        return self.folder / "store.zarr"

    def store(self) -> Store:
        return open_store(self.path)

    def edit(self, model: str, **changes: Any) -> None:
        """Change one entry of the registry."""
        registry = read_yaml(self.folder / "registry.yaml")
        (found,) = (e for e in registry["models"] if e["id"] == model)
        found.update(changes)
        write_yaml(self.folder / "registry.yaml", registry)

    def plan(self, *settings: str, replace: tuple[str, ...] = ()) -> Plan:
        with inside(self.folder):
            spec, _ = load_workflow("workflow.yaml", settings=settings)
            return plan_workflow(spec, replace=replace)

    def run(self, *settings: str, replace: tuple[str, ...] = ()) -> RunReport:
        with inside(self.folder), open(os.devnull, "w") as nowhere:
            spec, _ = load_workflow("workflow.yaml", settings=settings)
            return run_workflow(
                spec, cluster=self.cluster, replace=replace, console=Console(file=nowhere)
            )

    def copy(self, folder: Path, cluster: str) -> Zoo:
        # without the lock of a run that another test may be making at this moment
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(LOCK))
        return Zoo(folder, cluster)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def tree(path: Path, under: str = "") -> dict[str, str]:
    """Digest every file below a path."""
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((path / under).rglob("*"))
        if file.is_file()
    }


def files_by_time(path: Path, under: str = "") -> dict[str, int]:
    return {
        file.relative_to(path).as_posix(): file.stat().st_mtime_ns
        for file in sorted((path / under).rglob("*"))
        if file.is_file()
    }


def chunk_files(path: Path, array: str) -> list[Path]:
    """Give the files of an array's chunks, first to last."""
    return sorted(f for f in (path / array / "c").rglob("*") if f.is_file())


def flip_byte(file: Path, at: int = 100) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)


def spoil(file: Path) -> None:
    """Make weights that can be read and loaded, and give activations that are not finite."""
    weights = {name: torch.full_like(w, torch.nan) for name, w in load_file(file).items()}
    save_file(weights, file)


def digits_inputs(size: int = 16) -> torch.Tensor:
    """Scale the test digits, three channels, in [-1, 1], by hand."""
    from PIL import Image

    images = [
        np.asarray(
            Image.fromarray(i).convert("RGB").resize((size, size), Image.Resampling.BICUBIC),
            np.float32,
        )
        for i in pixels("test")
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
