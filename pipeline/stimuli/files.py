"""Files that people name: where they may lie, what tells whether they changed, lines of text."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError


def identity(path: Path) -> dict[str, int]:
    """Return what tells whether a file, or a folder of files, is the one that was read before.

    Sizes, modification times, and the times of any change: a file that is moved in the place of
    another may have its size and its modification time.
    """
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    stats = [f.stat() for f in files]
    return {
        "files": len(stats),
        "bytes": sum(s.st_size for s in stats),
        "mtime_ns": max((s.st_mtime_ns for s in stats), default=0),
        "ctime_ns": max((s.st_ctime_ns for s in stats), default=0),
    }


def below(root: Path, path: str) -> Path:
    """Return the file that a relative path names, links followed.

    Parameters
    ----------
    root
        A folder, with its own links resolved.

    Raises
    ------
    ValueError
        Where it leads out of the folder, or is no file.
    """
    file = (root / path).resolve()
    if not file.is_relative_to(root):
        raise ValueError(f"it leads out of the folder {root}")
    if not file.is_file():
        raise ValueError("there is no such file")
    return file


def set_name(name: str) -> str:
    """Return a name for a set from that of a folder or file."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)
    return plain.strip("._-")[:60] or "stimuli"


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file.

    Raises
    ------
    InputError
        Where it is missing, or not UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}.") from None
    return text.split("\n")
