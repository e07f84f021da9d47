"""The training loop: one model on one thread, with the same bytes every time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from filelock import FileLock

from pipeline.errors import ModelError
from pipeline.sources import SOURCES
from pipeline.training import contrastive, supervised
from pipeline.training.checkpoints import (
    clear,
    read_record,
    write_checkpoint,
    write_record,
)
from pipeline.training.objective import Objective
from pipeline.training.recipe import TrainingRecipe, planned_steps

_PREPARE = {"classification": supervised.prepare, "contrastive": contrastive.prepare}


def train(recipe: TrainingRecipe, progress: Callable[[int], None] | None) -> dict[str, Any]:
    """Train one model unless it is trained already, and return its record."""
    recipe.directory.mkdir(parents=True, exist_ok=True)
    # another process may be training the same model: wait for it, and use its result
    with FileLock(recipe.directory / "training.lock"):
        record = read_record(recipe)
        if record is not None:
            return record
        clear(recipe)
        with _reproducible(recipe.seeds["weights"]):
            record = _train(recipe, progress)
        write_record(recipe, record)
        return record


def _train(recipe: TrainingRecipe, progress: Callable[[int], None] | None) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    options, last = recipe.options, recipe.options.steps
    source = SOURCES[recipe.model.source]
    objective = _PREPARE[source.objective](recipe)
    steps = set(planned_steps(recipe))
    optimizer, schedule = _optimizer(objective.model, recipe)
    files: dict[str, str] = {}
    losses: dict[str, float] = {}

    def save(step: int) -> None:
        epoch = step * options.batch_size // objective.n_stimuli
        files[recipe.file(step).name] = write_checkpoint(
            recipe, step, epoch, objective.model.state_dict()
        )

    if 0 in steps:
        save(0)
    objective.model.train()
    for step, loss in _steps(objective, recipe):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        objective.after_step()
        if step in steps:
            value = float(loss.detach())
            if value != value:
                raise ModelError(
                    f"model {recipe.model.id}: the loss is not a number at step {step} of {last}. "
                    f"Lower training.learning_rate, which is {options.learning_rate}."
                )
            losses[str(step)] = value
            save(step)
        if progress is not None:
            progress(step)
    objective.model.eval()
    with torch.inference_mode():
        accuracy = objective.accuracy()
    return {
        "model": recipe.model.id,
        "recipe_digest": recipe.digest,
        "recipe": recipe.model_dump(mode="json"),
        "seed": options.seed,
        "seeds": recipe.seeds,
        "steps": sorted(steps),
        "samples_seen": last * options.batch_size,
        "losses": losses,
        "held_out_accuracy": accuracy,
        "n_parameters": sum(p.numel() for p in objective.model.parameters()),
        "files": files,
        "versions": {name: version(name) for name in (*source.packages, "numpy", "scikit-learn")},
        "seconds": {
            "wall": round(time.perf_counter() - wall, 2),
            "cpu": round(time.process_time() - cpu, 2),
        },
    }


def _steps(objective: Objective, recipe: TrainingRecipe) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield each step's number, from 1, and loss; batches run on across epochs."""
    options = recipe.options
    order, captions = (
        torch.Generator().manual_seed(recipe.seeds[use]) for use in ("order", "captions")
    )
    rows = torch.empty(0, dtype=torch.long)
    for step in range(1, options.steps + 1):
        while len(rows) < options.batch_size:
            rows = torch.cat([rows, torch.randperm(objective.n_stimuli, generator=order)])
        batch, rows = rows[: options.batch_size], rows[options.batch_size :]
        yield step, objective.loss(batch, captions)


def _optimizer(
    model: torch.nn.Module, recipe: TrainingRecipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    options = recipe.options
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.steps, pct_start=options.warmup
    )
    return optimizer, schedule


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Use one thread, deterministic kernels and a seeded generator; restore all three after."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(1)  # the order of a sum depends on the number of threads
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
