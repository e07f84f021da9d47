"""The small datasets that are read whole: stimuli, competence, alignment, convergence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zarr

from pipeline.errors import StoreError
from pipeline.store.io.chunks import DAMAGE, array_of, chunks, is_there, key_of, remedy

if TYPE_CHECKING:
    import xarray as xr


def read_dataset(group: zarr.Group) -> xr.Dataset:
    """Read a dataset into memory.

    Raises
    ------
    StoreError
        Where something of it is damaged or lost.
    """
    import xarray as xr

    lost = lost_keys(group)
    if lost:
        raise StoreError(f"{lost[0]} is lost", remedy(group.store))
    try:
        dataset = xr.open_dataset(
            group.store,  # type: ignore[arg-type]
            engine="zarr",
            group=group.path,
            chunks=None,
            consolidated=False,
        ).load()
    except DAMAGE as error:
        raise StoreError(
            f"{group.path}: stored data are damaged: {error}", remedy(group.store)
        ) from error
    # numpy's newer variable-length strings cannot be cast to its older ones: give objects
    text = {n: v.astype(object) for n, v in dataset.variables.items() if v.dtype.kind == "T"}
    dataset = dataset.assign_coords({n: v for n, v in text.items() if n in dataset.coords})
    return dataset.assign({n: v for n, v in text.items() if n not in dataset.coords})


def lost_keys(group: zarr.Group) -> list[str]:
    """Return the files that a finished dataset has had, and has no more.

    Raises
    ------
    StoreError
        Where metadata is damaged.
    """
    return [
        key_of(array, index)
        for array in variables(group)
        for index in chunks(array)
        if not is_there(array, index)
    ]


def variables(group: zarr.Group) -> list[zarr.Array[Any]]:
    """Return all arrays of a finished dataset.

    Raises
    ------
    StoreError
        Where the metadata of one are damaged or lost.
    """
    names: Any = group.attrs["variables"]
    return [array_of(group, name) for name in names]
