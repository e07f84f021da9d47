"""Content ids of stimuli: 64 bits of a SHA-256, held as numbers and shown as 16 hex digits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

ID_DIGITS = 16  # 64 bits: collisions are negligible below 10^8 items

Ids = NDArray[np.uint64]
"""Content ids; 0 where a row has no such item."""


def content_id(*parts: bytes) -> str:
    """Return a content id: 16 hex digits of the SHA-256 over length-prefixed parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:ID_DIGITS]


def array_id(values: NDArray[Any]) -> str:
    """Return the id of an array: of its shape and its values; of its dtype, unless uint8."""
    content = np.ascontiguousarray(values, dtype=_portable(values.dtype)).tobytes()
    return content_id(*_kind(values.shape, values.dtype), content)


def _portable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _kind(shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[bytes]:
    kind = [repr(tuple(shape)).encode()]
    return kind if dtype == np.uint8 else [*kind, _portable(dtype).str.encode()]


def row_ids(values: NDArray[Any]) -> Ids:
    """Return `array_id` of each row of an array `(n, …)`."""
    rows = np.ascontiguousarray(values, dtype=_portable(values.dtype))
    content = rows.reshape(-1).view(np.uint8).data
    n_bytes = rows.nbytes // max(1, len(rows))
    start = hashlib.sha256()
    for part in _kind(rows.shape[1:], rows.dtype):
        start.update(len(part).to_bytes(8, "little") + part)
    start.update(n_bytes.to_bytes(8, "little"))

    def digests() -> Iterator[bytes]:
        for row in range(len(rows)):
            digest = start.copy()
            digest.update(content[row * n_bytes : (row + 1) * n_bytes])
            yield digest.digest()[: ID_DIGITS // 2]

    return np.frombuffer(b"".join(digests()), dtype=">u8").astype(np.uint64)


def text_id(text: str) -> str:
    """Return the id of a text: of its UTF-8 bytes."""
    # halves of surrogate pairs, which are no text, are refused where columns are made
    return content_id(text.encode("utf-8", "surrogatepass"))


def as_ids(texts: Iterable[str]) -> Ids:
    """Return ids written as 16 hex digits, or empty, as numbers."""
    digits = "".join(t if t else "0" * ID_DIGITS for t in texts)
    return np.frombuffer(bytes.fromhex(digits), dtype=">u8").astype(np.uint64)


def hex_ids(ids: Ids) -> NDArray[np.object_]:
    """Return ids as 16 hex digits each; empty where there is none."""
    digits = np.ascontiguousarray(ids, dtype=">u8").tobytes().hex()
    texts = [digits[i : i + ID_DIGITS] for i in range(0, len(digits), ID_DIGITS)]
    for i in np.flatnonzero(ids == 0):
        texts[i] = ""
    return np.array(texts, dtype=object)


def fingerprint(ids: Ids) -> str:
    """Return the full SHA-256 of an ordered list of ids, one to a line."""
    return hashlib.sha256("\n".join(hex_ids(ids)).encode()).hexdigest()
