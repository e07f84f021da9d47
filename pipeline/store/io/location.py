"""Location of a store: a folder, or the URL of an object store (`objects.py`).

Each provides Zarr's storage and atomic changes of one small record, the lock: a folder under a
file lock, an object store by conditional puts. Nothing else in the project knows the difference.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.storage import LocalStore

from pipeline.errors import InputError

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

LOCK = "consilience.lock"
"""The record of who is writing. It is not part of the store's content."""
LOCK_SECONDS = 10.0
"""How long a process waits for another one to finish changing that record."""


@dataclass(frozen=True)
class Record:
    """A small record."""

    content: bytes
    age: float
    """Seconds since it was last changed, by the storage's clock."""


Decide = Callable[[Record | None], bytes | None]
"""From the present record, or None, to the new one; None removes it."""


class Location(ABC):
    """A place for one store, which may not exist yet."""

    is_shared = True
    """Whether other processes can access it."""
    failures: tuple[type[Exception], ...] = (OSError,)
    """Exceptions that its storage raises on failure."""

    @abstractmethod
    def __str__(self) -> str: ...

    @property
    def name(self) -> str:
        """The last part of the path, without `.zarr`."""
        return str(self).rstrip("/").rpartition("/")[2].removesuffix(".zarr")

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where files about the store go that are not part of it."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Whether there is nothing but, at most, a lock."""

    @abstractmethod
    def zarr_store(self, *, read_only: bool) -> ZarrStore:
        """Return the Zarr store."""

    @abstractmethod
    def read(self, name: str) -> Record | None:
        """Return a file's content, or None where there is none."""

    @abstractmethod
    def update(self, name: str, decide: Decide) -> None:
        """Change a small record atomically.

        `decide` is called again if another process was faster, and may raise.

        Raises
        ------
        OSError
            Where it cannot be written.
        """

    @abstractmethod
    def files(self, folder: str) -> list[str]:
        """Return the names of the files directly below a path."""

    @abstractmethod
    def appending(self, name: str) -> AbstractContextManager[Callable[[str], None]]:
        """Provide a function that appends text to a new file; what it wrote survives a kill."""

    @abstractmethod
    def partials(self) -> Iterator[str]:
        """Yield the `*.partial` leftovers of killed writers."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file of the store, if it exists."""


_SCHEMES: dict[str, Callable[[str], Location]] = {}
"""URL scheme → what makes a location of a URL."""


def locate(place: str | Path | Location) -> Location:
    """Return the location of a path or URL.

    Raises
    ------
    InputError
        Where the scheme is unknown, or the packages for it are not installed.
    """
    if isinstance(place, Location):
        return place
    text = str(place)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Folder(Path(place))
    if scheme == "file":
        return Folder(Path(rest))
    if scheme not in _SCHEMES:
        raise InputError(
            f"{text}: stores are folders, or URLs that begin with "
            f"{', '.join(f'{s}://' for s in _SCHEMES)}."
        )
    return _SCHEMES[scheme](text.rstrip("/"))


def register(schemes: Iterable[str], make: Callable[[str], Location]) -> None:
    """Register what makes a location of a URL with one of these schemes."""
    _SCHEMES.update(dict.fromkeys(schemes, make))


def absolute(place: str | Path) -> str:
    """Return a place that is valid for processes in any working directory."""
    location = locate(place)
    return str(location.path.absolute()) if isinstance(location, Folder) else str(location)


@dataclass(frozen=True)
class Folder(Location):
    """A store in a file system."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def folder(self) -> Path:
        """The parent folder."""
        return self.path.parent

    def is_empty(self) -> bool:
        """Whether the folder is missing or holds nothing but a lock."""
        if self.path.is_dir():
            return all(p.name == LOCK for p in self.path.iterdir())
        return not self.path.exists()

    def zarr_store(self, *, read_only: bool) -> ZarrStore:
        """Return Zarr's store for folders."""
        return LocalStore(self.path, read_only=read_only)

    def read(self, name: str) -> Record | None:
        """Return a file's content, or None where there is none."""
        try:
            with open(self.path / name, "rb") as file:
                return _record(file.fileno())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def update(self, name: str, decide: Decide) -> None:
        """Change a small file, created exclusively and changed in place under its file lock.

        In place, because a file that keeps its length can be written on a full disk.
        """
        path = self.path / name
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR)
                found = True
            except FileNotFoundError:
                if decide(None) is None:
                    return
                self.path.mkdir(parents=True, exist_ok=True)
                try:
                    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
                except FileExistsError:
                    continue
                found = False
            try:
                with _locked(descriptor):
                    # removed or recreated while this process waited for the lock
                    if not _is_at(descriptor, path):
                        continue
                    # another process may have been faster between create and lock
                    record = _record(descriptor)
                    wanted = decide(record if found or record.content else None)
                    if wanted is None:
                        path.unlink()
                    elif wanted != record.content:
                        os.pwrite(descriptor, wanted, 0)
                        os.ftruncate(descriptor, len(wanted))
                        os.fsync(descriptor)
                    return
            except OSError:
                if not found:
                    with suppress(OSError):
                        path.unlink()
                raise
            finally:
                os.close(descriptor)

    def files(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        where = self.path / folder
        return [p.name for p in where.iterdir() if p.is_file()] if where.is_dir() else []

    @contextmanager
    def appending(self, name: str) -> Iterator[Callable[[str], None]]:
        """Provide a function that appends text to a new file, unbuffered."""
        with (self.path / name).open("xb", buffering=0) as file:

            def add(text: str) -> None:
                file.write(text.encode())

            yield add

    def partials(self) -> Iterator[str]:
        """Yield the `*.partial` files that killed writers leave."""
        for folder, _, files in os.walk(self.path):
            for name in files:
                if name.endswith(".partial"):
                    yield Path(folder, name).relative_to(self.path).as_posix()

    def remove(self, path: str) -> None:
        """Remove a file."""
        (self.path / path).unlink(missing_ok=True)


def _record(descriptor: int) -> Record:
    about = os.fstat(descriptor)
    return Record(os.pread(descriptor, about.st_size, 0), time.time() - about.st_mtime)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Hold the kernel's lock on a file, released at the latest when the process ends.

    Raises
    ------
    BlockingIOError
        Where another process, such as a stopped one, does not release it.
    """
    import fcntl

    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.005)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
