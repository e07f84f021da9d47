"""Where things stand in a store, and how arrays in it are made. Only the driver creates."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.errors import GroupNotFoundError

from pipeline import schema
from pipeline.errors import InputError, StoreError
from pipeline.schema import Variable

CODECS = (Crc32cCodec(),)
"""Of every array, the checksum last: without it a flipped bit is read in silence."""


def open_root(path: str | Path, mode: Literal["r", "r+", "a"] = "r") -> zarr.Group:
    """Open a store; with mode `a`, make it where there is none.

    Raises
    ------
    InputError
        Where there is no store, or something else stands at the path.
    StoreError
        Where the store was written by a newer format version.
    """
    path = Path(path)
    if path.is_file():
        raise InputError(f"{path} is a file, and a store is a folder. Name another path.")
    try:
        root = zarr.open_group(path, mode="r+" if mode == "a" else mode, use_consolidated=False)
    except (GroupNotFoundError, FileNotFoundError):
        if path.is_dir() and any(path.iterdir()):
            raise InputError(
                f"{path} is a folder with other things in it, not a store. Name another path."
            ) from None
        if mode != "a":
            raise InputError(
                f"there is no store at {path} (relative paths start at {Path.cwd()}). "
                "`consilience run WORKFLOW` makes one."
            ) from None
        return zarr.create_group(
            path,
            zarr_format=3,
            attributes={"format": schema.FORMAT, "format_version": schema.FORMAT_VERSION},
        )
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path}/zarr.json cannot be read: {error}. If the file was damaged, restore it from "
            "a copy, or remove the store and run again."
        ) from None
    if root.attrs.get("format") != schema.FORMAT:
        raise InputError(f"{path} is a Zarr group, but not a Consilience store. Name another path.")
    version = root.attrs.get("format_version")
    if version != schema.FORMAT_VERSION:
        raise StoreError(
            f"{path} has store format {version}; this is Consilience for format "
            f"{schema.FORMAT_VERSION}. Use a newer Consilience, or another path."
        )
    return root


def activations_path(set_key: str, model: str, tower: str) -> str:
    """Return the group of one model's tower on one set of stimuli."""
    return f"activations/{set_key}/{model}/{tower}"


def create_variable(
    group: zarr.Group,
    variable: Variable,
    shape: Sequence[int],
    chunks: Sequence[int],
    *,
    values: Any = None,
    attributes: dict[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Create one declared array: crc32c always, empty chunks written, dimensions named."""
    array = group.create_array(
        variable.name,
        shape=tuple(shape),
        chunks=tuple(max(1, c) for c in chunks),
        dtype=str if variable.dtype == "str" else variable.dtype,
        fill_value=variable.fill_value,
        compressors=CODECS,
        dimension_names=variable.dims,
        attributes={"description": variable.description, **(attributes or {})},
        config={"write_empty_chunks": True},
    )
    if values is not None:
        array[...] = as_text(values) if variable.dtype == "str" else values
    return array


def as_text(values: Any) -> Any:
    """Return strings in the variable-length dtype that Zarr stores without a warning."""
    return np.asarray(list(values), dtype=np.dtypes.StringDType())


def child_groups(root: zarr.Group, *path: str) -> Iterator[str]:
    """Yield the sorted names of the groups below a path; nothing where the path is not there."""
    where = "/".join(path)
    if where and where not in root:
        return
    group = root[where] if where else root
    assert isinstance(group, zarr.Group)
    yield from sorted(name for name, _ in group.groups())


def delete(root: zarr.Group, path: str) -> None:
    """Remove a group or array if it is there."""
    if path in root:
        del root[path]


def sweep_partial(path: str | Path) -> int:
    """Remove the `*.partial` files that a killed writer leaves; return how many there were."""
    count = 0
    for folder, _, files in os.walk(path):
        for name in files:
            if name.endswith(".partial"):
                Path(folder, name).unlink(missing_ok=True)
                count += 1
    return count
