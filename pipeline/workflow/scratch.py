"""Prepared representations on local disk, shared by the workers of one machine."""

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
from pipeline.measures.spill import in_files, in_memory


class CachedRepresentation:
    """A prepared representation, with its relations in memory or in files.

    Parameters
    ----------
    prepared
        It, with relations in memory.
    filed
        The same with relations in files, if there are any.
    """

    def __init__(self, prepared: Prepared, filed: Prepared | None = None) -> None:
        self.prepared, self.filed = prepared, filed
        self.whole = prepared.nbytes
        """Bytes of memory that it takes with its relations there."""

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes now."""
        return self.whole if self.prepared is not self.filed else self.filed.nbytes

    @property
    def files(self) -> list[Path]:
        """Where its relations are, if they are in files."""
        return in_files(self.filed)

    def spill(self) -> None:
        """Let go of the relations in memory, if there are files."""
        self.prepared = self.filed or self.prepared

    def load(self) -> None:
        """Read relations into memory."""
        if self.prepared is self.filed:
            self.prepared = in_memory(self.filed)


class Scratch:
    """A folder in which each representation is prepared once, by whichever worker needs it first.

    Locks are the system's, on files: they end with the process that holds them, however it ends.
    The last process to leave removes the folder; what killed ones have left, the next to come does.

    Parameters
    ----------
    parent
        A local folder that the machine's workers have in common.
    """

    def __init__(self, parent: Path) -> None:
        # a folder that several machines see is one for each of them
        self.folder = parent / f"consilience-{os.getuid()}-{socket.gethostname()}"
        self._own, self._open = local(), [self._enter()]
        finalize(self, _leave, self.folder, self._open)

    def need(self, names: Iterable[str]) -> None:
        """Say what this thread works with from now on: it is not removed to make room."""
        if not hasattr(self._own, "needs"):
            self._own.needs = (self.folder / f"{uuid.uuid4().hex}.needs").open("wb")
            self._open.append(self._own.needs)
            fcntl.flock(self._own.needs, fcntl.LOCK_EX)  # as long as the process lives
        with self._locked("used.lock"):
            self._own.needs.seek(0)
            self._own.needs.truncate()
            self._own.needs.write("\n".join(names).encode())
            self._own.needs.flush()

    def has(self, name: str) -> bool:
        """Tell whether there are files of a representation."""
        return self._file(name).exists()

    def get(self, name: str, make: Callable[[], Prepared], budget: int) -> CachedRepresentation:
        """Return a prepared representation, from its files or else newly made.

        Parameters
        ----------
        name
            What tells it from all others, fit for a file.
        make
            Prepares it. While it does, others that want the same wait.
        budget
            Bytes that all of the folder may take. The oldest that nobody needs make room; where
            that is not enough, there are no files of it.
        """
        file = self._file(name)
        with self._locked(f"{name}.lock"):
            if file.exists():
                known: CachedRepresentation = pickle.loads(file.read_bytes())
                file.touch()
                return known
            held = CachedRepresentation(make())
            if self._reserve(held.whole, budget):
                held.filed = held.prepared.spilled(self.folder)
                away = copy(held)
                away.spill()
                partial = file.with_suffix(".partial")
                partial.write_bytes(pickle.dumps(away))
                partial.rename(file)
            return held

    def used(self) -> int:
        """Return the bytes that are taken."""
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
                needed = self._needed()
                files = [f for f in self.folder.glob("*.prepared") if f.stem not in needed]
                for file in sorted(files, key=lambda f: f.stat().st_mtime_ns):
                    old: CachedRepresentation = pickle.loads(file.read_bytes())
                    file.unlink()
                    for path in old.files:
                        path.unlink()
                    taken -= old.whole
                    if taken + size <= budget:
                        break
            fits = taken + size <= budget
            (self.folder / "used").write_text(str(taken + size if fits else taken))
            return fits

    def _needed(self) -> set[str]:
        """Return what threads that live need."""
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
        """Come in, as one of the users; the first clears away what is left from before."""
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
                    for left in self.folder.iterdir():
                        if left.name != "users":
                            left.unlink()
                fcntl.flock(users, fcntl.LOCK_SH)
                if _same_file(users, self.folder / "users"):
                    return users
                users.close()  # the last user removed the folder meanwhile

    def _check_owner(self) -> None:
        """Refuse what somebody else has put there: objects are unpickled from it."""
        with suppress(FileNotFoundError):  # the last user removed it meanwhile
            about = self.folder.stat()
            if about.st_uid != os.getuid() or about.st_mode & 0o022:
                raise InputError(
                    f"{self.folder}, for scratch files, belongs to somebody else, or others can "
                    "write it. Remove it, or have Dask use another folder "
                    "(DASK_TEMPORARY_DIRECTORY)."
                )


def _same_file(opened: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _leave(folder: Path, opened: list[BinaryIO]) -> None:
    """Go; the last one removes the folder."""
    with suppress(BlockingIOError):
        fcntl.flock(opened[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    for file in opened:
        file.close()
