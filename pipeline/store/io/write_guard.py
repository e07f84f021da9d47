"""Guard writes: check the lease first, and turn storage failures into errors with a remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zarr.storage import WrapperStore

from pipeline.errors import StoreError
from pipeline.store.io.lease import LeaseCheck
from pipeline.store.io.location import Location

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore
    from zarr.core.buffer import Buffer

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


class WriteGuardStore(WrapperStore["ZarrStore"]):
    """A Zarr store that writes only while the lease, if given, is held."""

    def __init__(
        self, store: ZarrStore, location: Location, lease: LeaseCheck | None = None
    ) -> None:
        super().__init__(store)
        self._location, self._lease = location, lease

    def _with_store(self, store: ZarrStore) -> WriteGuardStore:
        return type(self)(store, self._location, self._lease)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._lease is not None:
            self._lease.check()
        with write_errors(self._location):
            yield

    async def set(self, key: str, value: Buffer) -> None:
        """Write one object."""
        with self._writing():
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write one object if it does not exist."""
        with self._writing():
            await super().set_if_not_exists(key, value)

    async def _set_many(self, values: Any) -> None:
        with self._writing():
            await super()._set_many(values)

    async def delete(self, key: str) -> None:
        """Remove one object."""
        with self._writing():
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all objects below a prefix."""
        with self._writing():
            await super().delete_dir(prefix)

    async def clear(self) -> None:
        """Remove all objects."""
        with self._writing():
            await super().clear()


@contextmanager
def write_errors(location: Location) -> Iterator[None]:
    """Turn a failed write into an error that says where and what to do.

    Raises
    ------
    StoreError
        Where the storage cannot be written.
    """
    try:
        yield
    except FileNotFoundError:
        raise  # a missing file, not a failure of the storage
    except location.failures as error:
        number = getattr(error, "errno", None)
        why = getattr(error, "strerror", None) or str(error).splitlines()[0][:300]
        remedy = "Fix that, and run again."
        if number in _FULL:
            remedy = "Free some space, and run again."
        elif number in _CLOSED:
            remedy = "Give this account write permission, or name another store with --store."
        raise StoreError(
            f"{location} cannot be written: {why}", f"{remedy} What was finished is kept."
        ) from error
