"""Label what is stored, as xarray and pandas users expect it. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder import Encoder
from pipeline.schema import State
from pipeline.store.activations import StoredLayer, TowerGroup
from pipeline.store.choices import unique
from pipeline.store.grid import Grid
from pipeline.types import Float32, Float64

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def catalog_table(encoders: Iterable[Encoder]) -> pd.DataFrame:
    """Return one row per representation, as `Store.catalog` does."""
    import pandas as pd

    rows = []
    for encoder in encoders:
        attributes = encoder.attributes
        about = {
            "model": encoder.model,
            "checkpoint": encoder.checkpoint,
            "tower": encoder.tower,
            "step": encoder.step,
            "initial": encoder.initial,
            "final": encoder.final,
            "family": attributes.get("family"),
            "n_parameters": attributes.get("n_parameters"),
            "flops": attributes.get("flops"),
            "samples_seen": encoder.samples_seen,
            "pooling": attributes.get("pooling"),
        }
        metadata = {k: v for k, v in attributes.get("metadata", {}).items() if k not in about}
        layers = zip(encoder.layers, attributes["widths"], strict=True)
        for index, (layer, width) in enumerate(layers):
            rows.append(
                {
                    "representation": f"{encoder.id}/{layer}",
                    **about,
                    "layer": layer,
                    "layer_index": index,
                    "n_features": width,
                    **metadata,
                }
            )
    return pd.DataFrame(rows).set_index("representation") if rows else pd.DataFrame()


def activations_array(group: TowerGroup, encoder: Encoder, layer: str) -> xr.DataArray:
    """Return one representation `(stimulus, feature)`, Dask-backed, as `Store.activations` does."""
    import dask.array
    import xarray as xr

    stored = StoredLayer(group, encoder.checkpoint, layer)
    return xr.DataArray(
        # not through xarray, which reads a lost chunk as NaN
        dask.array.from_array(stored, chunks=stored.chunks, name=False),
        dims=("stimulus", "feature"),
        coords={"stimulus": group.stimulus_ids},
        name="activations",
        attrs={
            **dict(group.array(layer).attrs),
            "representation": f"{encoder.id}/{layer}",
            **{k: encoder.attributes.get(k) for k in ("pooling", "recipe_digest")},
        },
    )


def similarity_array(grids: Iterable[Grid], label: str) -> xr.DataArray:
    """Return the scores of grids in one array, without attributes, as `Store.similarity` does.

    Where several grids hold a pair, the last one counts.
    """
    import xarray as xr

    parts = [_read_grid(grid) for grid in grids]
    names = unique(n for part in parts for n in part[0])
    index = {n: i for i, n in enumerate(names)}
    score = np.full((len(names), len(names)), np.nan, np.float32)
    n_stimuli = np.zeros(score.shape, np.int64)
    for members, scores, state, n in parts:
        at = np.ix_([index[m] for m in members], [index[m] for m in members])
        done = state != State.MISSING
        score[at] = np.where(done, scores, score[at])
        n_stimuli[at] = np.where(done, n, n_stimuli[at])
    dims = ("representation_x", "representation_y")
    return xr.DataArray(
        score,
        dims=dims,
        name=label,
        coords={dims[0]: names, dims[1]: names, "n_stimuli": (dims, n_stimuli)},
    )


def _read_grid(grid: Grid) -> tuple[list[str], Float32, NDArray[np.uint8], int]:
    slots = list(grid.members.values())
    at = np.ix_(slots, slots)
    scores = grid.values("score")[at]
    return list(grid.members), scores, grid.state()[at], int(grid.attrs["n_stimuli"])


def diagnostics_dataset(grid: Grid, subset: Mapping[str, Any]) -> xr.Dataset:
    """Return per-representation diagnostics of one grid, as `Store.diagnostics` does.

    Parameters
    ----------
    subset
        What is recorded about the grid's subset.
    """
    import xarray as xr

    ties = grid.column("n_ties")[list(grid.members.values())]
    return xr.Dataset(
        {"n_ties": ("representation", ties)},
        coords={"representation": list(grid.members)},
        attrs={"kind": subset.get("kind"), "n_stimuli": grid.attrs["n_stimuli"]},
    )


def layer_scores(grids: Iterable[Grid], x: Encoder, y: Encoder) -> Float64 | None:
    """Return the scores of all pairs of layers of two encoders, as `Store.layer_scores` does.

    They are those of the first grid that holds any.
    """
    for grid in grids:
        members = grid.members
        if not all(r in members for r in (*x.representations, *y.representations)):
            continue
        rows, columns = ([members[r] for r in e.representations] for e in (x, y))
        scores, _ = grid.scores_among(rows, columns)
        if np.isfinite(scores).any():
            return scores.astype(np.float64)
    return None
