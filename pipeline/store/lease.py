"""One run at a time on a store: a lock file made by exclusive create."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StoreError

NAME = "consilience.lock"


@contextmanager
def lease(store: str | Path) -> Iterator[None]:
    """Hold the store's lock.

    A lock whose process is gone from this host is taken over.

    Raises
    ------
    StoreError
        Where another run holds it.
    """
    path = Path(store) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "token": uuid.uuid4().hex,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    for attempt in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            holder = _read(path)
            if attempt == 0 and holder is not None and _is_dead(holder):
                path.unlink(missing_ok=True)
                continue
            who = (
                f"process {holder['process']} on {holder['host']} since {holder['since']}"
                if holder
                else "a run that has just begun"
            )
            raise StoreError(
                f"{store} is in use by {who}. Wait until that run has ended; if it is certain "
                f"that it has, remove {path}."
            ) from None
        except OSError as error:
            raise StoreError(f"{store} cannot be written: {error.strerror}.") from None
        with os.fdopen(descriptor, "w") as file:
            json.dump(mine, file)
        break
    try:
        yield
    finally:
        holder = _read(path)
        if holder is not None and holder.get("token") == mine["token"]:
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, str] | None:
    try:
        found = json.loads(path.read_text())
        return found if {"host", "process", "since"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _is_dead(holder: dict[str, str]) -> bool:
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
