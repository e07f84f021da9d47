"""`source: arrays`: numbers in .npy, .npz or Zarr files; the first axis is the stimuli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import InputError
from pipeline.schema import is_column_name
from pipeline.stimuli.decode import as_image
from pipeline.stimuli.draft import Draft, label_columns, text_column
from pipeline.stimuli.files import identity, read_lines, set_name
from pipeline.stimuli.ids import Ids, as_ids, row_ids, text_id
from pipeline.stimuli.manifest import plain_column
from pipeline.stimuli.memory import CaptionReader, check_content
from pipeline.stimuli.source import FileSpec, Progress
from pipeline.stimuli.table import StimulusRows, StimulusTable
from pipeline.suggest import did_you_mean
from pipeline.types import Mask, Modality

AT_ONCE = 2**24
"""Bytes of an array that are read at a time."""
PIXELS = "arrays of images need dtype uint8 and shape (n, height, width) or (n, height, width, 3)"


class ArraysSpec(FileSpec):
    """Numbers: tokens, waveforms, pixels, whatever a network takes."""

    source: Literal["arrays"]
    """Arrays of numbers."""
    path: str
    """A .npy or .npz file, or a Zarr folder."""
    key: str | None = None
    """Which array of a .npz file or a Zarr group; may be left out where there is one."""
    modality: Literal["array", "image"] = "array"
    """`image`: 8-bit pixels, (n, height, width) or (n, height, width, 3), for image towers."""
    columns: Mapping[str, str] = Field(default_factory=dict)
    """Column → file: `label`, `caption`, `group`, `id` or others. A .npy file, or a text file
    with one value to a line."""

    def absolute(self) -> Self:
        """Return the spec with absolute paths."""
        columns = {name: str(Path(p).absolute()) for name, p in self.columns.items()}
        path = str(Path(self.path).absolute())
        return self.model_copy(update={"path": path, "columns": columns})


class ArraysSource:
    """Arrays, read by rows and never whole."""

    spec = ArraysSpec

    def index(
        self,
        spec: ArraysSpec,
        known: StimulusTable | None = None,
        progress: Progress | None = None,
    ) -> StimulusTable:
        """Identify every row, and check that its numbers are finite."""
        values = open_array(spec.path, spec.key)
        n = int(values.shape[0])
        if spec.modality == "image" and not _is_pixels(values):
            raise InputError(f"{spec.path}: {PIXELS}; it has {values.dtype} {values.shape}.")
        if values.dtype.kind not in "iufb":
            raise InputError(
                f"{spec.path}: stimuli are numbers, but its dtype is {values.dtype}. Save it as "
                "integers or floats."
            )
        known_as = identity(Path(spec.path))
        faults: dict[int, str] = {}
        if known is not None and known.details.get("file") == known_as and len(known) == n:
            ids = known.content[spec.modality]
        else:
            ids, faults = _identify(values, progress)
        columns, captions = _columns(spec, n)
        content: dict[Modality, Ids] = {spec.modality: ids}
        if captions is not None:
            content["text"] = as_ids(text_id(c) if c else "" for c in captions)
            columns["caption"] = text_column(captions)
        columns["row"] = np.arange(n)
        name = spec.name or set_name(Path(spec.path).stem)
        draft = Draft(_Numbered(n), content, columns, faults)
        return draft.table(
            spec,
            name,
            details={"file": known_as},
            item_bytes=values.dtype.itemsize * int(np.prod(values.shape[1:])),
        )

    def open(self, spec: ArraysSpec, table: StimulusRows) -> ArraysReader:
        """Open the file."""
        return ArraysReader(spec, table)


class ArraysReader:
    """Reads rows of an array, and captions from the table."""

    def __init__(self, spec: ArraysSpec, table: StimulusRows) -> None:
        self.spec, self.table = spec, table
        self.values = open_array(spec.path, spec.key)
        self.captions = CaptionReader(table)

    def read(self, modality: Modality, rows: slice) -> Sequence[Any]:
        """Return arrays, images of 8-bit pixels, or captions."""
        if modality == "text":
            return self.captions.read(rows)
        at = self.table.column_at("row", rows)
        found = np.asarray(self.values[slice(int(at[0]), int(at[-1]) + 1)])[at - at[0]]
        check_content(self.table, modality, rows, row_ids(found), self.spec.path)
        return [as_image(p) for p in found] if modality == "image" else list(found)


class _Numbered(Sequence[str]):
    """Names of rows that have only a number, made when asked for."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: Any) -> Any:
        if row >= self.n:
            raise IndexError(row)
        return f"row {row}"


def open_array(path: str, key: str | None) -> Any:
    """Open an array for reading by rows.

    Raises
    ------
    InputError
        Where the file is missing, holds no such array, or holds pickled objects.
    """
    if not Path(path).exists():
        beside = [p.name for p in Path(path).parent.glob("*")]
        raise InputError(
            f"{path}: there is no such file (paths are relative to {Path.cwd()})."
            f"{did_you_mean(Path(path).name, beside)}"
        )
    try:
        found = _open_zarr(path, key) if Path(path).is_dir() else _open_numpy(path, key)
    except InputError:
        raise
    except Exception as error:  # of any type: Zarr, NumPy and zipfile meet damaged bytes
        raise InputError(
            f"{path} cannot be read as numbers: {error}. Save it with numpy.save, numpy.savez or "
            "Zarr; objects are not read, since reading them may run code."
        ) from None
    if found.ndim == 0 or not found.shape[0]:
        raise InputError(f"{path} has no rows: its shape is {found.shape}.")
    return found


def _open_numpy(path: str, key: str | None) -> NDArray[Any]:
    # a .npy file is mapped, not read; a member of a .npz file is read whole
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    with found:
        name = _chosen(path, key, found.files)
        values: NDArray[Any] = found[name]
    return values


def _open_zarr(path: str, key: str | None) -> Any:
    import zarr

    found = zarr.open(path, mode="r")
    if isinstance(found, zarr.Array):
        return found
    return found[_chosen(path, key, sorted(found.array_keys()))]


def _chosen(path: str, key: str | None, names: Sequence[str]) -> str:
    if key is not None and key in names:
        return key
    if key is None and len(names) == 1:
        return names[0]
    wanted = f"{len(names)} arrays" if key is None else f"no array {key!r}"
    near = "" if key is None else did_you_mean(key, names)
    raise InputError(f"{path} has {wanted}.{near} Set key: to one of {', '.join(names)}.")


def _is_pixels(values: Any) -> bool:
    return bool(values.dtype == np.uint8 and (values.ndim == 3 or values.shape[3:] == (3,)))


def _identify(values: Any, progress: Progress | None) -> tuple[Ids, dict[int, str]]:
    """Return the id of each row, and why rows cannot be used."""
    n, row_bytes = int(values.shape[0]), values.dtype.itemsize * int(np.prod(values.shape[1:]))
    if not row_bytes:
        raise InputError(f"stimuli: the rows are empty: the shape is {values.shape}.")
    step = max(1, AT_ONCE // row_bytes)
    ids: list[Ids] = []
    faults: dict[int, str] = {}
    for start in range(0, n, step):
        part = np.asarray(values[start : start + step])
        ids.append(row_ids(part))
        if part.dtype.kind == "f":
            finite: Mask = np.isfinite(part).reshape(len(part), -1).all(axis=1)
            faults |= {
                start + int(i): "it has values that are not finite" for i in np.flatnonzero(~finite)
            }
        if progress is not None:
            progress(min(start + step, n), n)
    return np.concatenate(ids), faults


def _columns(spec: ArraysSpec, n: int) -> tuple[dict[str, NDArray[Any]], list[str] | None]:
    """Return the columns that files hold, and the captions among them."""
    found: dict[str, NDArray[Any]] = {}
    captions: list[str] | None = None
    for name, path in spec.columns.items():
        values = _values(path)
        if len(values) != n:
            raise InputError(
                f"{path} has {len(values)} values for the column {name!r}, but {spec.path} has {n} "
                "rows: give one for each."
            )
        if name == "caption":
            captions = [str(v) for v in values]
        elif name == "label":
            found |= label_columns(values, _Numbered(n))
        elif name in ("id", "group"):
            found[name] = text_column([str(v) for v in values])
        elif not is_column_name(name):
            raise InputError(
                f"stimuli: columns: {name!r} cannot be the name of a column: it is one that the "
                "store uses, or has other characters than letters, digits, spaces, dots, dashes "
                "and underscores."
            )
        else:
            found[name] = plain_column(values)
    return found, captions


def _values(path: str) -> list[Any]:
    if Path(path).suffix == ".npy":
        values: list[Any] = np.asarray(open_array(path, None)).tolist()
        return values
    lines = read_lines(path)
    return lines[:-1] if lines[-1] == "" else lines


SOURCE = ArraysSource()
