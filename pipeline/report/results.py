"""What a report is made from: the final datasets of one subset, and the pairs in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import ANALYSES
from pipeline.analysis.competence import FOLDS
from pipeline.errors import InputError
from pipeline.types import Float64, Mask

if TYPE_CHECKING:
    import xarray as xr

    from pipeline.store import Store
    from pipeline.store.catalog import StoredCheckpoint


PROBE_NEEDS = f"labels, and at least {FOLDS} stimuli of each class"
ALWAYS = ("alignment", "convergence")
"""Final datasets that every report reads."""


@dataclass(frozen=True)
class Results:
    """The final datasets of every measure of one subset.

    Attributes
    ----------
    key
        The subset's key in the store.
    datasets
        Name of a final dataset → label of a measure → dataset. All have the same labels, and
        `alignment` and `convergence` are among them.
    unfinished
        Labels that were compared but some of whose final datasets are missing.
    outdated
        Label → why its scores or their calibration cannot be used, and the remedy.
    """

    store: Store
    key: str
    datasets: Mapping[str, Mapping[str, xr.Dataset]]
    unfinished: tuple[str, ...] = ()
    outdated: Mapping[str, str] = field(default_factory=dict)

    @property
    def alignment(self) -> Mapping[str, xr.Dataset]:
        """Label → alignment of encoders."""
        return self.datasets["alignment"]

    @property
    def convergence(self) -> Mapping[str, xr.Dataset]:
        """Label → trends and means over training, of all modalities."""
        return self.datasets["convergence"]

    @property
    def labels(self) -> list[str]:
        """Labels of the measures, sorted."""
        return list(self.alignment)

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """What is recorded about the subset: kind, set, fingerprint, n_stimuli."""
        return self.store.subset_metadata(self.key)

    @property
    def set_key(self) -> str:
        """Key of the stimulus set."""
        return str(self.metadata["set"])

    @cached_property
    def stimuli(self) -> Mapping[str, Any]:
        """What is recorded about the stimulus set; nothing if the store has lost it."""
        sets = self.store.sets
        return self.store.set_metadata(self.set_key) if self.set_key in sets else {}

    @cached_property
    def checkpoints(self) -> Mapping[tuple[str, str], Sequence[StoredCheckpoint]]:
        """(model, modality) → the checkpoints that were to be extracted, in training order."""
        return self.store.checkpoints(self.set_key)

    def diagnostics(self, label: str) -> list[xr.Dataset]:
        """Return per-representation diagnostics, as `Store.diagnostics`."""
        return self.store.diagnostics(label, self.key)


def load_results(store: Store, subset: str | None = None, names: Sequence[str] = ALWAYS) -> Results:
    """Read the final datasets of a subset.

    Parameters
    ----------
    subset
        Its key; may be omitted if the store has only one subset.
    names
        Names of the final datasets, those of `ALWAYS` among them.

    Raises
    ------
    InputError
        If there is no such subset, it is ambiguous, or none of its results can be used.
    """
    labels = store.labels(subset)  # refuses an unknown or ambiguous subset
    key = store.subset(subset)
    done = [set(store.dataset_labels(name, key)) for name in names]
    made = [label for label in labels if all(label in found for found in done)]
    faults = {label: why for label in made if (why := _fault(store, key, label, names))}
    ready = [label for label in made if label not in faults]
    if faults and not ready:
        raise InputError(
            f"{store.path}: no alignment on subset {key} can be used: {' '.join(faults.values())}"
        )
    if not ready:
        raise InputError(
            f"{store.path}: nothing has been aggregated on subset {key} yet, so there is nothing "
            "to report. `consilience run WORKFLOW` computes what is missing."
        )
    return Results(
        store,
        key,
        {name: {label: store.dataset(name, label, key) for label in ready} for name in names},
        tuple(label for label in labels if label not in made),
        faults,
    )


def _fault(store: Store, key: str, label: str, names: Sequence[str]) -> str:
    """Say why a measure's results cannot be used, and the remedy; empty if they can."""
    try:
        store.measure(label, key)
    except InputError as error:
        return f"{error}."
    for analysis in ANALYSES:
        if analysis.name not in names:
            continue
        if why := analysis.fault(store.dataset_metadata(analysis.name, label, key)):
            return f"{label}, because {why}. Run a workflow that compares by it to recompute it."
    return ""


def text(dataset: xr.Dataset, name: str) -> NDArray[np.str_]:
    """Return a column of strings, whichever of numpy's string types it was read as."""
    return np.array([str(value) for value in dataset[name].values], dtype=str)


def encoder_mask(alignment: xr.Dataset, condition: str, modality: str) -> Mask:
    """Return which encoders are `final`, or `init`, and of a modality."""
    chosen = alignment["final_x" if condition == "final" else "initial_x"].values.astype(bool)
    return np.asarray(chosen & (text(alignment, "modality_x") == modality))


def pair_values(alignment: xr.Dataset, name: str, rows: Mask, columns: Mask) -> Float64:
    """Return a variable among the chosen encoders; NaN for pairs of related models."""
    unrelated = ~alignment["related"].values.astype(bool)
    values = np.where(unrelated, alignment[name].values, np.nan)
    return np.asarray(values[np.ix_(rows, columns)], dtype=np.float64)


def is_calibrated(alignment: xr.Dataset) -> bool:
    """Whether any pair of encoders has a calibrated score."""
    return bool(np.isfinite(alignment["calibrated"].values).any())


@dataclass(frozen=True)
class NullSummary:
    """How the nulls of one measure were estimated, as its alignment dataset records."""

    method: str
    n_permutations: int
    """Permutations, or draws, per pair."""
    alpha: float
    seed: int
    n_pairs: int
    """Unordered pairs of encoders that were calibrated."""
    n_permuted: int
    """Calibrated pairs whose null was estimated by permutation."""

    @property
    def flagged(self) -> int:
        """Pairs that were permuted because their moments do not determine the null."""
        return self.n_permuted if self.method == "analytic" else 0


def null_summary(alignment: xr.Dataset) -> NullSummary | None:
    """Return how the scores of a measure were calibrated; None if they were not."""
    if not is_calibrated(alignment):
        return None
    about = alignment.attrs
    tested, permuted = np.isfinite(alignment["p"].values), alignment["permuted"].values
    pairs = np.triu(tested | tested.T, 1)
    return NullSummary(
        str(about["method"]),
        int(about["n_permutations"]),
        float(about["alpha"]),
        int(about["permutation_seed"]),
        int(pairs.sum()),
        int((pairs & (permuted | permuted.T)).sum()),
    )


def value_names(alignment: xr.Dataset) -> dict[str, str]:
    """Return `raw` and, if there is any, `calibrated` → variable of an alignment dataset."""
    return {"raw": "score", **({"calibrated": "calibrated"} if is_calibrated(alignment) else {})}


def stages(alignment: xr.Dataset, convergence: xr.Dataset, modality: str) -> list[str]:
    """Return the stages of training at which something was measured, each set of encoders once.

    Parameters
    ----------
    convergence
        Of this modality.
    """
    mine = text(alignment, "modality_x") == modality
    step, final = alignment["step_x"].values[mine], alignment["final_x"].values[mine]
    n_pairs = convergence["n_pairs_stage"].values.max(axis=1)
    known = (n_pairs > 0) | np.isfinite(convergence["to_final"].values)
    names = text(convergence, "stage")
    # where all models end at one step, that step and the end are the same encoders
    ends = {f"step {s}" for s in np.unique(step) if ((step == s) == final).all()}
    return [str(n) for n, k in zip(names, known, strict=True) if k and n not in ends]


def has_accuracy(
    results: Results, modality: str | None = None, names: Sequence[str] = ("probe_accuracy",)
) -> bool:
    """Return whether an accuracy of any encoder, or of any of a modality, is in the store."""
    for alignment in results.alignment.values():
        mine = (modality is None) | (text(alignment, "modality_x") == modality)
        if any((np.isfinite(alignment[f"{name}_x"].values) & mine).any() for name in names):
            return True
    return False


def no_accuracy(results: Results, modality: str) -> str:
    """Say that there is no probe accuracy, the beginning of a sentence."""
    if has_accuracy(results):
        return f"No probe accuracy of {modality} towers is in the store"
    return f"No probe accuracy is in the store (it needs {PROBE_NEEDS})"
