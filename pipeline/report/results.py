"""What a report is made of: the final datasets of one subset, and the pairs in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import ALIGNMENT
from pipeline.encoder import in_training_order
from pipeline.errors import InputError
from pipeline.schema import SCORE_GROUP
from pipeline.store.catalog import tower_groups
from pipeline.store.grid import Grid
from pipeline.store.layout import child_groups

if TYPE_CHECKING:
    import xarray as xr
    import zarr

    from pipeline.store import Store

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a tower, as the store knows it."""

    label: str
    step: int
    whole: bool
    """Whether it was wholly extracted."""


@dataclass(frozen=True)
class Results:
    """The alignment and convergence of every measure of one subset.

    Attributes
    ----------
    key
        The subset's key in the store.
    alignment, convergence
        Label of a measure → dataset. Both have the same labels.
    unfinished
        Labels that were compared, but not (wholly) aggregated yet.
    outdated
        Label → what is wrong with its scores or their calibration, so that these cannot be used,
        and the remedy.
    """

    store: Store
    key: str
    alignment: Mapping[str, xr.Dataset]
    convergence: Mapping[str, xr.Dataset]
    unfinished: tuple[str, ...] = ()
    outdated: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Labels of the measures, sorted."""
        return list(self.alignment)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What the store says about the subset: kind, set, fingerprint, n_stimuli."""
        return dict(self.store.root[f"measures/{self.key}"].attrs)

    @property
    def captions_key(self) -> str | None:
        """Key of the subset's distinct captions, on which text towers are compared."""
        root = self.store.root
        for key in child_groups(root, "measures"):
            about = root[f"measures/{key}"].attrs
            if key != self.key and about.get("base") == self.key:
                return key
        return None

    @cached_property
    def checkpoints(self) -> Mapping[tuple[str, str], Sequence[Checkpoint]]:
        """(model, tower) → the checkpoints that were to be extracted, in training order."""
        found = {}
        for model, tower, group in tower_groups(self.store.root, str(self.attributes["set"])):
            steps = {c: int(s) for c, s in zip(group.checkpoints, group.steps, strict=False)}
            found[model, tower] = [
                Checkpoint(label, steps[label], group.is_complete(label))
                for label in in_training_order(steps.items())
            ]
        return found

    def grids(self, label: str) -> list[Grid]:
        """Return a measure's pairwise results: on the subset, then on its distinct captions."""
        keys = [self.key, *([self.captions_key] if self.captions_key else [])]
        root = self.store.root
        paths = [f"measures/{key}/{label}" for key in keys]
        return [Grid(_group(root, path), SCORE_GROUP) for path in paths if path in root]


def _group(root: zarr.Group, path: str) -> zarr.Group:
    import zarr

    group = root[path]
    assert isinstance(group, zarr.Group)
    return group


def load_results(store: Store, subset: str | None = None) -> Results:
    """Read the final datasets of a subset.

    Parameters
    ----------
    subset
        Its key; may be left out where the store has one subset only.

    Raises
    ------
    InputError
        Where there is no such subset, it is ambiguous, or nothing has been aggregated on it that
        can be used.
    """
    labels = store.labels(subset)  # refuses an unknown or ambiguous subset
    key = store.subsets[0] if subset is None else subset
    done = {kind: set(child_groups(store.root, kind, key)) for kind in ("alignment", "convergence")}
    made = [label for label in labels if all(label in found for found in done.values())]
    faults = {label: why for label in made if (why := _fault(store, key, label))}
    ready = [label for label in made if label not in faults]
    if faults and not ready:
        raise InputError(
            f"{store.path}: no alignment on subset {key} can be used: {' '.join(faults.values())}"
        )
    if not ready:
        raise InputError(
            f"{store.path}: nothing has been aggregated on subset {key} yet, so there is nothing "
            "to report. `consilience run WORKFLOW` does what is missing."
        )
    return Results(
        store,
        key,
        {label: store.alignment(label, key) for label in ready},
        {label: store.convergence(label, key).isel(modality=0) for label in ready},
        tuple(label for label in labels if label not in made),
        faults,
    )


def _fault(store: Store, key: str, label: str) -> str:
    """Say why a measure's results cannot be used, and the remedy; empty where they can."""
    try:
        store.measure(label, key)
    except InputError as error:
        return f"{error}."
    why = ALIGNMENT.fault(_group(store.root, f"alignment/{key}/{label}").attrs)
    remedy = "A run of a workflow that compares by it makes it anew."
    return f"{label}, because {why}. {remedy}" if why else ""


def text(dataset: xr.Dataset, name: str) -> NDArray[np.str_]:
    """Return a column of strings, whichever of numpy's string types it was read as."""
    return np.array([str(value) for value in dataset[name].values], dtype=str)


def encoder_mask(alignment: xr.Dataset, condition: str, tower: str = "image") -> Mask:
    """Return which encoders are `final` or `init`, and of a tower."""
    chosen = alignment["final_x" if condition == "final" else "initial_x"].values.astype(bool)
    return np.asarray(chosen & (text(alignment, "tower_x") == tower))


def pair_values(alignment: xr.Dataset, name: str, rows: Mask, columns: Mask) -> Float:
    """Return a variable among the chosen encoders; NaN for pairs that were not trained apart."""
    apart = ~alignment["related"].values.astype(bool)
    values = np.where(apart, alignment[name].values, np.nan)
    return np.asarray(values[np.ix_(rows, columns)], dtype=np.float64)


def is_calibrated(alignment: xr.Dataset) -> bool:
    """Whether any pair of encoders has a calibrated score."""
    return bool(np.isfinite(alignment["calibrated"].values).any())


@dataclass(frozen=True)
class NullFacts:
    """How the nulls of one measure were had, by the dataset's own word."""

    method: str
    n_permutations: int
    """K, permutations or draws."""
    alpha: float
    seed: int
    n_pairs: int
    """Unordered pairs of encoders that were calibrated."""
    n_permuted: int
    """Pairs among them whose null was had by permuting stimuli."""

    @property
    def flagged(self) -> int:
        """Pairs that were permuted because moments do not determine their null."""
        return self.n_permuted if self.method == "analytic" else 0


def null_facts(alignment: xr.Dataset) -> NullFacts | None:
    """Return how the scores of a measure were calibrated; None where they were not."""
    if not is_calibrated(alignment):
        return None
    about = alignment.attrs
    tested, permuted = np.isfinite(alignment["p"].values), alignment["permuted"].values
    pairs = np.triu(tested | tested.T, 1)
    return NullFacts(
        str(about["method"]),
        int(about["n_permutations"]),
        float(about["alpha"]),
        int(about["permutation_seed"]),
        int(pairs.sum()),
        int((pairs & (permuted | permuted.T)).sum()),
    )


def value_names(alignment: xr.Dataset) -> dict[str, str]:
    """Return `raw` and, where there is one, `calibrated` → variable of an alignment dataset."""
    return {"raw": "score", **({"calibrated": "calibrated"} if is_calibrated(alignment) else {})}


def stages(alignment: xr.Dataset, convergence: xr.Dataset) -> list[str]:
    """Return the stages of training at which something was measured, each set of encoders once."""
    image = text(alignment, "tower_x") == "image"
    step, final = alignment["step_x"].values[image], alignment["final_x"].values[image]
    n_pairs = convergence["n_pairs_stage"].values.max(axis=1)
    known = (n_pairs > 0) | np.isfinite(convergence["to_final"].values)
    names = text(convergence, "stage")
    # where all models end at one step, that step and the end are the same encoders
    ends = {f"step {s}" for s in np.unique(step) if ((step == s) == final).all()}
    return [str(n) for n, k in zip(names, known, strict=True) if k and n not in ends]
