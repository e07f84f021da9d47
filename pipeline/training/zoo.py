"""Training of several reference models at a time, of those that are missing."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from queue import Empty
from typing import Any

from pipeline.errors import ModelError
from pipeline.training.checkpoints import is_trained
from pipeline.training.recipe import TrainingRecipe

_REPORT_EVERY = 10  # steps; a message per step would cost more than it shows
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Progress:
    """Progress of the training of one model."""

    model: str
    step: int
    steps: int


def train(
    recipe: TrainingRecipe, *, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Train one model in this process, on one thread, unless it is trained already.

    The same recipe gives the same files, to the bit, on the same machine with the same versions
    of the libraries. torch's threads, generator and determinism are restored afterwards.

    Parameters
    ----------
    recipe
        From `load_recipes`.
    progress
        Called with the number of each step done.

    Returns
    -------
    dict
        The content of `training.json`, which is written last: recipe and its digest, seed, steps,
        losses at the checkpoints, held-out accuracy, SHA-256 of the files, versions, seconds.

    Raises
    ------
    ModelError
        Where the model cannot be built, or its loss is not a number.
    InputError
        Where a two-tower model's config states a wrong vocabulary size.
    """
    from pipeline.training.loop import train as run  # torch is imported here

    return run(recipe, progress)


def train_all(
    recipes: Iterable[TrainingRecipe],
    *,
    workers: int = 2,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Train the models that are not trained yet, in separate processes of one thread each.

    Parameters
    ----------
    recipes
        From `load_recipes`.
    workers
        How many models are trained at a time.
    on_progress
        Called in this process, every few steps of each model and at its last step.

    Returns
    -------
    dict
        Record of each model trained by this call, by id.

    Raises
    ------
    ModelError
        Where some models failed, once all others are done: names each, and why.
    """
    missing = sorted((r for r in recipes if not is_trained(r)), key=_expected_work, reverse=True)
    if not missing:
        return {}
    context = multiprocessing.get_context("spawn")  # forking after torch has threads can hang
    queue = context.Queue()
    records: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}

    def report() -> None:
        while True:
            try:
                event = queue.get_nowait()
            except Empty:
                return
            if on_progress is not None:
                on_progress(event)

    executor = ProcessPoolExecutor(
        min(workers, len(missing)), context, initializer=_connect, initargs=(queue,)
    )
    try:
        waiting: dict[Future[dict[str, Any]], TrainingRecipe] = {
            executor.submit(_train_in_worker, recipe): recipe for recipe in missing
        }
        while waiting:
            done, _ = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            report()
            for future in done:
                name = waiting.pop(future).model.id
                error = future.exception()
                if error is None:
                    records[name] = future.result()
                else:
                    failures[name] = f"{type(error).__name__}: {error}"
    except BaseException:
        # interrupted: half-trained models would be waited for, and still start over next time
        for process in list(executor._processes.values()):
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        report()
        queue.close()
    if failures:
        listing = "\n".join(f"  {name}: {why}" for name, why in failures.items())
        raise ModelError(
            f"{len(failures)} of {len(missing)} models could not be trained; the others are "
            f"done, and a new run trains only these:\n{listing}"
        )
    return records


def _expected_work(recipe: TrainingRecipe) -> float:
    """Guess relative training time, so that the longest start first."""
    width = recipe.model.metadata.get("width", 1)
    return recipe.options.steps * (float(width) if isinstance(width, int | float) else 1.0)


_queue: Any = None  # of a worker process


def _connect(queue: Any) -> None:
    global _queue
    _queue = queue


def _train_in_worker(recipe: TrainingRecipe) -> dict[str, Any]:
    last = recipe.options.steps

    def progress(step: int) -> None:
        if step % _REPORT_EVERY == 0 or step == last:
            _queue.put(Progress(recipe.model.id, step, last))

    return train(recipe, progress=progress)
