"""One run at a time on a store: a lock with a heartbeat.

The holder renews its lock. A lock is taken over at once if its process on this host has ended, and
from another host once its heartbeat is minutes old. A run stops writing when it finds its lock
lost, or could not renew it for so long that another run may have taken it over.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, RLock, Thread

from pipeline.errors import LostError, StoreError
from pipeline.store.io.location import LOCK, Location, Record, locate

BEAT = 20.0
"""Seconds between heartbeats."""
STALE = 300.0
"""Seconds without a heartbeat after which a lock is taken over."""
LOOK = 1.0
"""Seconds between checks that the lock is still held."""
_LENGTH = 512  # a record keeps its length, so that renewing works on a full disk


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    process: int
    started: str
    """Start of the process, in ticks since boot: process ids are reused."""
    machine: str
    """Boot id and PID namespace."""
    token: str
    since: str
    heartbeat: float
    """Seconds since 1970."""

    @property
    def phrase(self) -> str:
        """Who holds it, since when, and the age of the heartbeat."""
        age = max(0.0, time.time() - self.heartbeat)
        return (
            f"process {self.process} on {self.host} since {self.since} (last heartbeat "
            f"{age:.0f} s ago)"
        )


class LeaseCheck:
    """A run's lock as its tasks see it: `check` raises once it is lost. Thread-safe."""

    def __init__(self, location: Location, token: str) -> None:
        self._location, self.token = location, token
        self._mutex, self._lost = RLock(), ""
        self._looked, self._tried = _clock(), float("-inf")

    def check(self) -> None:
        """Raise if the lock is no longer held. Cheap: it reads the lock at most once a second.

        Raises
        ------
        LostError
            Where another run has taken the lock, it was removed, or it could not be read or
            renewed for as long as it takes to become stale.
        """
        with self._mutex:
            now = _clock()
            if not self._lost and now - self._tried > LOOK:
                self._tried = now
                self._look()
                silent = now - self._looked
                if not self._lost and silent > STALE - 2 * BEAT:
                    self._lost = f"its lock could not be read for {silent:.0f} s"
            if self._lost:
                raise LostError(
                    f"{self._location}: this run has lost the store: {self._lost}",
                    "It has stopped writing; what was written is complete and kept. Run again once "
                    "no other run is writing.",
                )

    def _look(self) -> None:
        with suppress(OSError, StoreError):
            if not self._misses(self._location.read(LOCK)):
                self._looked = _clock()

    def _misses(self, record: Record | None) -> bool:
        """Whether a record belongs to another run, or to none; note why."""
        if record is None or not record.content:
            self._lost = "someone has removed its lock"
        elif not _is(record, self.token):
            holder = _decode(record)
            self._lost = f"{holder.phrase if holder else 'another run'} has taken it over"
        return bool(self._lost)


class Lease(LeaseCheck):
    """A lock that this process holds and renews. Thread-safe."""

    def __init__(self, location: Location, mine: Holder, beat: float, stale: float) -> None:
        super().__init__(location, mine.token)
        self._mine, self._beat, self._stale = mine, beat, stale
        self._renewed = self._looked = self._tried = _clock()

    def _look(self) -> None:
        if _clock() - self._renewed > self._beat:
            self.renew()
        else:
            super()._look()

    def renew(self) -> None:
        """Renew the heartbeat, or find out that the lock is lost."""
        with self._mutex:
            if self._lost:
                return
            now = _clock()
            try:
                self._location.update(LOCK, self._renewal)
            except (OSError, StoreError) as error:
                silent = now - self._renewed
                # before another run may take it over
                if silent > self._stale - 2 * self._beat:
                    self._lost = f"its lock could not be renewed for {silent:.0f} s ({error})"
            else:
                if not self._lost:
                    self._renewed = self._looked = now

    def release(self) -> None:
        """Release the lock, if this run still holds it."""

        def removed(record: Record | None) -> bytes | None:
            ours = record is not None and _is(record, self.token)
            return None if record is None or ours else record.content

        with suppress(OSError, StoreError):  # it becomes stale instead
            self._location.update(LOCK, removed)

    def _renewal(self, record: Record | None) -> bytes | None:
        if self._misses(record):
            return None if record is None else record.content
        return _encode(replace(self._mine, heartbeat=time.time()))


@dataclass(frozen=True)
class StoreRef:
    """A reference to a store that tasks carry: its place, and the lock under which they write."""

    place: str
    token: str = ""
    """Token of the lock; empty without one."""

    def lease_check(self) -> LeaseCheck | None:
        """Return the check to make before each write; None without a lock."""
        return LeaseCheck(locate(self.place), self.token) if self.token else None


@contextmanager
def lease(
    store: str | Path | Location,
    *,
    wait: float = 0.0,
    on_wait: Callable[[str], None] = lambda _: None,
    beat: float = BEAT,
    stale: float = STALE,
) -> Iterator[Lease]:
    """Hold the store's lock.

    Parameters
    ----------
    store
        Its path or URL.
    wait
        Seconds to wait for another run to end.
    on_wait
        Called once with who holds the lock, if there is something to wait for.
    beat, stale
        Seconds between heartbeats, and without one until a lock is taken over.

    Raises
    ------
    StoreError
        Where another run holds it, or the store cannot be written.
    """
    location = locate(store)
    mine = Holder(
        host=socket.gethostname(),
        process=os.getpid(),
        started=_started(os.getpid()),
        machine=_machine(),
        token=uuid.uuid4().hex,
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        heartbeat=0.0,
    )
    _acquire(location, mine, wait, on_wait, stale)
    held = Lease(location, mine, beat, stale)
    ended = Event()

    def renew() -> None:
        while not ended.wait(beat):
            held.renew()

    thread = Thread(target=renew, name="consilience-lease", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        ended.set()
        thread.join()
        held.release()


def holder(store: str | Path | Location) -> Holder | None:
    """Return who holds the store's lock, or None."""
    record = locate(store).read(LOCK)
    return None if record is None else _decode(record)


def at_work(store: str | Path | Location) -> Holder | None:
    """Return who is writing the store: not a holder that has ended or is silent."""
    record = locate(store).read(LOCK)
    found = None if record is None else _decode(record)
    if record is None or found is None or _is_gone(found) or _silent(found, record) > STALE:
        return None
    return found


def _silent(found: Holder | None, record: Record) -> float:
    """Return the seconds since the last heartbeat; from the file's age if clocks disagree."""
    since = time.time() - found.heartbeat if found else -1.0
    return since if since >= 0 else record.age


class _HeldError(Exception):
    """The lock is held; the message names the holder."""


def _acquire(
    location: Location, mine: Holder, wait: float, on_wait: Callable[[str], None], stale: float
) -> None:
    def taken(record: Record | None) -> bytes:
        if record is not None:
            found = _decode(record)
            silent = _silent(found, record)
            if silent < stale and not (found and _is_gone(found)):
                raise _HeldError(found.phrase if found else "a run that has just started")
        return _encode(replace(mine, heartbeat=time.time()))

    end, told = time.monotonic() + wait, False
    while True:
        try:
            try:
                location.update(LOCK, taken)
            except BlockingIOError:
                raise _HeldError(
                    "a process that does not release its lock (is it stopped?)"
                ) from None
            return
        except _HeldError as error:
            left = end - time.monotonic()
            if left <= 0:
                raise StoreError(
                    f"{location} is in use by {error}"
                    f"{f', and was for the {wait:g} s of --wait' if wait else ''}",
                    "Wait until that run has ended (--wait SECONDS does); if it is certain that it "
                    f"has, remove {location}/{LOCK}.",
                ) from None
            if not told:
                on_wait(str(error))
                told = True
            time.sleep(min(1.0, left))
        except OSError as error:
            raise StoreError(
                f"{location} cannot be written: {error.strerror or error}",
                "To look at it, `consilience store` and `consilience report` need only read; to "
                "run, name a store that can be written, with --store.",
            ) from None


def _encode(found: Holder) -> bytes:
    return json.dumps(asdict(found)).ljust(_LENGTH).encode()


def _decode(record: Record) -> Holder | None:
    """Return who wrote a record, or None if it is incomplete."""
    try:
        return Holder(**json.loads(record.content))
    except (ValueError, TypeError):
        return None


def _is(record: Record, token: str) -> bool:
    found = _decode(record)
    return found is not None and found.token == token


def _is_gone(found: Holder) -> bool:
    """Whether it is certain that the holder's process has ended."""
    if found.host != socket.gethostname() or found.machine != _machine():
        return False  # only its heartbeat can tell
    try:
        os.kill(int(found.process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    # where the system hides other users' processes, nothing is certain
    return _started(int(found.process)) not in ("", found.started)


def _started(process: int) -> str:
    """Return the start of a process, or `ended`; empty where the system does not say."""
    try:
        # the second field, a name in parentheses, may contain spaces
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "ended" if state in "ZX" else fields[18]
    except (OSError, IndexError, ValueError):
        return ""


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _clock() -> float:
    """Return seconds on a clock that also runs while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


__all__ = [
    "BEAT",
    "STALE",
    "Holder",
    "Lease",
    "LeaseCheck",
    "StoreRef",
    "at_work",
    "holder",
    "lease",
]
