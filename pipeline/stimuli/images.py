"""`source: images`: the image files of a folder, or those that a manifest names."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from pipeline.errors import InputError
from pipeline.stimuli.decode import decode, decoder
from pipeline.stimuli.draft import Draft, label_columns, text_column
from pipeline.stimuli.files import below, set_name
from pipeline.stimuli.ids import Ids, as_ids, content_id, hex_ids, text_id
from pipeline.stimuli.manifest import described, read_manifest
from pipeline.stimuli.memory import CaptionReader, check_content
from pipeline.stimuli.source import FileSpec, Progress
from pipeline.stimuli.table import StimulusRows, StimulusTable
from pipeline.types import Int64, Modality


class ImagesSpec(FileSpec):
    """A folder of image files, or a manifest that names them."""

    source: Literal["images"]
    """Image files."""
    root: str | None = None
    """The folder of the images, subfolders included. With a manifest: the folder that its paths
    start at, by default its own. No path may lead out of it, nor a link."""
    pattern: str | None = None
    """Only files whose path below `root` matches this glob; `*` matches slashes too. Default:
    every file with the suffix of an image."""
    manifest: str | None = None
    """A table (.csv, .tsv, .jsonl, .parquet) with a path in each row; rows keep their order."""
    labels: Literal["folders"] | None = None
    """`folders`: the folders right below `root` are classes."""
    image: str = "image"
    """The manifest's column of paths."""
    caption: str | None = "caption"
    """The manifest's column of captions, if it has one; null: none."""
    label: str | None = "label"
    """The manifest's column of classes, numbers or names, if it has one; null: none."""
    group: str | None = "group"
    """The manifest's column of groups, if it has one; null: none."""
    id: str | None = "id"
    """The manifest's column of your own ids, if it has one; null: none."""

    @model_validator(mode="after")
    def _folder_or_manifest(self) -> Self:
        if self.manifest is None and self.root is None:
            raise ValueError("name a folder (root: …) or a table of images (manifest: …).")
        if self.manifest is not None and (self.pattern or self.labels):
            raise ValueError("pattern and labels are for folders; a manifest names its own.")
        return self

    def absolute(self) -> Self:
        """Return the spec with absolute paths."""
        made = {k: str(Path(v).absolute()) for k in ("root", "manifest") if (v := getattr(self, k))}
        return self.model_copy(update=made)

    @property
    def folder(self) -> Path:
        """The folder that paths start at."""
        return Path(self.root) if self.root is not None else Path(self.manifest or "").parent


class ImagesSource:
    """Image files, known by the digest of their bytes."""

    spec = ImagesSpec

    def index(
        self,
        spec: ImagesSpec,
        known: StimulusTable | None = None,
        progress: Progress | None = None,
    ) -> StimulusTable:
        """List, identify and decode every file."""
        if not spec.folder.is_dir():
            raise InputError(
                f"stimuli: there is no folder {spec.folder} (paths are relative to {Path.cwd()})."
            )
        if spec.manifest is not None:
            return self._of_manifest(spec, known, progress)
        paths, notes = _listed(spec)
        files = _inspect(spec.folder, paths, known, progress)
        columns = files.columns
        if spec.labels == "folders":
            loose = [p for p in paths if "/" not in p]
            if loose:
                raise InputError(
                    f"stimuli: labels: folders, but {len(loose)} images lie in no class folder of "
                    f"{spec.folder}, first {loose[0]}. Move them into one, or exclude them with "
                    "pattern: '*/*'."
                )
            columns |= label_columns([p.split("/")[0] for p in paths], paths)
        draft = Draft(paths, {"image": files.ids}, columns, files.faults, notes)
        return self._table(draft, spec, spec.folder.resolve().name, files, order=True)

    def _of_manifest(
        self,
        spec: ImagesSpec,
        known: StimulusTable | None,
        progress: Progress | None,
    ) -> StimulusTable:
        manifest = read_manifest(spec.manifest or "")
        paths = manifest.required(spec.image, "image")
        captions = manifest.optional(spec.caption, "caption", "caption")
        columns, notes = described(
            manifest,
            items=[c for c in (spec.image, spec.caption) if c],
            label=spec.label,
            group=spec.group,
            id=spec.id,
        )
        # a path may be in several rows, one for each caption: its file is read once
        distinct = list(dict.fromkeys(p for p in paths if p))
        files = _inspect(spec.folder, distinct, known, progress)
        at = {path: i for i, path in enumerate(distinct)}
        rows = np.array([at.get(p, -1) for p in paths], dtype=np.int64)
        files = files.take(rows)
        content: dict[Modality, Ids] = {"image": files.ids}
        columns |= files.columns
        if captions is not None:
            content["text"] = as_ids(text_id(c) if c else "" for c in captions)
            columns["caption"] = text_column(captions)
        rows_named = [f"{r} ({p})" if p else r for r, p in zip(manifest.rows, paths, strict=True)]
        draft = Draft(rows_named, content, columns, files.faults, notes)
        name = Path(spec.manifest or "").stem
        if name.lower() in ("manifest", "metadata"):
            name = spec.folder.resolve().name
        return self._table(draft, spec, name, files)

    @staticmethod
    def _table(
        draft: Draft, spec: ImagesSpec, name: str, files: _Files, *, order: bool = False
    ) -> StimulusTable:
        pixels = files.columns["image_width"] * files.columns["image_height"]
        return draft.table(
            spec,
            spec.name or set_name(name),
            order=order,
            details=decoder(),
            item_bytes=4 * int(pixels.max(initial=0)),
        )

    def open(self, spec: ImagesSpec, table: StimulusRows) -> ImagesReader:
        """Open the folder."""
        return ImagesReader(spec.folder, table)


class ImagesReader:
    """Reads image files, and captions from the table."""

    def __init__(self, folder: Path, table: StimulusRows) -> None:
        self.folder, self.table = folder.resolve(), table
        self.captions = CaptionReader(table)

    def read(self, modality: Modality, rows: slice) -> Sequence[Any]:
        """Return decoded images, or captions."""
        if modality == "text":
            return self.captions.read(rows)
        contents = [self._bytes(str(p)) for p in self.table.column_at("path", rows)]
        check_content(self.table, modality, rows, as_ids(map(content_id, contents)), "images")
        return [decode(content) for content in contents]

    def _bytes(self, path: str) -> bytes:
        try:
            return below(self.folder, path).read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.folder / path} cannot be read: {error}. Every machine that extracts "
                "needs the files in the same place."
            ) from None


@dataclass(frozen=True)
class _Files:
    """What is known of each file; id 0 of bad ones."""

    ids: Ids
    columns: dict[str, NDArray[Any]]
    faults: dict[int, str]

    def take(self, rows: Int64) -> _Files:
        """Return the files of rows; -1 is a row that names none."""
        faults = {i: self.faults[r] for i, r in enumerate(rows.tolist()) if r in self.faults}
        faults |= {int(i): "it names no image" for i in np.flatnonzero(rows < 0)}
        if not len(self.ids):
            raise InputError("stimuli: no row of the manifest names an image.")
        return _Files(self.ids[rows], {n: v[rows] for n, v in self.columns.items()}, faults)


def _listed(spec: ImagesSpec) -> tuple[list[str], list[str]]:
    """Return the paths of a folder's images below it, and notes."""
    from PIL import Image

    suffixes = Image.registered_extensions()
    root, found, others = spec.folder, [], 0
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        linked = [f for f in folders if Path(folder, f).is_symlink()]
        if linked:
            raise InputError(
                f"stimuli: {Path(folder, linked[0])} is a link to a folder, which may lead out of "
                f"{root}. Copy the folder, or name it as the root."
            )
        for name in names:
            path = Path(folder, name).relative_to(root).as_posix()
            if name.startswith("."):
                continue
            if spec.pattern is not None:
                wanted = fnmatch.fnmatchcase(path, spec.pattern)
            else:
                wanted = Path(name).suffix.lower() in suffixes
                others += not wanted
            if wanted:
                found.append(path)
    if not found:
        asked = f"that matches {spec.pattern!r}" if spec.pattern else "with the suffix of an image"
        raise InputError(f"stimuli: the folder {root} has no file {asked}.")
    notes = [f"Left out, without the suffix of an image: {others} files."] if others else []
    return sorted(found), notes


def _refuse(error: OSError) -> None:
    raise InputError(
        f"stimuli: the folder {error.filename} cannot be read: {error.strerror}. Correct its "
        "permissions."
    )


def _inspect(
    root: Path, paths: Sequence[str], known: StimulusTable | None, progress: Progress | None
) -> _Files:
    """Identify and decode files; those with the size and time that is known of them are not read.

    Nothing depends on the order in which threads finish.
    """
    resolved, remembered = root.resolve(), _remembered(known)
    found: list[_File | str | None] = [
        _recalled(resolved, path, remembered.get(path)) for path in paths
    ]
    unread = [i for i, recalled in enumerate(found) if recalled is None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = pool.map(lambda i: _inspect_file(resolved, paths[i]), unread)
        for done, (i, file) in enumerate(zip(unread, read, strict=True), 1):
            found[i] = file
            if progress is not None:
                progress(done, len(unread))
    faults = {i: f for i, f in enumerate(found) if isinstance(f, str)}
    rows = [f if isinstance(f, tuple) else ("", 0, 0, 0, 0, 0) for f in found]
    ids, *numbers = zip(*rows, strict=True) if rows else ((), (), (), (), (), ())
    columns: dict[str, NDArray[Any]] = {
        name: np.array(values, dtype=np.int64)
        for name, values in zip(_FILE_COLUMNS, numbers, strict=True)
    }
    return _Files(as_ids(ids), {"path": text_column(paths), **columns}, faults)


_FILE_COLUMNS = ("bytes", "mtime_ns", "ctime_ns", "image_width", "image_height")
_File = tuple[str, int, int, int, int, int]
"""Content id, and what the columns of a file have."""


def _inspect_file(root: Path, path: str) -> _File | str:
    """Return what is known of a file once it is read, or why it cannot be used."""
    try:
        file = below(root, path)
        stat, content = file.stat(), file.read_bytes()
        width, height = decode(content).size
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return str(error)
    return content_id(content), *_traits(stat), width, height


def _traits(stat: os.stat_result) -> tuple[int, int, int]:
    """Return what tells whether a file changed; its last time is that of any change, of names too.

    A file that is moved in the place of another may have its size and its modification time.
    """
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _recalled(root: Path, path: str, file: _File | None) -> _File | None:
    """Return what was known of a file, unless its size or one of its times is another now."""
    if file is None:
        return None
    try:
        stat = below(root, path).stat()
    except (OSError, ValueError):
        return None  # it is inspected, which says what is wrong
    return file if file[1:4] == _traits(stat) else None


def _remembered(known: StimulusTable | None) -> dict[str, _File]:
    """Return path → what `_inspect_file` found when the file was read."""
    if known is None or known.details != decoder():
        return {}
    columns = (known.columns[name].tolist() for name in _FILE_COLUMNS)
    rows = zip(known.columns["path"], hex_ids(known.content["image"]), *columns, strict=True)
    return {str(path): tuple(file) for path, *file in rows}


SOURCE = ImagesSource()
