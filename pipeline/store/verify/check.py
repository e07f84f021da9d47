"""Read a whole store, report what is damaged or lost, and prepare its repair.

Everything is read chunk by chunk. `complete` and `state` say which chunks must exist, checksums
say which are intact. Repair only marks damaged pieces as missing; the next run computes them.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import zarr

from pipeline.store import paths
from pipeline.store.io.checksum import METADATA, ChecksumStore, without_checksum
from pipeline.store.io.lease import at_work, lease
from pipeline.store.io.location import Location, Record, locate
from pipeline.store.layout import ROOT_ATTRIBUTES, open_root
from pipeline.store.verify.parts import verifiers
from pipeline.store.verify.scan import Damage, Scan, Verification


def verify(
    place: str | Path | Location,
    *,
    repair: bool = False,
) -> Verification:
    """Read everything in a store and report what is damaged or lost.

    Parameters
    ----------
    place
        Path or URL of the store.
    repair
        Whether to mark damaged pieces as missing, so that the next run computes them, to restore
        metadata that follows from the rest, and to remove leftovers.

    Returns
    -------
    Verification
        Every damaged piece, and the amount of data read.

    Raises
    ------
    InputError
        Where there is no store.
    StoreError
        Where its format is newer; or, for a repair, it cannot be written or is in use.

    Notes
    -----
    Memory: one chunk, and the listing of one array.
    """
    location = locate(place)
    if repair:
        _root_damage(location)  # raises where there is no store, before a lock is made
        with lease(location) as held:
            broken = _root_damage(location)
            if broken:
                _write_root(location)
            root = open_root(location, "r+", lease=held)
            found = _verify(location, root)
            for damage in found.damages:
                held.check()
                damage.mend(root)
            found.damages[:0] = [broken] if broken else []
            found.repaired = True
            return found
    broken = _root_damage(location)
    if broken:
        return Verification([broken], running=at_work(location))
    found = _verify(location, open_root(location))
    found.running = at_work(location)
    return found


def _root_damage(location: Location) -> Damage | None:
    """Return what is wrong with the root of a store of this project.

    Raises
    ------
    InputError, StoreError
        Where it is something else, or has another format.
    """
    record = location.read(METADATA) if not location.is_empty() else None
    why = _unreadable(METADATA, record)
    if not why or all(
        _unreadable(key, location.read(key)) for key in map(paths.metadata, paths.PARTS)
    ):
        open_root(location)
        return None
    return Damage(
        "the store's root",
        why,
        METADATA,
        "restored; what is below could not be checked without it",
        lambda _: None,
    )


def _unreadable(key: str, record: Record | None) -> str:
    if record is None:
        return "its zarr.json is lost"
    try:
        without_checksum(key, record.content)
    except ValueError as error:
        return f"its zarr.json cannot be read: {error}"
    return ""


def _remove(location: Location, path: str, _: zarr.Group) -> None:
    location.remove(path)


def _write_root(location: Location) -> None:
    """Write the metadata of a store's root, the same for every store."""
    location.remove(METADATA)
    zarr.open_group(
        ChecksumStore(location.zarr_store(read_only=False)),
        mode="a",
        zarr_format=3,
        attributes=dict(ROOT_ATTRIBUTES),
    )


def _verify(location: Location, root: zarr.Group) -> Verification:
    from pipeline.analysis import ANALYSES

    started = time.monotonic()
    scan = Scan(location, root)
    for path in location.partials():
        mend = partial(_remove, location, path)
        scan.add(path, "left by a killed writer", path, "removed", mend)
    for part, verify_part in verifiers(ANALYSES).items():
        if scan.is_group(part):
            verify_part(scan, part)
    scan.found.arrays = len(scan.seen)
    scan.found.seconds = time.monotonic() - started
    return scan.found
