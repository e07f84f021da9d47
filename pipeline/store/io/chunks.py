"""Read arrays such that damaged and lost chunks raise instead of returning numbers.

A flipped bit fails the checksum. To Zarr a missing chunk silently reads as the fill value: where a
chunk must exist and its values could be fill, its file is checked.
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
from pipeline.types import Index

ChunkIndex = tuple[int, ...]
_AT_ONCE = 32  # concurrent reads

DAMAGE = (ValueError, OSError, KeyError, TypeError, RuntimeError)
"""What Zarr, its codecs and JSON raise for damaged bytes."""


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
            # Zarr does not store this setting: without it a chunk of fill values is not written,
            # and cannot be told from a lost one
            return found.with_config({"write_empty_chunks": True})
        why = "it is not an array"
    except KeyError:
        why = "it is lost"
    except DAMAGE as error:
        why = str(error)
    raise StoreError(
        f"{group.path}/{name}/zarr.json cannot be read: {why}", remedy(group.store)
    ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Zarr's warning of folders whose zarr.json is lost: `verify` reports them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")
        yield


def read(array: zarr.Array[Any], region: Any = ..., *, what: str = "") -> NDArray[Any]:
    """Return a region of an array; missing chunks read as fill values.

    Raises
    ------
    StoreError
        Where a chunk is damaged.
    """
    with _damage_named(array, what):
        return np.asarray(array[region])


def read_across(array: zarr.Array[Any], indices: tuple[Index, ...]) -> NDArray[Any]:
    """Return the outer product of indices of each dimension; missing chunks read as fill values.

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
    """Return an array, or its first rows, of which every chunk has been written.

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
    """Return an array of bytes with one chunk for each; missing chunks read as fill values.

    Reads the raw chunks: decoding takes Zarr half a millisecond for each.

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
    array: zarr.Array[Any], indices: Sequence[ChunkIndex]
) -> list[NDArray[np.uint8] | UnreadableError | None]:
    """Return the raw bytes of chunks: None for a missing one, the error for an unreadable one."""
    prototype = default_buffer_prototype()

    async def raw() -> list[Any]:
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def one(index: ChunkIndex) -> Any:
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
    """Say what is wrong with the raw bytes of a chunk; empty if nothing is.

    Parameters
    ----------
    size
        Bytes before the checksum; 0 accepts any.
    """
    if data is None:
        return "a chunk is lost"
    if len(data) < 4 or (size and len(data) != size + 4):
        return f"a chunk is damaged: it has {len(data)} bytes"
    if google_crc32c.value(data[:-4]) != int.from_bytes(bytes(data[-4:]), "little"):
        return "a chunk is damaged: its checksum does not match"
    return ""


def remedy(store: object) -> str:
    """Return the remedy for damage."""
    return (
        f"`consilience store verify {store_name(store)} --repair` prepares it to be computed again."
    )


def store_name(store: object) -> str:
    """Return the path or URL of a Zarr store."""
    while isinstance(store, WrapperStore):
        store = store._store
    return str(getattr(store, "root", store))


def chunks(array: zarr.Array[Any]) -> Iterator[ChunkIndex]:
    """Yield the index of every chunk of an array, stored or not."""
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    yield from product(*map(range, counts))


def region_of(array: zarr.Array[Any], index: ChunkIndex) -> tuple[slice, ...]:
    """Return the elements of a chunk."""
    return tuple(
        slice(i * chunk, min((i + 1) * chunk, size))
        for i, chunk, size in zip(index, array.chunks, array.shape, strict=True)
    )


def key_of(array: zarr.Array[Any], index: ChunkIndex) -> str:
    """Return the path of a chunk in the store."""
    metadata: Any = array.metadata
    return f"{array.path}/{metadata.encode_chunk_key(index)}"


def is_there(array: zarr.Array[Any], index: ChunkIndex) -> bool:
    """Whether a chunk is stored."""
    return bool(sync(array.store.exists(key_of(array, index))))


def stored_chunks(array: zarr.Array[Any]) -> set[ChunkIndex]:
    """Return the indices of all stored chunks, from one listing."""
    start = f"{array.path}/c/"

    async def listed() -> set[ChunkIndex]:
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
        Where the metadata of one is damaged.
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
