"""Reading arrays so that what is damaged or lost raises, and never gives numbers.

A flipped bit fails the checksum. A chunk that is gone reads as the fill value, in silence: where
one has to be there, and what is read could be fill, it is looked for.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from pipeline.errors import StoreError, UnreadableError

Index = tuple[int, ...]
_AT_ONCE = 32  # reads under way

DAMAGE = (ValueError, OSError, KeyError, TypeError, RuntimeError)
"""What zarr, its codecs and JSON raise for bytes that are not what was written."""


def array_of(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Return one array of a group.

    Raises
    ------
    StoreError
        Where its metadata is lost or damaged.
    """
    try:
        found = group[name]
        if isinstance(found, zarr.Array):
            # Zarr does not keep this with the array: a chunk of fill would not be written, and
            # could not be told from a lost one
            return found.with_config({"write_empty_chunks": True})
        why = "it is no array"
    except KeyError:
        why = "it is lost"
    except DAMAGE as error:
        why = str(error)
    raise StoreError(
        f"{group.path}/{name}/zarr.json cannot be read: {why}", remedy(group.store)
    ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Let Zarr walk over a folder whose zarr.json is lost without a warning: `verify` names it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")
        yield


def read(array: zarr.Array[Any], region: Any = ..., *, what: str = "") -> NDArray[Any]:
    """Return a part of an array; chunks that are not there read as fill.

    Raises
    ------
    StoreError
        Where a chunk is damaged.
    """
    with _damage_named(array, what):
        return np.asarray(array[region])


def read_across(array: zarr.Array[Any], indices: tuple[NDArray[np.intp], ...]) -> NDArray[Any]:
    """Return where some indices of each dimension cross; chunks that are not there read as fill.

    Raises
    ------
    StoreError
        Where a chunk is damaged.
    """
    with _damage_named(array):
        return np.asarray(array.oindex[indices])


@contextmanager
def _damage_named(array: zarr.Array[Any], what: str = "") -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise StoreError(
            f"{what or array.path}: stored data are damaged: {error}", remedy(array.store)
        ) from error


def read_whole(array: zarr.Array[Any], *, rows: int | None = None, what: str = "") -> NDArray[Any]:
    """Return all of an array, or its first rows, every chunk of which has been written.

    Raises
    ------
    StoreError
        Where a chunk is damaged or lost.
    """
    values = read(array, ... if rows is None else slice(rows), what=what)
    for index in chunks(array):
        if rows is not None and index[0] * array.chunks[0] >= rows:
            continue
        if _is_fill(values[region_of(array, index)], array) and not is_there(array, index):
            raise StoreError(
                f"{what or array.path}: a chunk is lost ({key_of(array, index)})",
                remedy(array.store),
            )
    return values


def read_marks(array: zarr.Array[Any]) -> NDArray[np.uint8]:
    """Return an array of bytes with a chunk for each; chunks that are not there read as fill.

    Of such chunks Zarr takes half a millisecond each.

    Raises
    ------
    StoreError
        Where a chunk is damaged.
    """
    marks = np.full(array.shape, array.fill_value, np.uint8)
    indices = list(chunks(array))
    try:
        found = raw_chunks(array, indices)
    except DAMAGE as error:
        raise StoreError(
            f"{array.path}: stored data cannot be read: {error}", remedy(array.store)
        ) from error
    for index, data in zip(indices, found, strict=True):
        if data is None:
            continue
        if isinstance(data, UnreadableError):
            raise data
        if why := fault(data, 1):
            raise StoreError(
                f"{key_of(array, index)}: stored data are damaged: {why}", remedy(array.store)
            )
        marks[index] = data[0]
    return marks


def raw_chunks(
    array: zarr.Array[Any], indices: Sequence[Index]
) -> list[NDArray[np.uint8] | UnreadableError | None]:
    """Return the bytes of chunks as they are stored, None of one that is not there.

    In the place of one that cannot be read stands the error that says why.
    """
    prototype = default_buffer_prototype()

    async def raw() -> list[Any]:
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def one(index: Index) -> Any:
            async with at_once:
                try:
                    return await array.store.get(key_of(array, index), prototype)
                except UnreadableError as error:
                    return error

        return await asyncio.gather(*map(one, indices))

    return [
        each if each is None or isinstance(each, UnreadableError) else each.as_numpy_array()
        for each in sync(raw())
    ]


def fault(data: NDArray[np.uint8] | None, size: int) -> str:
    """Say what is wrong with the bytes of a chunk, `size` of them before its checksum.

    0 for a chunk of any size. What a writer computed the checksum of is what a reader decodes.
    """
    if data is None:
        return "a chunk is lost"
    if len(data) < 4 or (size and len(data) != size + 4):
        return f"a chunk is damaged: it has {len(data)} bytes"
    if google_crc32c.value(data[:-4]) != int.from_bytes(bytes(data[-4:]), "little"):
        return "a chunk is damaged: its checksum does not match"
    return ""


def remedy(store: object) -> str:
    """Say how damage is mended."""
    return f"`consilience store verify {store_name(store)} --repair` prepares it to be made again."


def store_name(store: object) -> str:
    """Return the path or URL of a Zarr store."""
    while isinstance(store, WrapperStore):
        store = store._store
    return str(getattr(store, "root", store))


def chunks(array: zarr.Array[Any]) -> Iterator[Index]:
    """Yield the index of every chunk of an array, there or not."""
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    yield from product(*map(range, counts))


def region_of(array: zarr.Array[Any], index: Index) -> tuple[slice, ...]:
    """Return the elements of a chunk."""
    return tuple(
        slice(i * chunk, min((i + 1) * chunk, size))
        for i, chunk, size in zip(index, array.chunks, array.shape, strict=True)
    )


def key_of(array: zarr.Array[Any], index: Index) -> str:
    """Return the path of a chunk in the store."""
    metadata: Any = array.metadata
    return f"{array.path}/{metadata.encode_chunk_key(index)}"


def is_there(array: zarr.Array[Any], index: Index) -> bool:
    """Whether a chunk has been written and not lost."""
    return bool(sync(array.store.exists(key_of(array, index))))


def stored_chunks(array: zarr.Array[Any]) -> set[Index]:
    """Return the indices of all chunks that are there, by one listing."""
    start = f"{array.path}/c/"

    async def listed() -> set[Index]:
        found = set()
        async for key in array.store.list_prefix(start):
            parts = key.removeprefix(start).split("/")
            if all(part.isdecimal() for part in parts):
                found.add(tuple(map(int, parts)))
        return found

    return sync(listed())


def arrays_of(group: zarr.Group) -> list[tuple[str, zarr.Array[Any]]]:
    """Return the names and arrays of a group.

    Raises
    ------
    StoreError
        Where metadata of one are damaged.
    """
    try:
        with quiet():
            return sorted(group.arrays())
    except DAMAGE as error:
        raise StoreError(
            f"{group.path}: metadata below it cannot be read: {error}", remedy(group.store)
        ) from None


def _is_fill(values: NDArray[Any], array: zarr.Array[Any]) -> bool:
    fill = array.fill_value
    if isinstance(fill, float | np.floating) and np.isnan(fill):
        return bool(np.isnan(values).all())
    return bool((values == fill).all())
