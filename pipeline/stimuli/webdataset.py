"""`source: webdataset`: shards of samples in .tar files, read in place."""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config.yaml import OneOrMany
from pipeline.errors import InputError
from pipeline.stimuli.decode import decode, decoder
from pipeline.stimuli.draft import Draft, label_columns, text_column
from pipeline.stimuli.encoded import identify
from pipeline.stimuli.files import identity, set_name
from pipeline.stimuli.ids import Ids, as_ids, content_id, text_id
from pipeline.stimuli.manifest import Manifest, described, nested_note
from pipeline.stimuli.memory import CaptionReader, check_content
from pipeline.stimuli.source import FileSpec, Progress
from pipeline.stimuli.table import StimulusRows, StimulusTable
from pipeline.suggest import did_you_mean
from pipeline.types import Modality

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
"""How compressed files begin."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SAMPLE = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
"""Name of a sample, and extension."""
_LONGEST_END = 2**21
"""Bytes of zeros with which programs that write .tar files end them, at most."""


class WebDatasetSpec(FileSpec):
    """Samples in .tar files: members of one name, told apart by what follows its first dot."""

    source: Literal["webdataset"]
    """Shards in the format of WebDataset."""
    shards: OneOrMany
    """The .tar files, which must not be compressed: a path, a pattern such as `shards/*.tar` or
    `shards/{000..099}.tar`, or a list of these in their order. The files of a pattern are ordered
    by the numbers in their names."""
    image: OneOrMany | None = None
    """Extension of the images, such as `jpg`, or several; default: any that images have."""
    caption: str | None = "txt"
    """Extension of captions, if samples have them; null: none."""
    label: str | None = "cls"
    """Extension of classes, numbers or names, if samples have them; null: none."""
    metadata: str | None = "json"
    """Extension of JSON objects, if samples have them; their fields become columns, unless they
    are lists or objects themselves. null: none."""
    group: str | None = "group"
    """Field of the JSON objects that groups samples, if there is one; null: none."""
    id: str | None = "id"
    """Field of the JSON objects that differs between samples, if there is one; null: none."""

    def absolute(self) -> Self:
        """Return the spec with absolute paths."""
        return self.model_copy(
            update={"shards": tuple(str(Path(s).absolute()) for s in self.shards)}
        )


class WebDatasetSource:
    """Images that are read from the middle of .tar files, of which nothing is extracted."""

    spec = WebDatasetSpec

    def index(
        self,
        spec: WebDatasetSpec,
        known: StimulusTable | None = None,
        progress: Progress | None = None,
    ) -> StimulusTable:
        """Find every sample, and decode every image."""
        shards = shard_paths(spec)
        details = {"shards": [_identity(s) for s in shards], **decoder()}
        if known is not None and known.details == details and known.source == spec.recorded():
            return known
        samples = _Samples(spec, shards)
        images = identify(len(samples.rows), samples.read_images, progress)
        content: dict[Modality, Ids] = {"image": images.ids}
        columns, notes = samples.columns()
        columns |= images.columns
        captions = samples.captions
        if any(captions):
            content["text"] = as_ids(text_id(c) if c else "" for c in captions)
            columns["caption"] = text_column(captions)
        draft = Draft(
            samples.rows,
            content,
            columns,
            {**images.faults, **samples.faults},
            [*samples.notes, *notes],
        )
        name = spec.name or set_name(shards[0].resolve().parent.name)
        return draft.table(spec, name, details=details, item_bytes=images.item_bytes)

    def open(self, spec: WebDatasetSpec, table: StimulusRows) -> WebDatasetReader:
        """Find the shards."""
        return WebDatasetReader(shard_paths(spec), table)


class WebDatasetReader:
    """Reads images from their places in shards, and captions from the table."""

    def __init__(self, shards: Sequence[Path], table: StimulusRows) -> None:
        self.shards, self.table = shards, table
        self.captions = CaptionReader(table)

    def read(self, modality: Modality, rows: slice) -> Sequence[Any]:
        """Return decoded images, or captions."""
        if modality == "text":
            return self.captions.read(rows)
        columns = (self.table.column_at(n, rows).tolist() for n in ("shard", "offset", "bytes"))
        found = []
        for row, (shard, offset, size) in enumerate(zip(*columns, strict=True), rows.start):
            content = self._bytes(shard, offset, size)
            ids, where = as_ids([content_id(content)]), str(self.shards[shard])
            check_content(self.table, modality, slice(row, row + 1), ids, where)
            found.append(decode(content))
        return found

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        everywhere = "Every machine that extracts needs the same shards in the same place."
        if shard >= len(self.shards):
            raise InputError(
                f"shards: {len(self.shards)} are found on this machine, but number {shard}, "
                f"counted from 0, is wanted. {everywhere}"
            )
        try:
            return _read(self.shards[shard], offset, size)
        except OSError as error:
            raise InputError(
                f"{self.shards[shard]} cannot be read: {error.strerror or error}. {everywhere}"
            ) from None


def shard_paths(spec: WebDatasetSpec) -> list[Path]:
    """Return the paths of the shards, in order.

    Raises
    ------
    InputError
        Where one is not there, or not on this machine.
    """
    found: list[Path] = []
    for pattern in spec.shards:
        if "://" in pattern or pattern.startswith("pipe:"):
            raise InputError(
                f"stimuli: shards: {pattern}: shards are read from their middle, which needs local "
                "files. Download them first."
            )
        for path in _expand(pattern):
            files = [path]
            if not Path(path).exists() and glob.has_magic(path):
                files = sorted(glob.glob(path), key=_by_number)
            if not files:
                raise InputError(
                    f"stimuli: no file matches shards: {path} (paths are relative to {Path.cwd()})."
                )
            found += map(Path, files)
    for file in found:
        if not file.is_file():
            beside = [p.name for p in file.parent.glob("*.tar*")]
            raise InputError(
                f"stimuli: shards: there is no file {file} (paths are relative to {Path.cwd()})."
                f"{did_you_mean(file.name, beside)}"
            )
    return found


def _expand(pattern: str) -> list[str]:
    """Return a pattern with each `{000..099}` written out."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    width = len(first) if len(first) == len(last) else 0
    step = 1 if int(first) <= int(last) else -1
    before, after = pattern[: match.start()], pattern[match.end() :]
    numbers = range(int(first), int(last) + step, step)
    return [found for n in numbers for found in _expand(f"{before}{n:0{width}d}{after}")]


def _by_number(path: str) -> list[tuple[str, int]]:
    """Return a key that orders names by the numbers in them: 2 before 10."""
    parts = re.split(r"(\d+)", path)
    return list(zip(parts[::2], [*map(int, parts[1::2]), -1], strict=True))


def _identity(shard: Path) -> dict[str, Any]:
    """Return what tells whether a file is the one that was read before."""
    return {"name": shard.name, **identity(shard)}


def _read(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(size)


@dataclass(frozen=True)
class _Member:
    """A file within a shard."""

    shard: int
    name: str
    offset: int
    size: int


@dataclass
class _Sample:
    """The members of one name, by extension."""

    name: str
    members: dict[str, _Member] = field(default_factory=dict)
    fault: str | None = None


class _Samples:
    """All samples of all shards, in order: where their images lie, and what else they have."""

    def __init__(self, spec: WebDatasetSpec, shards: Sequence[Path]) -> None:
        self.spec, self.shards = spec, shards
        self.rows: list[str] = []
        self.captions: list[str] = []
        self.faults: dict[int, str] = {}
        self.notes: list[str] = []
        self._images: list[_Member] = []
        self._labels: list[str | None] = []
        self._metadata: list[Mapping[str, Any]] = []
        self._suffixes = _image_extensions(spec)
        left_out = 0
        for number, shard in enumerate(shards):
            samples, others = _scan(shard, number)
            left_out += others
            for sample in samples:
                self._add(sample)
        if not self.rows:
            raise InputError(
                f"stimuli: the shards, first {shards[0]}, have no samples: files whose names are "
                "like 000017.jpg."
            )
        if left_out:
            self.notes.append(
                "Members of the shards that were left out, because they are links, or have names "
                f"without an extension or that begin with a dot: {left_out}."
            )

    def _add(self, sample: _Sample) -> None:
        row, members = len(self.rows), sample.members
        fault = sample.fault
        found = [m for e, m in members.items() if e in self._suffixes]
        if len(found) != 1:
            wanted = ", ".join(self.spec.image or ())
            have = f"its members are {', '.join(f'.{e}' for e in members)}"
            fault = fault or (
                f"it has {len(found)} images, of which image: has to choose: {have}"
                if found
                else f"it has no image{f' with the extension {wanted}' if wanted else ''}: {have}"
            )
        image = found[0] if found else next(iter(members.values()))
        texts: dict[str, Any] = {}
        for role in ("caption", "label", "metadata"):
            member = members.get(getattr(self.spec, role) or "")
            try:
                texts[role] = None if member is None else self._text(member)
                if role == "metadata":
                    texts[role] = _fields(texts[role])
            except ValueError as error:
                fault = fault or f"{member.name if member else role}: {error}"
                texts[role] = {} if role == "metadata" else ""
        if fault is not None:
            self.faults[row] = fault
        self.rows.append(f"{self.shards[image.shard].name}: {sample.name}")
        self.captions.append(texts["caption"] or "")
        self._images.append(image)
        self._labels.append(texts["label"])
        self._metadata.append(texts["metadata"])

    def _text(self, member: _Member) -> str:
        content = _read(self.shards[member.shard], member.offset, member.size)
        try:
            return content.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8 text") from None

    def read_images(self, rows: range) -> list[bytes | str]:
        """Return the encoded images of some rows; instead of a bad sample, why it is."""
        found: list[bytes | str] = []
        for row in rows:
            at = self._images[row]
            bad = self.faults.get(row)
            found.append(_read(self.shards[at.shard], at.offset, at.size) if bad is None else bad)
        return found

    def columns(self) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Return the columns that describe the rows, and notes of what was left out."""
        names = dict.fromkeys(name for fields in self._metadata for name in fields)
        values = {name: [fields.get(name) for fields in self._metadata] for name in names}
        nested = [n for n, v in values.items() if any(isinstance(x, list | dict) for x in v)]
        scalars = {n: v for n, v in values.items() if n not in nested}
        columns, notes = described(
            Manifest(self.shards[0], scalars, self.rows),
            items=[],
            label=None,
            group=self.spec.group,
            id=self.spec.id,
        )
        notes += nested_note(nested)
        labels = self._labels
        if any(labels):
            # a bad sample is dropped, or ends it all: its label does not matter
            some = next(filter(None, labels))
            used = [some if i in self.faults else v for i, v in enumerate(labels)]
            columns |= label_columns(used, self.rows)
        columns["path"] = text_column([m.name for m in self._images])
        columns["shard"] = np.array([m.shard for m in self._images], dtype=np.int64)
        columns["offset"] = np.array([m.offset for m in self._images], dtype=np.int64)
        return columns, notes


def _image_extensions(spec: WebDatasetSpec) -> set[str]:
    if spec.image is not None:
        return {e.lstrip(".").lower() for e in spec.image}
    from PIL import Image

    return {suffix.lstrip(".") for suffix in Image.registered_extensions()}


def _fields(text: str | None) -> Mapping[str, Any]:
    """Return the fields of a JSON object."""
    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object, {field: value}")
    return fields


def _scan(shard: Path, number: int) -> tuple[list[_Sample], int]:
    """Return the samples of a shard in order, and how many other members there are.

    Only headers are read. Links are never followed.

    Raises
    ------
    InputError
        Where the file is compressed, cut off, no .tar file, or not ordered by sample.
    """
    with shard.open("rb") as file:
        head = file.read(8)
        for magic, how in _COMPRESSED.items():
            if head.startswith(magic):
                raise InputError(
                    f"{shard} is compressed ({how}): images cannot be read from the middle of it. "
                    "Decompress it; images are compressed as they are."
                )
        file.seek(0)
        samples: list[_Sample] = []
        names: set[str] = set()
        others = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    match = _SAMPLE.fullmatch(member.name.removeprefix("./"))
                    if member.isdir():
                        continue
                    if not member.isreg() or match is None:
                        others += 1
                        continue
                    name, extension = match[1], match[2].lower()
                    if not samples or samples[-1].name != name:
                        if name in names:
                            raise InputError(
                                f"{shard}: the members of the sample {name} are not next to each "
                                "other, or two samples have this name. Write the shard ordered by "
                                "name (tar --sort=name), with a name for each sample."
                            )
                        names.add(name)
                        samples.append(_Sample(name))
                    _put(samples[-1], extension, member, number)
                _check_end(file, tar.offset)
        except (tarfile.TarError, EOFError) as error:
            raise InputError(
                f"{shard} is damaged, cut off or no .tar file: {error}. Copy or write it again."
            ) from None
    return samples, others


def _put(sample: _Sample, extension: str, member: tarfile.TarInfo, shard: int) -> None:
    if extension in sample.members:
        sample.fault = f"it has two members .{extension}"
    if member.issparse():
        sample.fault = f"its member .{extension} is stored as a sparse file: write it plainly"
    sample.members[extension] = _Member(shard, member.name, member.offset_data, member.size)


def _check_end(file: Any, offset: int) -> None:
    """Check that a .tar file has an end, and that nothing follows it.

    One that is cut off between two members looks whole but for its end. Reading stops at a damaged
    header as at an end, and of files that were concatenated it reads the first.
    """
    file.seek(offset)
    end = file.read(_LONGEST_END)
    if len(end) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")
    if end[: tarfile.BLOCKSIZE].strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {offset} is damaged")
    if end.strip(b"\0"):
        raise tarfile.ReadError("another .tar file follows its end")


SOURCE = WebDatasetSource()
