"""The small datasets, written whole and read whole: stimuli and the final datasets."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from pipeline.errors import StoreError
from pipeline.store.io.chunks import DAMAGE, array_of, chunks, is_there, key_of, remedy
from pipeline.store.layout import CODECS, delete, ensure_parents, find_group

if TYPE_CHECKING:
    import xarray as xr


NEW = ".new"
"""Ends the name of the group that `replace_dataset` writes first."""
MARK = "inputs"
"""Completion marker of a final dataset: the identity of what it was computed from."""


def read_dataset(group: zarr.Group) -> xr.Dataset:
    """Read a dataset into memory, its variables in alphabetical order.

    Raises
    ------
    StoreError
        Where part of it is damaged or lost.
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
    # sorted, since Zarr lists arrays in any order; and numpy cannot cast its newer variable-length
    # strings to the older ones
    variables = {
        name: variable.astype(object) if variable.dtype.kind == "T" else variable
        for name, variable in sorted(dataset.variables.items(), key=lambda named: str(named[0]))
    }
    coords = {name: variables.pop(name) for name in sorted(dataset.coords, key=str)}
    return xr.Dataset(variables, coords, dataset.attrs)


def read_dataset_at(root: zarr.Group, path: str, mark: str, place: str) -> xr.Dataset:
    """Read the dataset at a path into memory.

    Parameters
    ----------
    mark
        Completion marker of its group.
    place
        The store's path or URL, for error messages.

    Raises
    ------
    StoreError
        Where it is missing, or part of it is damaged or lost.
    """
    group = find_group(root, path, mark)
    if group is None:
        raise StoreError(
            f"{place} has no {path}: that stage has not been run",
            "`consilience run WORKFLOW` computes what is missing.",
        )
    return read_dataset(group)


def lost_keys(group: zarr.Group) -> list[str]:
    """Return the chunk files that a finished dataset has lost.

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
        Where the metadata of one is damaged or lost.
    """
    names: Any = group.attrs["variables"]
    return [array_of(group, name) for name in names]


def inputs_digest(*inputs: Any) -> str:
    """Return the identity of what a dataset is computed from."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_dataset(root: zarr.Group, path: str, dataset: xr.Dataset, inputs: str) -> None:
    """Write a final dataset, and last `inputs`, what it was computed from. Driver only."""
    text = {
        name: (variable.dims, variable.values.astype(np.dtypes.StringDType()), variable.attrs)
        for name, variable in dataset.variables.items()
        if variable.dtype.kind in "OU"
    }
    dataset = dataset.assign_coords({n: v for n, v in text.items() if n in dataset.coords})
    dataset = dataset.assign({n: v for n, v in text.items() if n not in dataset.coords})
    ensure_parents(root, path)
    delete(root, path)
    with warnings.catch_warnings():
        # xarray warns of consolidated metadata, which this store never has
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated.*")
        dataset.to_zarr(
            root.store,
            group=path,
            mode="w",
            zarr_format=3,
            consolidated=False,
            write_empty_chunks=True,  # so that a lost chunk can be told from one of fill values
            encoding={
                name: {"compressors": CODECS, "chunks": tuple(max(1, n) for n in variable.shape)}
                for name, variable in dataset.variables.items()
            },
        )
    group = root[path]
    assert isinstance(group, zarr.Group)
    group.attrs.update({"variables": sorted(map(str, dataset.variables)), MARK: inputs})


def replace_dataset(root: zarr.Group, path: str, dataset: xr.Dataset, inputs: str) -> None:
    """Write a final dataset so that a kill at any time leaves it or its predecessor. Driver only.

    It is written beside its predecessor, then in its place.
    """
    for where in (path + NEW, path):
        write_dataset(root, where, dataset, inputs)
    delete(root, path + NEW)


def is_current(root: zarr.Group, path: str, inputs: str) -> bool:
    """Whether a final dataset exists and was computed from these inputs."""
    group = find_group(root, path, MARK)
    return group is not None and group.attrs[MARK] == inputs
