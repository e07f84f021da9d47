"""Stage: extract the activations that are missing from the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster import Device
from pipeline.cluster.workers import report_progress
from pipeline.config.model import Checkpoint, ModelSpec
from pipeline.encoder import in_training_order
from pipeline.errors import LostError, ModelError
from pipeline.extraction.allocator import own_pages
from pipeline.extraction.weights import weights_identity
from pipeline.measures.footprint import SINGLE
from pipeline.modality import modality_of
from pipeline.schema import rows_per_chunk
from pipeline.sources import packages
from pipeline.stimuli import SourceSpec, StimulusTable, open_stimuli
from pipeline.stimuli.ids import hex_ids
from pipeline.store.activations import TowerGroup
from pipeline.store.io.lease import StoreRef
from pipeline.store.writer import StoreWriter
from pipeline.types import Block, Weights
from pipeline.workflow.budgets import Cost
from pipeline.workflow.context import Context
from pipeline.workflow.models import (
    ModelPlan,
    step_of,
    stored_encoders,
)
from pipeline.workflow.stages.stage import Failure, Stage, StageTask, stage_task

DECODED = 256 * 2**20
"""Bytes of a worker's cache of decoded images."""


class Extract(Stage[list[ModelPlan]]):
    """One task per model: its missing checkpoints, one after the other."""

    name = "extract"
    unit = "stimuli"
    counted = "models"
    worker_baseline = 2**30
    """Measured with torch, timm and open_clip imported."""
    leaves_memory = True  # decoded images

    def pending(self, ctx: Context) -> list[ModelPlan]:
        """Return the models with missing activations or changed metadata."""
        return [m for m in ctx.models if m.missing or m.metadata_changed]

    def tasks(self, ctx: Context, pending: list[ModelPlan]) -> Iterator[StageTask]:
        """Yield one task per model, with absolute paths: workers may run in another folder."""
        settings, stimuli = ctx.workflow.extract, ctx.workflow.stimuli
        for model in pending:
            if model.missing:
                yield extract_task(
                    model, ctx.stimuli, stimuli, settings.batch_size, settings.device
                )

    def create(self, ctx: Context, pending: list[ModelPlan]) -> None:
        """Write the stimuli, and create or grow the groups of every model."""
        ctx.writer.write_stimuli(ctx.stimuli)
        for model in ctx.models:
            create_towers(ctx.writer, model, ctx.stimuli)

    def collect(
        self, ctx: Context, pending: list[ModelPlan], task: StageTask, result: dict[str, str]
    ) -> Iterator[Failure]:
        """Yield the checkpoints that failed."""
        model = task.name.removeprefix("extract ")
        yield from (Failure(f"{model}@{label}", why) for label, why in result.items())

    def finish(self, ctx: Context, pending: list[ModelPlan]) -> None:
        """Restrict the later stages to the encoders that are in the store now."""
        if not pending:
            return
        ctx.set_encoders(
            [
                encoder
                for model in ctx.models
                for tower in model.spec.towers
                for encoder in stored_encoders(ctx.store, model, tower, ctx.stimuli)
            ]
        )

    def summary(self, ctx: Context, pending: list[ModelPlan]) -> tuple[int, int]:
        """Count models."""
        return sum(bool(m.missing) for m in ctx.models), len(ctx.models)

    def remedy(self, ctx: Context) -> str:
        """Name the batch size."""
        return f"Lower extract.batch_size (now {ctx.workflow.extract.batch_size})"


def extract_task(
    model: ModelPlan, stimuli: StimulusTable, spec: SourceSpec, batch_size: int, device: Device
) -> StageTask:
    """Return the task that extracts a model's missing activations."""
    job = ExtractJob(
        spec.absolute(),
        stimuli.key,
        model.spec.absolute(),
        {label: model.checkpoints[label].absolute() for label in model.missing},
        model.missing,
        batch_size,
        device,
    )
    return stage_task(
        f"extract {model.spec.id}",
        extract_job,
        job,
        estimate=extract_cost(model, stimuli, batch_size, device),
        size=job.n_stimuli,
        device=device,
    )


def extract_cost(model: ModelPlan, stimuli: StimulusTable, batch_size: int, device: Device) -> Cost:
    """Estimate the cost of extracting one model: loading, forward passes, pooled outputs."""
    n = len(stimuli)
    assert model.towers is not None
    towers = [model.towers[t] for t in {t for ts in model.missing.values() for t in ts}]
    weights = max(t.weight_bytes for t in towers)
    files = [_file_bytes(model.checkpoints[label].file, weights) for label in model.missing]
    published = any(model.checkpoints[label].file is None for label in model.missing)
    rows = rows_per_chunk(n)
    batch = min(batch_size, rows)
    forward = 0.0 if device == "cuda" else max(batch * t.working_bytes for t in towers)
    inputs = max(t.input_bytes for t in towers)
    decoded = min(sum(n * t.input_bytes for t in towers), DECODED)
    pooled = max(SINGLE * (3 * rows * sum(t.widths) + 2 * rows * max(t.widths)) for t in towers)
    # weights are in memory twice while loading, as read from the file and in the model; the model
    # of the previous checkpoint is released only after the next one is loaded
    loading = max(files, default=0.0) + (weights if published and len(model.missing) > 1 else 0.0)
    return Cost(
        model.flops(n),
        sum(files),
        model.bytes_to_write(n) + model.n_missing,
        # an image is in memory as a file, decoded, and resized
        weights + max(loading, forward + 2.0 * batch * inputs) + pooled + 3.0 * stimuli.item_bytes,
        decoded + stimuli.resident_bytes,
    )


def _file_bytes(file: str | None, weights: float) -> float:
    """Return the bytes of a checkpoint file, or of the model's weights if it does not exist yet."""
    if file is not None and Path(file).is_file():
        return float(Path(file).stat().st_size)
    return weights


def create_towers(store: StoreWriter, model: ModelPlan, stimuli: StimulusTable) -> None:
    """Create or grow the groups of one model. Driver only."""
    spec = model.spec
    steps = {label: step_of(c) for label, c in model.checkpoints.items()}
    for tower in spec.towers:
        if model.replace:
            store.drop_tower(stimuli.key, spec.id, tower)
        group = store.tower(stimuli.key, spec.id, tower)
        group = group or _create(store, model, tower, stimuli)
        if model.metadata_changed:
            group.update_metadata(model.metadata)
        rows: dict[str, tuple[int, Weights]] = {}
        for label in in_training_order(steps.items()):
            checkpoint = model.checkpoints[label]
            if label not in group.checkpoints:
                rows[label] = (steps[label], weights_identity(spec, checkpoint))
            elif not group.complete[group.checkpoints.index(label)].any():
                # an earlier attempt failed: the file may have been replaced since
                known = group.weights(label)
                current = weights_identity(spec, checkpoint, known)
                if current != known:
                    group.replace_weights(label, current)
        group.add_checkpoints(rows)


def _create(store: StoreWriter, model: ModelPlan, tower: str, stimuli: StimulusTable) -> TowerGroup:
    from importlib.metadata import version

    assert model.towers is not None
    info, spec = model.towers[tower], model.spec
    return store.create_tower(
        stimuli.key,
        spec.id,
        tower,
        stimulus_ids=hex_ids(stimuli.ids(modality_of(tower))),
        layers=dict(zip(info.layers, info.widths, strict=True)),
        attributes={
            **model.metadata,
            "model": spec.id,
            "tower": tower,
            "recipe": spec.recipe,
            "recipe_digest": spec.recipe_digest,
            "n_parameters": info.n_parameters,
            "n_embedding_parameters": info.n_embedding_parameters,
            "flops": info.flops,
            "pooling": info.pooling,
            "preprocessing": info.preprocessing,
            "stimuli_fingerprint": stimuli.fingerprint_of(modality_of(tower)),
            "versions": {name: version(name) for name in ("consilience", *packages())},
        },
    )


@dataclass(frozen=True)
class ExtractJob:
    """What a worker needs to extract one model: specs, not the model itself."""

    stimuli: SourceSpec
    set_key: str
    spec: ModelSpec
    checkpoints: Mapping[str, Checkpoint]
    missing: Mapping[str, Mapping[str, Sequence[Block]]]
    batch_size: int
    device: Device

    @property
    def n_stimuli(self) -> int:
        """Number of forward passes: stimuli, summed over checkpoints and towers."""
        return sum(
            stop - start
            for towers in self.missing.values()
            for blocks in towers.values()
            for start, stop in blocks
        )


def _check_loaded(spec: ModelSpec, label: str, checkpoint: Checkpoint, group: TowerGroup) -> None:
    """Raise if the weights just loaded may differ from those recorded in the store."""
    stored = group.weights(label)
    if weights_identity(spec, checkpoint, stored).digest != stored.digest:
        raise ModelError(
            f"model {spec.id}, checkpoint {label}: its weights changed during the run. "
            "Run again once the file is complete."
        )


def extract_job(store: StoreRef, job: ExtractJob) -> dict[str, str]:
    """Extract one model on a worker; return checkpoint → error of those that failed."""
    with own_pages():
        return _extract(store, job)


def _extract(store: StoreRef, job: ExtractJob) -> dict[str, str]:
    import torch

    from pipeline.extraction.extract import extract
    from pipeline.extraction.torch_source import load_checkpoint, load_weights, torch_source

    device = job.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    writer = StoreWriter(store.place, lease=store.lease_check())
    stimuli = open_stimuli(job.stimuli, writer.stimulus_rows(job.set_key))
    errors: dict[str, str] = {}
    done = 0
    source, model = torch_source(job.spec.source), None
    for label, towers in job.missing.items():
        try:
            checkpoint = job.checkpoints[label]
            if model is not None and checkpoint.file is not None:
                load_weights(source, job.spec, model, checkpoint)  # every weight, or raises
            else:
                model = load_checkpoint(source, job.spec, checkpoint).to(device)
            for tower, blocks in towers.items():
                group = writer.tower(job.set_key, job.spec.id, tower)
                assert group is not None
                _check_loaded(job.spec, label, checkpoint, group)
                for block, values in extract(
                    job.spec,
                    model,
                    tower,
                    stimuli,
                    blocks,
                    batch_size=job.batch_size,
                    device=device,
                ):
                    group.write_block(label, block, {n: values[n] for n in group.layers})
                    done += block[1] - block[0]
                    report_progress(done)
        except ModelError as error:
            errors[label] = str(error)
        except LostError:
            raise
        except Exception as error:
            # hub clients, image and tokenizer libraries raise all kinds of errors: only this
            # checkpoint fails, and the message names its model
            errors[label] = (
                f"model {job.spec.id}, checkpoint {label}: {type(error).__name__}: {error}"
            )
    return errors
