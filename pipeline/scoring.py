"""A person's own model against the encoders of a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputError
from pipeline.store.activations import TowerGroup

if TYPE_CHECKING:
    import xarray as xr

    from pipeline.measures import MeasureSpec, Prepared
    from pipeline.store.store import Store


def score(
    store: Store,
    layers: Mapping[str, ArrayLike],
    stimulus: Sequence[str] | NDArray[Any],
    measure: str,
    *,
    encoders: str | Iterable[str] = "final",
    subset: str | None = None,
) -> xr.Dataset:
    """Compare one's own layers with stored encoders; see `Store.score`."""
    import xarray as xr

    from pipeline.calibration import best_pair
    from pipeline.measures import clip_thresholds, prepare, score_pairs

    spec = store.measure(measure, subset)
    key = store.subset(subset)
    set_key = str(store.group(f"measures/{key}").attrs["set"])
    rows = store.rows(key)
    wanted = store.stimuli(set_key)["stimulus"].values[rows]
    own = _rows_of([str(s) for s in stimulus], [str(w) for w in wanted])
    xs = _prepared(layers, len(stimulus), own, spec)
    chosen = store.image_encoders(encoders, set_key)
    ys = []
    for e in chosen:
        tower = TowerGroup(store.group(e.path))
        arrays = [tower.read(e.checkpoint, layer, rows) for layer in e.layers]
        clip = clip_thresholds(partial(iter, arrays), [spec])
        ys += [prepare(array, [spec], clip=clip) for array in arrays]
    values = score_pairs(xs, ys, {measure: spec})[measure].values
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
        attrs={**spec.conventions(), "n_stimuli": len(rows)},
    )


def _prepared(
    layers: Mapping[str, ArrayLike],
    n: int,
    rows: NDArray[np.int64],
    spec: MeasureSpec,
) -> list[Prepared]:
    from pipeline.measures import clip_thresholds, prepare
    from pipeline.measures.checks import checked_array

    if not layers:
        raise InputError("no layer was given: pass {'name': activations}.")
    found = {}
    for name, values in layers.items():
        array = np.asarray(values)
        if array.ndim != 2 or len(array) != n:
            raise InputError(
                f"layer {name!r}: expected shape ({n}, features), one row per stimulus id, got "
                f"{array.shape}."
            )
        found[name] = checked_array(array[rows], name)
    clip = clip_thresholds(partial(iter, found.values()), [spec])
    return [prepare(array, [spec], name=name, clip=clip) for name, array in found.items()]


def _rows_of(given: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """Return where each wanted id stands among the given."""
    at = {g: i for i, g in enumerate(given)}
    if len(at) != len(given):
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
