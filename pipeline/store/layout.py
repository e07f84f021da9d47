"""Open a store, find and create its groups and arrays. Only the driver creates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.core.sync import sync
from zarr.errors import GroupNotFoundError

from pipeline import schema
from pipeline.errors import InputError, StoreError, UnreadableError
from pipeline.schema import GroupKind, Variable
from pipeline.store import paths
from pipeline.store.io.checksum import ChecksumStore
from pipeline.store.io.chunks import DAMAGE, array_of, quiet, read_whole, remedy
from pipeline.store.io.lease import LeaseCheck
from pipeline.store.io.location import Folder, Location, locate
from pipeline.store.io.write_guard import WriteGuardStore, write_errors

CODECS = (Crc32cCodec(),)
"""Codecs of every array. The checksum comes last: without it a flipped bit goes unnoticed."""
ROOT_ATTRIBUTES: dict[str, Any] = {"format": schema.FORMAT, "format_version": schema.FORMAT_VERSION}


def open_root(
    place: str | Path | Location,
    mode: Literal["r", "r+", "a"] = "r",
    *,
    lease: LeaseCheck | None = None,
) -> zarr.Group:
    """Open the root group of a store; mode `a` creates it if it does not exist.

    Parameters
    ----------
    place
        Its path or URL.
    lease
        Checked before each write.

    Raises
    ------
    InputError
        Where there is no store, or the path holds something else.
    StoreError
        Where the store was written by a newer format version, is damaged, or cannot be written.
    """
    location = locate(place)
    if isinstance(location, Folder):
        _check_folder(location.path)
    if mode != "a" and location.is_empty():  # Zarr would make the folder
        raise InputError(_nothing_at(location))
    checked = ChecksumStore(location.zarr_store(read_only=mode == "r"))
    store = checked if mode == "r" else WriteGuardStore(checked, location, lease)
    try:
        with write_errors(location) if mode != "r" else nullcontext():
            # given the format, Zarr reads one file, not three, and raises that file's error
            root = zarr.open_group(
                store, mode="r" if mode == "r" else "r+", zarr_format=3, use_consolidated=False
            )
    except (GroupNotFoundError, FileNotFoundError):
        if not location.is_empty():
            raise InputError(_not_a_store(location)) from None
        return zarr.create_group(store, zarr_format=3, attributes=dict(ROOT_ATTRIBUTES))
    except UnreadableError as error:
        raise StoreError(f"{location}: {error.what}", error.remedy) from None
    except location.failures as error:
        raise StoreError(f"{location} cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{location}/zarr.json cannot be read: {error}", remedy(store)) from None
    if root.attrs.get("format") != schema.FORMAT:
        raise InputError(
            f"{location} is a Zarr group, but not a Consilience store. Name another path."
        )
    version = root.attrs.get("format_version")
    if version != schema.FORMAT_VERSION:
        older = isinstance(version, int) and version < schema.FORMAT_VERSION
        raise StoreError(
            f"{location} has store format {version}, but this Consilience reads format "
            f"{schema.FORMAT_VERSION}",
            f"Use {'an older' if older else 'a newer'} Consilience, or another path.",
        )
    return root


def has_parts(location: Location) -> bool:
    """Whether a store holds anything besides its root."""
    return any(location.read(paths.metadata(part)) for part in paths.PARTS)


def _check_folder(path: Path) -> None:
    for part in (path, *path.parents):
        if part.is_file():
            raise InputError(f"{part} is a file, but a store is a folder. Name another path.")


def _nothing_at(location: Location) -> str:
    where = f" (relative paths start at {Path.cwd()})" if isinstance(location, Folder) else ""
    return f"there is no store at {location}{where}. `consilience run WORKFLOW` creates one."


def _not_a_store(location: Location) -> str:
    found = f"{location} is not a store, but a folder with other files."
    if has_parts(location):
        return (
            f"{location} has lost its zarr.json. `consilience store verify {location} --repair` "
            "restores it."
        )
    return f"{found} Name another path."


def create_variable(
    group: zarr.Group,
    variable: Variable,
    shape: Sequence[int],
    chunks: Sequence[int],
    *,
    values: Any = None,
) -> zarr.Array[Any]:
    """Create one declared array, with checksums, named dimensions, and chunks of fill written."""
    array = group.create_array(
        variable.name,
        shape=tuple(shape),
        chunks=tuple(max(1, c) for c in chunks),
        dtype=str if variable.dtype == "str" else variable.dtype,
        fill_value=variable.fill_value,
        compressors=CODECS,
        dimension_names=variable.dims,
        attributes={"description": variable.description, **variable.attributes},
        config={"write_empty_chunks": True},
    )
    if values is not None:
        array[...] = as_text(values) if variable.dtype == "str" else values
    return array


def create_group(
    root: zarr.Group,
    path: str,
    kind: GroupKind,
    sizes: Mapping[str, int],
    attributes: Mapping[str, Any],
    *,
    values: Mapping[str, Any] | None = None,
) -> zarr.Group:
    """Create a declared group, replacing what is there; its attributes are written last.

    Parameters
    ----------
    sizes
        As `GroupKind.layouts` takes them.
    values
        Name → initial values; variables that are left out stay unwritten.
    """
    ensure_parents(root, path)
    group = root.create_group(path, overwrite=True)
    fill_group(group, kind, sizes, attributes, values=values or {})
    return group


def fill_group(
    group: zarr.Group,
    kind: GroupKind,
    sizes: Mapping[str, int],
    attributes: Mapping[str, Any],
    *,
    values: Mapping[str, Any],
) -> None:
    """Create the arrays of a group, and then write its attributes, which mark it as complete."""
    for name, layout in kind.layouts(attributes, sizes).items():
        create_variable(
            group, layout.variable, layout.shape, layout.chunks, values=values.get(name)
        )
    if attributes:
        # in one write: without the completion marker the group does not count
        group.update_attributes(dict(attributes))


def ensure_parents(root: zarr.Group, path: str) -> None:
    """Create the groups above a path, from the top down.

    Zarr writes them concurrently: on a full disk it may leave a group without a parent.
    """
    parts = path.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        above = "/".join(parts[:depth])
        if find_group(root, above) is None:
            root.create_group(above)


def as_text(values: Any) -> Any:
    """Return strings in the variable-length dtype that Zarr stores without a warning."""
    return np.asarray(list(values), dtype=np.dtypes.StringDType())


def child_groups(root: zarr.Group, *path: str, mark: str = "") -> dict[str, zarr.Group]:
    """Return name → group of the groups below a path, sorted; none if the path does not exist.

    Each comes with its metadata, read once for all.

    Parameters
    ----------
    mark
        Completion marker: groups without it are left out.

    Raises
    ------
    StoreError
        Where metadata is damaged.
    """
    where = "/".join(path)
    group = find_group(root, where) if where else root
    if group is None:
        return {}
    try:
        with quiet():
            found = sorted(group.groups(), key=lambda named: named[0])
    except DAMAGE as error:
        raise StoreError(
            f"{group.path}: metadata below it cannot be read: {error}", remedy(root.store)
        ) from None
    return {name: child for name, child in found if not mark or mark in child.attrs}


def find_group(root: zarr.Group, path: str, mark: str = "") -> zarr.Group | None:
    """Return a group, or None where it is missing or its creation was interrupted.

    Parameters
    ----------
    mark
        Completion marker, written last.

    Raises
    ------
    StoreError
        Where its metadata is damaged.
    """
    try:
        found = root[path]
    except KeyError:
        return None
    except DAMAGE as error:
        raise StoreError(
            f"{paths.metadata(path)} cannot be read: {error}", remedy(root.store)
        ) from None
    if not isinstance(found, zarr.Group) or (mark and mark not in found.attrs):
        return None
    return found


def subset_rows(root: zarr.Group, subset: str) -> NDArray[np.int64]:
    """Return the rows of the base set that form a subset."""
    path = paths.subset(subset)
    group = find_group(root, path, "fingerprint")
    if group is None:
        raise StoreError(f"{paths.metadata(path)} is lost or incomplete", remedy(root.store))
    return read_whole(array_of(group, "row")).astype(np.int64)


def delete(root: zarr.Group, path: str) -> None:
    """Remove a group or array, damaged or not, if it exists."""
    # metadata first: a run may be killed while the rest is removed, in any order
    sync(root.store.delete(paths.metadata(path)))
    sync(root.store.delete_dir(path))


def sweep_partial(place: str | Path | Location) -> int:
    """Remove the `*.partial` files that killed writers left; return how many."""
    location = locate(place)
    found = list(location.partials())
    for path in found:
        location.remove(path)
    return len(found)
