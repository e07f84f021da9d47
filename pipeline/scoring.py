"""Score one's own model against stored encoders: arrays in, labelled scores out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.encoder import Encoder
from pipeline.errors import InputError
from pipeline.types import Float32

if TYPE_CHECKING:
    import xarray as xr

    from pipeline.measures import MeasureSpec


def select_layers(
    layers: Mapping[str, ArrayLike],
    stimulus: Sequence[str],
    compared: Sequence[str],
    *,
    may_repeat: bool = False,
) -> dict[str, NDArray[Any]]:
    """Return the rows of each layer that belong to the stimuli compared, in their order.

    Parameters
    ----------
    layers
        Layer name → activations `(n, features)`.
    stimulus
        The n ids of the rows, in any order.
    compared
        Ids of the stimuli that the store compares.
    may_repeat
        Whether an id may be given more than once, as that of a caption, or of an image that the
        set has twice: then its first row counts.

    Raises
    ------
    InputError
        Where there is no layer, ids are missing or repeated, or an array does not fit the ids or
        has values that are not finite.
    """
    from pipeline.measures.checks import checked_array

    rows = _rows_of(stimulus, compared, may_repeat)
    if not layers:
        raise InputError("no layer was given: pass {'name': activations}.")
    found = {}
    for name, values in layers.items():
        array = np.asarray(values)
        if array.ndim != 2 or len(array) != len(stimulus):
            raise InputError(
                f"layer {name!r}: expected shape ({len(stimulus)}, features), one row per "
                f"stimulus id, got {array.shape}."
            )
        found[name] = checked_array(array[rows], name)
    return found


def score_layers(
    layers: Mapping[str, NDArray[Any]],
    stored: Iterable[tuple[Encoder, Sequence[Float32]]],
    label: str,
    spec: MeasureSpec,
) -> xr.Dataset:
    """Compare layers with those of stored encoders, on the same stimuli.

    Parameters
    ----------
    layers
        Layer name → activations `(stimulus, feature)`, as `select_layers` returns them.
    stored
        Encoders with the activations of their layers. Read one after the other; all are held as
        prepared for the measure.
    label, spec
        The measure.

    Returns
    -------
    xarray.Dataset
        As `Store.score` returns it.
    """
    import xarray as xr

    from pipeline.calibration import best_pair
    from pipeline.measures import clip_thresholds, prepare, score_pairs

    clip = clip_thresholds(partial(iter, layers.values()), [spec])
    xs = [prepare(array, [spec], name=name, clip=clip) for name, array in layers.items()]
    chosen: list[Encoder] = []
    ys = []
    for encoder, arrays in stored:
        chosen.append(encoder)
        clip = clip_thresholds(partial(iter, arrays), [spec])
        ys += [prepare(array, [spec], clip=clip) for array in arrays]
    values = score_pairs(xs, ys, {label: spec})[label].values
    owner = np.repeat(np.arange(len(chosen)), [len(e.layers) for e in chosen])
    best = [best_pair(values[:, owner == k]) for k in range(len(chosen))]
    defined = [b.layer_x >= 0 for b in best]
    own_layers = [list(layers)[b.layer_x] if d else "" for b, d in zip(best, defined, strict=True)]
    best_layers = [
        e.layers[b.layer_y] if d else "" for e, b, d in zip(chosen, best, defined, strict=True)
    ]
    return xr.Dataset(
        {
            "score": (("layer", "representation"), values),
            "alignment": (("encoder",), [b.score for b in best]),
            "own_layer": (("encoder",), own_layers),
            "best_layer": (("encoder",), best_layers),
        },
        coords={
            "layer": list(layers),
            "representation": [r for e in chosen for r in e.representations],
            "encoder": [e.id for e in chosen],
        },
        attrs={**spec.conventions(), "n_stimuli": len(next(iter(layers.values())))},
    )


def _rows_of(given: Sequence[str], wanted: Sequence[str], may_repeat: bool) -> NDArray[np.int64]:
    """Return the position of each wanted id among the given."""
    at = {g: i for i, g in reversed([*enumerate(given)])}
    if len(at) != len(given) and not may_repeat:
        twice = next(g for i, g in enumerate(given) if at[g] != i)
        raise InputError(
            f"stimulus id {twice} is given more than once: give each row once, since duplicates "
            "would be each other's nearest neighbours."
        )
    missing = [w for w in wanted if w not in at]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(wanted)} stimuli that the store compares are not among "
            f"the given ids, first {missing[0]}. Run your model on all of store.stimuli()."
        )
    return np.array([at[w] for w in wanted], dtype=np.int64)
