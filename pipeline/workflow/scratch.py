"""Prepared representations in files on local disk, shared by the workers of one machine."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from threading import local
from typing import BinaryIO
from weakref import finalize

from pipeline.errors import InputError
from pipeline.measures import Prepared
from pipeline.measures.dense.spill import in_files, in_memory


class CachedRepresentation:
    """A prepared representation, with its relations in memory or in files.

    Parameters
    ----------
    prepared
        The representation with its relations in memory.
    in_scratch
        The same with its relations in files, if they were written.
    """

    def __init__(self, prepared: Prepared, in_scratch: Prepared | None = None) -> None:
        self.prepared, self.in_scratch = prepared, in_scratch
        self.loaded_bytes = prepared.nbytes
        """Bytes of memory with the relations in memory."""

    @property
    def memory(self) -> int:
        """Bytes of memory in use now."""
        return self.loaded_bytes if self.prepared is not self.in_scratch else self.in_scratch.nbytes

    @property
    def files(self) -> list[Path]:
        """Files of the relations; empty if there are none."""
        return in_files(self.in_scratch)

    def spill(self) -> None:
        """Release the relations in memory, if they are in files too."""
        self.prepared = self.in_scratch or self.prepared

    def load(self) -> None:
        """Read the relations into memory."""
        if self.prepared is self.in_scratch:
            self.prepared = in_memory(self.in_scratch)


class Scratch:
    """A folder in which each representation is prepared once, by whichever worker needs it first.

    Uses `flock`: the operating system releases a lock when its process ends, even if it is killed.
    The last process to leave removes the folder; files that killed processes left behind are
    removed by the next process to enter.

    Parameters
    ----------
    parent
        A local folder that all workers of the machine share.

    Raises
    ------
    InputError
        If the folder belongs to another user, or others can write to it.
    """

    def __init__(self, parent: Path) -> None:
        # `parent` may be on a network file system: one folder per machine
        self.folder = parent / f"consilience-{os.getuid()}-{socket.gethostname()}"
        self._own, self._open = local(), [self._enter()]
        finalize(self, _leave, self.folder, self._open)

    def pin(self, names: Iterable[str]) -> None:
        """Pin what this thread uses from now on: it is not evicted. Replaces its earlier pins."""
        if not hasattr(self._own, "needs"):
            self._own.needs = (self.folder / f"{uuid.uuid4().hex}.needs").open("wb")
            self._open.append(self._own.needs)
            fcntl.flock(self._own.needs, fcntl.LOCK_EX)  # held until the process ends
        with self._locked("used.lock"):
            self._own.needs.seek(0)
            self._own.needs.truncate()
            self._own.needs.write("\n".join(names).encode())
            self._own.needs.flush()

    def has(self, name: str) -> bool:
        """Return whether a representation is in files."""
        return self._file(name).exists()

    def get(self, name: str, make: Callable[[], Prepared], budget: int) -> CachedRepresentation:
        """Return a prepared representation, read from its files or newly prepared.

        Parameters
        ----------
        name
            Unique name, valid as a file name.
        make
            Prepares it. Meanwhile, others that want the same one wait.
        budget
            Limit for the whole folder, in bytes. The least recently used that nobody has pinned
            are removed to make room; if that is not enough, no files are written.
        """
        file = self._file(name)
        with self._locked(f"{name}.lock"):
            if file.exists():
                stored: CachedRepresentation = pickle.loads(file.read_bytes())
                file.touch()
                return stored
            held = CachedRepresentation(make())
            if self._reserve(held.loaded_bytes, budget):
                held.in_scratch = held.prepared.spilled(self.folder)
                spilled = copy(held)
                spilled.spill()
                partial = file.with_suffix(".partial")
                partial.write_bytes(pickle.dumps(spilled))
                partial.rename(file)
            return held

    def used(self) -> int:
        """Return the bytes in use."""
        file = self.folder / "used"
        return int(file.read_text()) if file.exists() else 0

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.prepared"

    def _reserve(self, size: int, budget: int) -> bool:
        if size > budget:
            return False
        with self._locked("used.lock"):
            taken = self.used()
            if taken + size > budget:
                pinned = self._pinned()
                files = [f for f in self.folder.glob("*.prepared") if f.stem not in pinned]
                for file in sorted(files, key=lambda f: f.stat().st_mtime_ns):
                    old: CachedRepresentation = pickle.loads(file.read_bytes())
                    file.unlink()
                    for path in old.files:
                        path.unlink()
                    taken -= old.loaded_bytes
                    if taken + size <= budget:
                        break
            fits = taken + size <= budget
            (self.folder / "used").write_text(str(taken + size if fits else taken))
            return fits

    def _pinned(self) -> set[str]:
        """Return the names that live threads have pinned."""
        found: set[str] = set()
        for path in self.folder.glob("*.needs"):
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found |= set(file.read().split())
                else:
                    path.unlink()
        return found

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.folder / name).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _enter(self) -> BinaryIO:
        """Register as a user of the folder; the first one removes what killed processes left.

        Return the file `users`, on which every user holds a shared lock.
        """
        while True:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_owner()
            with suppress(FileNotFoundError):
                users = (self.folder / "users").open("ab")
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass
                else:
                    for leftover in self.folder.iterdir():
                        if leftover.name != "users":
                            leftover.unlink()
                fcntl.flock(users, fcntl.LOCK_SH)
                if _same_file(users, self.folder / "users"):
                    return users
                users.close()  # the last user removed the folder meanwhile

    def _check_owner(self) -> None:
        """Refuse a folder that another user can write to: files in it are unpickled."""
        with suppress(FileNotFoundError):  # the last user removed it meanwhile
            status = self.folder.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                raise InputError(
                    f"{self.folder}, for scratch files, belongs to another user, or others can "
                    "write to it. Remove it, or have Dask use another folder "
                    "(DASK_TEMPORARY_DIRECTORY)."
                )


def _same_file(opened: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _leave(folder: Path, opened: list[BinaryIO]) -> None:
    """Stop using the folder; the last user removes it."""
    with suppress(BlockingIOError):
        fcntl.flock(opened[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    for file in opened:
        file.close()
