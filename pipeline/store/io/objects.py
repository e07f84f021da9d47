"""Locations in object stores: `s3://bucket/name.zarr`, and `memory://name` within a process.

`memory://name` is the same store everywhere in a process, for as long as the process lives.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zarr.storage import ObjectStore

from pipeline.errors import InputError, StoreError
from pipeline.store.io.location import LOCK, Decide, Location, Record, register

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

_PUT_SECONDS = 5.0
_CONFLICTS = 100  # consecutive conditional puts
_MAX_CLIENTS = 8
_MEMORY: dict[str, Any] = {}
"""URL → content of a store in memory: the data themselves, which live as long as the process."""


@dataclass(frozen=True)
class Bucket(Location):
    """A store in an object store, or in the memory of this process."""

    url: str

    def __post_init__(self) -> None:
        _ = self._objects  # a missing package or an invalid URL raises here

    def __str__(self) -> str:
        return self.url

    @property
    def folder(self) -> Path:
        """The working directory: only the store itself goes to an object store."""
        return Path()

    @property
    def is_shared(self) -> bool:  # type: ignore[override]
        """Whether other processes can access it."""
        return not self.url.startswith("memory://")

    @property
    def failures(self) -> tuple[type[Exception], ...]:  # type: ignore[override]
        """Exceptions that its storage raises on failure."""
        from obstore.exceptions import BaseError

        return (OSError, BaseError)

    @property
    def _objects(self) -> Any:
        return _client(self.url) if self.is_shared else _in_memory(self.url)

    def is_empty(self) -> bool:
        """Whether there is no object below the URL but a lock."""
        with _plain_errors(self.url):
            pages = self._objects.list(chunk_size=2)
            return all(each["path"] == LOCK for page in islice(pages, 1) for each in page)

    def zarr_store(self, *, read_only: bool) -> ZarrStore:
        """Return Zarr's store for object stores."""
        return ObjectStore(self._objects, read_only=read_only)

    def read(self, name: str) -> Record | None:
        """Return an object's content, or None where there is none."""
        with _plain_errors(self.url):
            found = self._get(name)
        return found[0] if found else None

    def _get(self, name: str) -> tuple[Record, dict[str, Any]] | None:
        try:
            found = self._objects.get(name)
        except FileNotFoundError:
            return None
        age = time.time() - found.meta["last_modified"].timestamp()
        version = {k: found.meta[k] for k in ("e_tag", "version") if found.meta.get(k)}
        return Record(bytes(found.bytes()), age), version

    def update(self, name: str, decide: Decide) -> None:
        """Change a small object by conditional puts, which fail if another process was faster.

        To remove it, it is emptied: deletion cannot be conditional.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        for _ in range(_CONFLICTS):
            with _plain_errors(self.url):
                found = self._get(name)
            record = found[0] if found and found[0].content else None
            wanted = decide(record)
            if (wanted or b"") == (record.content if record else b""):
                return
            mode: Any = found[1] if found else "create"
            try:
                with _plain_errors(self.url):
                    self._objects.put(name, wanted or b"", mode=mode)
                return
            except (AlreadyExistsError, PreconditionError):
                continue
        raise OSError(f"{self.url}/{name} is constantly being changed by other processes")

    def files(self, folder: str) -> list[str]:
        """Return the names of the objects directly below a path."""
        with _plain_errors(self.url):
            found = self._objects.list_with_delimiter(f"{folder}/")["objects"]
        return [each["path"].rpartition("/")[2] for each in found]

    @contextmanager
    def appending(self, name: str) -> Iterator[Callable[[str], None]]:
        """Provide a function that appends text to a new object, put every few seconds."""
        text, put = "", 0.0

        def add(more: str) -> None:
            nonlocal text, put
            text += more
            if time.monotonic() - put > _PUT_SECONDS:
                with _plain_errors(self.url):
                    self._objects.put(name, text.encode())
                put = time.monotonic()

        try:
            yield add
        finally:
            put = -math.inf
            add("")

    def partials(self) -> Iterator[str]:
        """Yield nothing: an unfinished put leaves nothing behind."""
        yield from ()

    def remove(self, path: str) -> None:
        """Remove an object."""
        with _plain_errors(self.url), suppress(FileNotFoundError):
            self._objects.delete(path)


register(("s3", "gs", "az", "memory"), Bucket)


def _obstore(url: str) -> ModuleType:
    try:
        return import_module("obstore.store")
    except ModuleNotFoundError:
        raise InputError(
            f"{url}: object stores need the package obstore: pip install 'consilience[s3]'."
        ) from None


def _in_memory(url: str) -> Any:
    """Return the store that a URL names in this process, empty at first."""
    if url not in _MEMORY:
        _MEMORY.setdefault(url, _obstore(url).MemoryStore())  # threads agree on the first one
    return _MEMORY[url]


@lru_cache(maxsize=_MAX_CLIENTS)
def _client(url: str) -> Any:
    """Return a client; kept for its connections, and created again once it was evicted."""
    from_url = _obstore(url).from_url
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    options: dict[str, Any] = {}
    if url.startswith("s3://"):
        options["client_options"] = {"allow_http": endpoint.startswith("http://")}
        if endpoint:
            options["endpoint"] = endpoint
    try:
        return from_url(
            url, retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=30)}, **options
        )
    except Exception as error:
        raise InputError(f"{url} is not the URL of an object store: {error}.") from None


@contextmanager
def _plain_errors(url: str) -> Iterator[None]:
    """Turn failures of an object store into errors that say where."""
    from obstore.exceptions import (
        AlreadyExistsError,
        BaseError,
        GenericError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )

    try:
        yield
    except (AlreadyExistsError, PreconditionError, FileNotFoundError):
        raise
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise StoreError(
            f"{url}: access was refused ({_first_line(error)})",
            "Credentials come from the environment: AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL.",
        ) from None
    except (GenericError, BaseError) as error:
        raise StoreError(
            f"{url} cannot be reached: {_first_line(error)}",
            "Check the bucket's name, AWS_ENDPOINT_URL and the network.",
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300]
