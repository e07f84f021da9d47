"""Every path in a store, relative to its root.

The folders' names are the store's format: a change of one is a new format version.
"""

from __future__ import annotations

STIMULI = "stimuli"
ACTIVATIONS = "activations"
SCORES = "measures"
NULLS = "calibration"
RUNS = "runs"
PARTS = (STIMULI, ACTIVATIONS, SCORES, NULLS, RUNS)
"""The groups that a store's root may have, besides one for each kind of final dataset."""
METADATA = "zarr.json"


def stimuli(set_key: str) -> str:
    """Return the group of a stimulus set."""
    return f"{STIMULI}/{set_key}"


def tower(set_key: str, model: str, tower: str) -> str:
    """Return the activations of one model's tower (`SOURCE/NAME` is a model) on a set."""
    return f"{ACTIVATIONS}/{set_key}/{model}/{tower}"


def tower_parts(path: str) -> tuple[str, str, str]:
    """Return set key, model and tower of a path that `tower` returned."""
    _, set_key, source, name, tower = path.split("/")
    return set_key, f"{source}/{name}", tower


def subset(subset_key: str) -> str:
    """Return the group of a subset: its rows, and the scores of each measure below."""
    return f"{SCORES}/{subset_key}"


def scores(subset_key: str, label: str) -> str:
    """Return the similarity grid of one measure on a subset."""
    return f"{subset(subset_key)}/{label}"


def null(subset_key: str, label: str, key: str) -> str:
    """Return the grid of one null; method, number of values and seed make the key."""
    return f"{NULLS}/{subset_key}/{label}/{key}"


def dataset(name: str, subset_key: str, label: str | None = None) -> str:
    """Return a final dataset: of a subset, or of one measure on it."""
    return f"{name}/{subset_key}" if label is None else f"{name}/{subset_key}/{label}"


def array(group: str, name: str) -> str:
    """Return an array of a group."""
    return f"{group}/{name}"


def metadata(path: str) -> str:
    """Return the file that describes a group or array to Zarr."""
    return f"{path}/{METADATA}"


def run_logs() -> str:
    """Return the folder of the runs' logs."""
    return f"{RUNS}/log"


def run_log(name: str) -> str:
    """Return the log of one run."""
    return f"{run_logs()}/{name}.jsonl"
