"""Where a store stands: a folder, or a URL of an object store (`objects.py`).

Both give Zarr something to read and write, and change one small record, the lock, atomically: a
folder under the file system's lock, an object store by conditional puts. Nothing else in the
project knows the difference.
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
"""The record that says who writes. It is no part of what a store holds."""
LOCK_SECONDS = 10.0
"""How long a process waits for another to finish changing that record."""


@dataclass(frozen=True)
class Record:
    """A small record as it is found."""

    content: bytes
    age: float
    """Seconds since it was last changed, by the clock of where it stands."""


Decide = Callable[[Record | None], bytes | None]
"""From a record, or None where there is none, to what it is to be; None removes it."""


class Location(ABC):
    """A place that holds one store, or will."""

    is_shared = True
    """Whether other processes see it."""
    failures: tuple[type[Exception], ...] = (OSError,)
    """What its storage raises where it does not do what it is asked."""

    @abstractmethod
    def __str__(self) -> str: ...

    @property
    def name(self) -> str:
        """The last part of the path, without `.zarr`."""
        return str(self).rstrip("/").rpartition("/")[2].removesuffix(".zarr")

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where files about the store go that are not part of it: the folder beside it."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Whether there is nothing at all, or nothing but a lock."""

    @abstractmethod
    def zarr_store(self, *, read_only: bool) -> ZarrStore:
        """Return what Zarr reads and writes through."""

    @abstractmethod
    def read(self, name: str) -> Record | None:
        """Return a file's content, or None where there is none."""

    @abstractmethod
    def update(self, name: str, decide: Decide) -> None:
        """Change a small record; of several processes one at a time decides.

        `decide` may be called again where another process came first, and may raise.

        Raises
        ------
        OSError
            Where it cannot be written.
        """

    @abstractmethod
    def files(self, folder: str) -> list[str]:
        """Return the names of the files right below a path."""

    @abstractmethod
    def appending(self, name: str) -> AbstractContextManager[Callable[[str], None]]:
        """Give what adds text to a new file, so that it is there also if this process is killed."""

    @abstractmethod
    def partials(self) -> Iterator[str]:
        """Yield the `*.partial` leftovers of killed writers."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file of the store, if it is there."""


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
    """Let URLs of these schemes be locations; `make` takes a URL."""
    _SCHEMES.update(dict.fromkeys(schemes, make))


def absolute(place: str | Path) -> str:
    """Return the place as processes in other folders find it."""
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
        """The folder that the store stands in."""
        return self.path.parent

    def is_empty(self) -> bool:
        """Whether there is no folder, or nothing in it but a lock."""
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
        """Change a small file: made by exclusive create, changed in place under its lock.

        In place, since a file that keeps its length can be written where the disk is full.
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
                    # removed, or made anew, while this process waited for the lock
                    if not _is_at(descriptor, path):
                        continue
                    # another process may have been quicker between the create and the lock
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
        """Give what adds text to a new file, and hands it to the system at once."""
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
    """Hold the kernel's lock on a file, which ends with the process at the latest.

    Raises
    ------
    BlockingIOError
        Where another process, one that has been stopped, does not give it back.
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
