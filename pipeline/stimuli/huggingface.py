"""`source: huggingface`: a split of a data set of the Hugging Face hub, or of a local folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.stimuli.decode import decode, decoder
from pipeline.stimuli.draft import Draft, label_columns, text_column
from pipeline.stimuli.encoded import identify
from pipeline.stimuli.files import set_name
from pipeline.stimuli.hub_datasets import HuggingFaceSpec, LoadedDataset, load
from pipeline.stimuli.ids import Ids, as_ids, content_id, text_id
from pipeline.stimuli.manifest import Manifest, described, nested_note
from pipeline.stimuli.memory import CaptionReader, check_content
from pipeline.stimuli.source import Progress
from pipeline.stimuli.table import StimulusRows, StimulusTable, row_name
from pipeline.suggest import did_you_mean
from pipeline.types import Modality

if TYPE_CHECKING:
    from datasets import Dataset


class HuggingFaceSource:
    """Data sets that `datasets` keeps as Arrow files, mapped into memory."""

    spec = HuggingFaceSpec

    def index(
        self,
        spec: HuggingFaceSpec,
        known: StimulusTable | None = None,
        progress: Progress | None = None,
    ) -> StimulusTable:
        """Load the split, and decode every image."""
        loaded = load(spec)
        details = {**loaded.details, **decoder()}
        if known is not None and known.details == details and known.source == spec.recorded():
            return known
        columns = _Columns(spec, loaded)
        n = len(loaded.rows)
        rows = [f"row {i}" for i in range(n)]
        described_, notes = columns.described(rows)
        table_columns = {**described_, "row": np.arange(n)}
        content: dict[Modality, Ids] = {}
        faults: dict[int, str] = {}
        item_bytes = 0
        if columns.caption is not None:
            captions, faults = columns.captions()
            if columns.image is None:
                blank = {i: "it has no text" for i, c in enumerate(captions) if not c.strip()}
                faults = blank | faults
            texts = ("" if i in faults else c for i, c in enumerate(captions))
            content["text"] = as_ids(text_id(c) if c else "" for c in texts)
            table_columns["caption"] = text_column(captions)
        if columns.image is not None:
            images = identify(n, _Images(loaded.rows, columns.image).read, progress)
            content["image"] = images.ids
            table_columns |= images.columns
            faults |= images.faults
            item_bytes = images.item_bytes
        draft = Draft(rows, content, table_columns, faults, notes)
        name = spec.name or set_name(loaded.name)
        return draft.table(spec, name, details=details, item_bytes=item_bytes)

    def open(self, spec: HuggingFaceSpec, table: StimulusRows) -> HuggingFaceReader:
        """Open the split when its first image is read."""
        return HuggingFaceReader(spec, table)


class HuggingFaceReader:
    """Reads images from Arrow files, and captions from the table."""

    def __init__(self, spec: HuggingFaceSpec, table: StimulusRows) -> None:
        self.spec, self.table = spec, table
        self.captions = CaptionReader(table)

    @cached_property
    def images(self) -> _Images:
        """The column of images, opened once by a process."""
        return _open_images(self.spec, self.table.digest)

    def read(self, modality: Modality, rows: slice) -> Sequence[Any]:
        """Return decoded images, or captions."""
        if modality == "text":
            return self.captions.read(rows)
        where = f"data set {self.spec.dataset}"
        at = [int(i) for i in self.table.column_at("row", rows)]
        if at and at[-1] >= len(self.images):
            raise InputError(
                f"{where}: it has {len(self.images)} rows on this machine, but row {at[-1]} is "
                "wanted. Another revision of it is cached here, or the folder changed: put the "
                "same on every machine, and run again."
            )
        contents = self.images.read(at)
        bad = next((i for i, c in enumerate(contents) if isinstance(c, str)), None)
        if bad is not None:
            raise InputError(
                f"{where}: {row_name(self.table, rows.start + bad)} cannot be read: "
                f"{contents[bad]!s}. Every machine that extracts needs the same files."
            )
        encoded = [c for c in contents if isinstance(c, bytes)]
        check_content(self.table, modality, rows, as_ids(map(content_id, encoded)), where)
        return [decode(content) for content in encoded]


@lru_cache(maxsize=4)
def _open_images(spec: HuggingFaceSpec, digest: str) -> _Images:
    """Return the images of a set; `digest` is that of its table, so that others are not reused."""
    loaded = load(spec)
    return _Images(loaded.rows, _Columns(spec, loaded).image or "")


class _Images:
    """The encoded images of one column; reads no others."""

    def __init__(self, rows: Dataset, column: str) -> None:
        from datasets import Image, Value

        chosen = rows.select_columns([column])
        if not isinstance(chosen.features[column], Value):
            chosen = chosen.cast_column(column, Image(decode=False))
        self.rows, self.column = chosen, column

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Iterable[int]) -> list[bytes | str]:
        """Return the encoded images of some rows; instead of a bad one, why it cannot be read."""
        return [_encoded(value) for value in self.rows[list(rows)][self.column]]


def _encoded(value: Any) -> bytes | str:
    """Return the bytes of an image as `datasets` gives it, or why there are none."""
    if isinstance(value, bytes):
        return value
    if value is None or not (value.get("bytes") or value.get("path")):
        return "it has no image"
    if value.get("bytes"):
        return bytes(value["bytes"])
    try:
        return Path(value["path"]).read_bytes()
    except OSError as error:
        return f"{value['path']}: {error.strerror or error}"


class _Columns:
    """Which columns of a split have which role.

    Raises
    ------
    InputError
        Where a column that the spec names is not there or of another type, where `auto` leaves a
        choice, or where there is neither image nor caption.
    """

    def __init__(self, spec: HuggingFaceSpec, loaded: LoadedDataset) -> None:
        from datasets import ClassLabel, Image

        self.spec, self.rows = spec, loaded.rows
        self.features: Mapping[str, Any] = loaded.rows.features
        self.image = self._one("image", lambda f: isinstance(f, Image), _is_image, "an image")
        self.caption = self._one("caption", _is_text, _is_text, "a text or a list of texts")
        self.label = self._one("label", lambda f: isinstance(f, ClassLabel), _is_scalar, "a class")
        if self.image is None and self.caption is None:
            raise InputError(
                f"{self._where}: no column of images or captions is known by its type or name. "
                f"{self._listed} Set image: or caption: to the one that is meant."
            )

    @property
    def _where(self) -> str:
        return f"data set {self.spec.dataset}"

    @property
    def _listed(self) -> str:
        return f"It has {', '.join(f'{n} ({_type(f)})' for n, f in self.features.items())}."

    def _one(self, role: str, typical: Any, fits: Any, what: str) -> str | None:
        name: str | None = getattr(self.spec, role)
        if name is None:
            return None
        if name == "auto":
            found = [n for n, f in self.features.items() if typical(f)]
            if role == "caption":
                found = [n for n in found if n in ("caption", "captions", "text")]
            if role == "label" and "label" in self.features:
                found = ["label"]
            if len(found) > 1:
                raise InputError(
                    f"{self._where}: several columns may be meant by {role}: {', '.join(found)}. "
                    f"{self._listed} Set {role}: to one of them, or to null."
                )
            name = found[0] if found else None
        elif name not in self.features:
            raise InputError(
                f"{self._where} has no column {name!r}.{did_you_mean(name, self.features)} "
                f"{self._listed} Set {role}: to the one that is meant."
            )
        if name is not None and not fits(self.features[name]):
            raise InputError(
                f"{self._where}: its column {name!r} is {_type(self.features[name])}, not {what}. "
                f"{self._listed} Set {role}: to another column, or to null."
            )
        return name

    def captions(self) -> tuple[list[str], dict[int, str]]:
        """Return the caption of each row, empty where there is none, and why some are not there."""
        values = self._values(self.caption or "")
        index, found, faults = self.spec.caption_index, [], {}
        for i, value in enumerate(values):
            chosen = value
            if isinstance(value, list):
                chosen = value[index] if index < len(value) else None
                if chosen is None:
                    faults[i] = (
                        f"its column {self.caption} lists {len(value)} captions, so there is none "
                        f"at caption_index {index}, counted from 0"
                    )
            found.append("" if chosen is None else str(chosen))
        return found, faults

    def described(self, rows: Sequence[str]) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Return the columns that describe the rows, and notes of what was left out."""
        used = (self.image, self.caption, self.label)
        others = {n: f for n, f in self.features.items() if n not in used}
        scalars = {n: self._values(n) for n, f in others.items() if _is_scalar(f)}
        manifest = Manifest(Path(self.spec.dataset), scalars, rows)
        found, notes = described(
            manifest, items=[], label=None, group=self.spec.group, id=self.spec.id
        )
        labels, more = self._labels(rows)
        nested = nested_note([n for n in others if n not in scalars])
        return {**found, **labels}, [*notes, *nested, *more]

    def _labels(self, rows: Sequence[str]) -> tuple[dict[str, NDArray[Any]], list[str]]:
        if self.label is None:
            return {}, []
        names = getattr(self.features[self.label], "names", None)
        values = self._values(self.label)
        if names is None:
            return label_columns(values, rows), []
        # test splits without labels have class -1
        values = [v if v is not None and v >= 0 else None for v in values]
        if all(v is None for v in values):
            return {}, [f"The column {self.label} was left out: it has no labels."]
        found = label_columns(values, rows)
        found["label_name"] = text_column([names[i] for i in found["label"]])
        return found, []

    def _values(self, column: str) -> list[Any]:
        table = self.rows.select_columns([column]).with_format("arrow")[:]
        values: list[Any] = table.column(column).to_pylist()
        return values


def _is_scalar(feature: Any) -> bool:
    from datasets import ClassLabel, Value

    if isinstance(feature, ClassLabel):
        return True
    return isinstance(feature, Value) and "binary" not in feature.dtype


def _is_image(feature: Any) -> bool:
    """Whether a column holds encoded images: by its type, or as bytes that nobody declared."""
    from datasets import Image, Value

    if isinstance(feature, Value):
        return "binary" in feature.dtype
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, Image)


def _is_text(feature: Any) -> bool:
    from datasets import Value

    inner = getattr(feature, "feature", feature)
    return isinstance(inner, Value) and inner.dtype in ("string", "large_string")


def _type(feature: Any) -> str:
    """Name the type of a column in a few words."""
    from datasets import ClassLabel, Value

    if isinstance(feature, Value):
        return str(feature.dtype)
    if isinstance(feature, ClassLabel):
        return f"ClassLabel of {feature.num_classes}"
    if hasattr(feature, "feature"):
        return f"list of {_type(feature.feature)}"
    return "struct" if isinstance(feature, dict) else type(feature).__name__


SOURCE = HuggingFaceSource()
