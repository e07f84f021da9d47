"""Checksums of metadata; Zarr has them only for chunks.

The attributes of each `zarr.json` hold a checksum of its path and of everything else in it. Other
Zarr readers see a plain attribute; here it is checked and removed on reading.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import google_crc32c
from zarr.core.buffer import cpu
from zarr.storage import WrapperStore

from pipeline.errors import UnreadableError

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

CHECKSUM = "metadata_crc32c"
"""Name of the attribute."""
METADATA = "zarr.json"
_OF_DAMAGE = {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


class ChecksumStore(WrapperStore[Any]):
    """A Zarr store that refuses to read metadata that were changed after writing."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read one object.

        Raises
        ------
        ValueError
            Where it is metadata and its checksum does not match.
        UnreadableError
            Where it exists but cannot be read, because of permissions, the disk or the network.
        """
        try:
            found = await super().get(key, prototype, byte_range)
        except OSError as error:
            if error.errno in _OF_DAMAGE:
                raise
            raise _unreadable(key, error.strerror or str(error)) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "obstore":
                raise
            raise _unreadable(key, str(error).partition("\n")[0]) from None
        if found is None or not _is_metadata(key) or byte_range is not None:
            return found
        # a root without a checksum may be a foreign store or another format: `open_root` decides
        text = without_checksum(key, found.to_bytes(), strict=key != METADATA)
        return prototype.buffer.from_bytes(text)

    async def set(self, key: str, value: Buffer) -> None:
        """Write one object."""
        await super().set(key, _with_checksum(key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write one object if it does not exist."""
        await super().set_if_not_exists(key, _with_checksum(key, value))

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await super()._set_many([(key, _with_checksum(key, value)) for key, value in values])


def without_checksum(key: str, text: bytes, *, strict: bool = True) -> bytes:
    """Return metadata without their checksum.

    Parameters
    ----------
    strict
        Whether a checksum is required.

    Raises
    ------
    ValueError
        Where the checksum is missing or does not match.
    """
    document = json.loads(text)
    attributes = document.get("attributes") if isinstance(document, dict) else None
    written = attributes.pop(CHECKSUM, None) if isinstance(attributes, dict) else None
    if written is None and not strict:
        return text
    if written is None:
        raise ValueError("it has no checksum: it is damaged, or another program wrote it")
    if written != _checksum(key, document):
        raise ValueError("its checksum does not match: it is damaged, or another program wrote it")
    return json.dumps(document).encode()


def _unreadable(key: str, why: str) -> UnreadableError:
    return UnreadableError(
        f"{key} cannot be read now: {why}",
        "It may be intact: check its permissions, the disk or the network, and try again.",
    )


def _is_metadata(key: str) -> bool:
    return key.rpartition("/")[2] == METADATA


def _with_checksum(key: str, value: Buffer) -> Buffer:
    if not _is_metadata(key):
        return value
    document = json.loads(value.to_bytes())
    attributes = document.setdefault("attributes", {})
    attributes.pop(CHECKSUM, None)
    attributes[CHECKSUM] = _checksum(key, document)
    return cpu.Buffer.from_bytes(json.dumps(document, indent=2).encode())


def _checksum(key: str, document: Any) -> str:
    text = json.dumps([key, document], sort_keys=True, separators=(",", ":"))
    return f"{google_crc32c.value(text.encode()):08x}"
