"""Every variable of the store, with dimensions, dtype and prose; declared once, validated on entry.

Plain records: nothing here imports zarr, xarray or torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

FORMAT = "consilience"
FORMAT_VERSION = 2


class State(IntEnum):
    """State of one stored result."""

    MISSING = 0
    DONE = 1
    UNDEFINED = 2
    FAILED = 3


class Slot(IntEnum):
    """State of one slot of a growing axis."""

    FREE = 0
    LIVE = 1
    RETIRED = 2


@dataclass(frozen=True)
class Variable:
    """One variable: name, dimensions, dtype, fill value, prose."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    description: str
    fill: Any = None
    attributes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Of the array, besides its description."""

    @property
    def fill_value(self) -> Any:
        """What an element reads as before it is written."""
        if self.fill is not None:
            return self.fill
        return {"f": float("nan"), "s": "", "b": False}.get(self.dtype[0], 0)


def _table(*variables: Variable) -> dict[str, Variable]:
    return {v.name: v for v in variables}


LOG = Variable("log", ("run",), "uint8", "Empty; the logs of runs are files in its folder.")

STIMULI = _table(
    Variable("stimulus", ("stimulus",), "str", "Content id of the image, else caption or array."),
    Variable("image_id", ("stimulus",), "str", "Content id of the image; empty if there is none."),
    Variable("caption_id", ("stimulus",), "str", "Content id of the caption; empty if none."),
    Variable("array_id", ("stimulus",), "str", "Content id of the array; empty if there is none."),
    Variable("caption", ("stimulus",), "str", "Caption."),
    Variable("label", ("stimulus",), "int64", "Class number."),
    Variable("label_name", ("stimulus",), "str", "Class name."),
    Variable("group", ("stimulus",), "str", "Group, such as a subject or a site."),
    Variable("id", ("stimulus",), "str", "Id in the manifest."),
    Variable("path", ("stimulus",), "str", "Path of the file, below its folder or in its shard."),
    Variable("row", ("stimulus",), "int64", "Row in the source."),
    Variable("shard", ("stimulus",), "int64", "Number of the shard that holds it, from 0."),
    Variable("offset", ("stimulus",), "int64", "Where in the shard it begins, in bytes."),
    Variable("bytes", ("stimulus",), "int64", "Size of the file in bytes."),
    Variable("mtime_ns", ("stimulus",), "int64", "Modification time of the file, ns since 1970."),
    Variable("ctime_ns", ("stimulus",), "int64", "Time of the file's last change, ns since 1970."),
    Variable("image_width", ("stimulus",), "int64", "Width of the upright image in pixels."),
    Variable("image_height", ("stimulus",), "int64", "Height of the upright image in pixels."),
    Variable("image", ("stimulus", "height", "width", "channel"), "uint8", "Pixels, 0 to 255."),
)
_COLUMN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")


def id_variable(modality: str) -> str:
    """Return the variable of a modality's content ids; if not stored, `stimulus` has them."""
    return {"text": "caption_id"}.get(modality, f"{modality}_id")


def id_column(attributes: Mapping[str, Any], modality: str) -> str:
    """Return the stored variable with the content ids of a modality, by the attributes of a set."""
    name = id_variable(modality)
    return name if name in attributes["variables"] else "stimulus"


def is_column_name(name: str) -> bool:
    """Whether the store can keep a source's own column under this name."""
    reserved = (*STIMULI, "c", "zarr.json", "height", "width", "channel")
    return bool(_COLUMN_NAME.fullmatch(name)) and name not in reserved


def own_column(name: str, dtype: str) -> Variable:
    """Return the variable of a source's own column."""
    return Variable(name, ("stimulus",), dtype, "Column of the source.")


SUBSET = _table(Variable("row", ("stimulus",), "int64", "Row of the base set."))

ACTIVATIONS = _table(
    Variable("stimulus", ("stimulus",), "str", "Content id of what the tower sees."),
    Variable("checkpoint", ("checkpoint",), "str", "Label of the checkpoint."),
    Variable(
        "step",
        ("checkpoint",),
        "int64",
        "Training step, 0 at initialisation; -1 where unknown.",
        fill=-1,
    ),
    Variable(
        "weights_digest",
        ("checkpoint",),
        "str",
        "Identity of the weights: sha256 of the file, a seed, or a hub commit.",
    ),
    Variable(
        "weights_size", ("checkpoint",), "int64", "Bytes of the weights file; -1 if none.", fill=-1
    ),
    Variable(
        "weights_mtime_ns",
        ("checkpoint",),
        "int64",
        "Modification time of the weights file in nanoseconds; -1 if none.",
        fill=-1,
    ),
    Variable(
        "complete",
        ("checkpoint", "block"),
        "uint8",
        "1 once every layer of this block of stimuli is written.",
    ),
)


def layer_variable(layer: str, index: int) -> Variable:
    """Declare the activations of one layer, the `index`-th from the input."""
    return Variable(
        layer,
        ("checkpoint", "stimulus", f"feature_{layer}"),
        "float32",
        f"Pooled activations of {layer}.",
        attributes={"layer_index": index},
    )


SIMILARITY_GRID = _table(
    Variable("slot", ("representation",), "uint8", "0 free, 1 live, 2 retired."),
    Variable("representation", ("representation",), "str", "MODEL@CHECKPOINT#TOWER/LAYER."),
    Variable(
        "activations_digest",
        ("representation",),
        "str",
        "Identity of the activations that were compared.",
    ),
    Variable(
        "n_ties",
        ("representation",),
        "int64",
        "Stimuli whose neighbours tie for the last places, or in order; -1 without neighbours.",
        fill=-1,
    ),
    Variable(
        "clip",
        ("representation",),
        "float64",
        "Magnitude at which a preset clipped its encoder's layers; NaN without one.",
    ),
    Variable("score", ("representation_x", "representation_y"), "float32", "Raw similarity."),
    Variable(
        "state",
        ("representation_x", "representation_y"),
        "uint8",
        "0 missing, 1 done, 2 undefined, 3 failed.",
    ),
)

CALIBRATION = _table(
    Variable("slot", ("encoder",), "uint8", "0 free, 1 live, 2 retired."),
    Variable("encoder", ("encoder",), "str", "MODEL@CHECKPOINT#TOWER."),
    Variable(
        "activations_digest", ("encoder",), "str", "Identity of the activations that were compared."
    ),
    Variable(
        "null",
        ("aggregate", "encoder_x", "encoder_y", "permutation"),
        "float32",
        "Layer-aggregated similarity when the stimuli of encoder_y do not correspond.",
    ),
    Variable(
        "permuted",
        ("encoder_x", "encoder_y"),
        "uint8",
        "1 if the null was estimated by permutation, 0 if sampled from moments.",
    ),
    Variable(
        "state", ("encoder_x", "encoder_y"), "uint8", "0 missing, 1 done, 2 undefined, 3 failed."
    ),
)

ANALYTIC_CALIBRATION = CALIBRATION | _table(
    Variable(
        "tail",
        ("encoder_x", "encoder_y"),
        "float64",
        "Upper bound, from exact moments, of the probability that the best layer pair scores as "
        "high as observed by chance; NaN if the null was estimated by permutation.",
    ),
)
"""Of nulls that are sampled from moments."""

ALIGNMENT = _table(
    Variable("encoder_x", ("encoder_x",), "str", "MODEL@CHECKPOINT#TOWER."),
    Variable("encoder_y", ("encoder_y",), "str", "MODEL@CHECKPOINT#TOWER."),
    Variable(
        "score", ("encoder_x", "encoder_y"), "float64", "Similarity of the best pair of layers."
    ),
    Variable(
        "layer_x",
        ("encoder_x", "encoder_y"),
        "int64",
        "Index of encoder_x's layer in the best pair; -1 where not compared.",
        fill=-1,
    ),
    Variable(
        "layer_y",
        ("encoder_x", "encoder_y"),
        "int64",
        "Index of encoder_y's layer in the best pair; -1 where not compared.",
        fill=-1,
    ),
    Variable("mean", ("encoder_x", "encoder_y"), "float64", "Mean similarity over layer pairs."),
    Variable(
        "matched",
        ("encoder_x", "encoder_y"),
        "float64",
        "Mean similarity of layers at equal relative depth.",
    ),
    Variable(
        "threshold",
        ("encoder_x", "encoder_y"),
        "float64",
        "Critical value of the best-layer score at level alpha under the null.",
    ),
    Variable(
        "calibrated",
        ("encoder_x", "encoder_y"),
        "float64",
        "(score - threshold) / (1 - threshold), clipped to [0, 1].",
    ),
    Variable(
        "calibrated_mean",
        ("encoder_x", "encoder_y"),
        "float64",
        "The mean over layer pairs, calibrated the same way.",
    ),
    Variable(
        "p",
        ("encoder_x", "encoder_y"),
        "float64",
        "Probability of so high a best-layer score when stimuli do not correspond: a share of the "
        "null's n_permutations values and the score itself; where it is lower than these can tell, "
        "an upper bound from the moments of the null.",
    ),
    Variable(
        "q",
        ("encoder_x", "encoder_y"),
        "float64",
        "p adjusted over the pairs of this dataset (Benjamini-Hochberg).",
    ),
    Variable(
        "permuted",
        ("encoder_x", "encoder_y"),
        "bool",
        "Whether the null was estimated by permutation, not sampled from moments.",
    ),
    Variable(
        "related",
        ("encoder_x", "encoder_y"),
        "bool",
        "Not trained independently: one model, the same weights, or declared as related.",
    ),
    Variable("n_stimuli", ("encoder_x", "encoder_y"), "int64", "Rows the pair was compared on."),
)

ENCODER = _table(
    Variable("model", ("encoder",), "str", "Model id."),
    Variable("checkpoint", ("encoder",), "str", "Checkpoint label."),
    Variable("tower", ("encoder",), "str", "Tower of the model."),
    Variable("modality", ("encoder",), "str", "What the tower takes: image or text."),
    Variable("family", ("encoder",), "str", "Family of the model."),
    Variable("step", ("encoder",), "int64", "Training step; -1 where unknown.", fill=-1),
    Variable("initial", ("encoder",), "bool", "At initialisation."),
    Variable("final", ("encoder",), "bool", "The last checkpoint of its model."),
    Variable(
        "n_parameters",
        ("encoder",),
        "float64",
        "Parameters of the tower without classifier head and token embeddings.",
    ),
    Variable(
        "flops",
        ("encoder",),
        "float64",
        "Floating-point operations of a forward pass for one stimulus.",
    ),
    Variable(
        "samples_seen",
        ("encoder",),
        "float64",
        "Stimuli seen in training up to this checkpoint, with repetition.",
    ),
)


def validate(dataset: xr.Dataset, table: dict[str, Variable], names: Iterable[str] = ()) -> None:
    """Check a dataset against the declared variables.

    Parameters
    ----------
    names
        Variables that must be present. Others are checked where they are.

    Raises
    ------
    InputError
        Where a variable is missing, or has other dimensions or another kind of dtype than declared;
        it names the variable, what was found and what is declared.
    """
    for name in names:
        if name not in dataset.variables:
            raise InputError(f"the dataset has no variable {name!r}: {table[name].description}")
    for key, found in dataset.variables.items():
        name = str(key)
        declared = table.get(name)
        if declared is None:
            continue
        dims = tuple(str(d) for d in found.dims)
        if dims != declared.dims:
            raise InputError(
                f"variable {name!r} has dimensions {dims}, declared are {declared.dims}."
            )
        kinds = {"s": "OTU", "f": "f", "i": "iu", "u": "iu", "b": "b"}[declared.dtype[0]]
        if found.dtype.kind not in kinds:
            raise InputError(
                f"variable {name!r} has dtype {found.dtype}, declared is {declared.dtype}."
            )
