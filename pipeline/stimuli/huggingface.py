"""`source: huggingface`: a split of a data set of the Hugging Face hub, or of a local folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import InputError
from pipeline.stimuli.decode import decode, decoder
from pipeline.stimuli.draft import Draft, label_columns, text_column
from pipeline.stimuli.encoded import identify
from pipeline.stimuli.files import set_name
from pipeline.stimuli.ids import Ids, as_ids, content_id, text_id
from pipeline.stimuli.manifest import Manifest, described, nested_note
from pipeline.stimuli.memory import CaptionReader, check_content
from pipeline.stimuli.source import FileSpec, Progress
from pipeline.stimuli.table import StimulusRows, StimulusTable, row_name
from pipeline.suggest import did_you_mean
from pipeline.types import Modality

if TYPE_CHECKING:
    from datasets import Dataset

TIMEOUT = 10
"""Seconds to wait for the hub to answer."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HuggingFaceSpec(FileSpec):
    """A split of a data set that the library `datasets` reads."""

    source: Literal["huggingface"]
    """A data set of the Hugging Face hub, or in its formats."""
    dataset: str
    """Name on the hub, such as `minhuh/prh`; or a local folder: one that `save_to_disk` wrote, or
    one of Parquet, JSON Lines, CSV or image files that `load_dataset` takes. Code that comes with
    a data set is never run."""
    config: str | None = None
    """Configuration of the data set; may be left out where there is one, or a default."""
    split: str | None = None
    """Split, such as `test` or `train[:1000]`; may be left out where there is one. All splits of
    a configuration are downloaded."""
    revision: str | None = None
    """Branch, tag or commit on the hub; default: its main branch. The commit is recorded."""
    image: str | None = "auto"
    """Column of images; `auto`: the only one of type Image, if there is one; null: none."""
    caption: str | None = "auto"
    """Column of captions, or of lists of captions; `auto`: `caption`, `captions` or `text`, if
    there is one; null: none."""
    caption_index: int = Field(default=0, ge=0)
    """Which caption of a list, counted from 0."""
    label: str | None = "auto"
    """Column of classes; `auto`: `label`, else the only one of type ClassLabel, if there is one;
    null: none."""
    group: str | None = "group"
    """Column of groups, if there is one; null: none."""
    id: str | None = "id"
    """Column of ids that differ, if there is one; null: none."""

    def absolute(self) -> Self:
        """Return the spec with an absolute path, if it names a folder."""
        if not Path(self.dataset).is_dir():
            return self
        return self.model_copy(update={"dataset": str(Path(self.dataset).absolute())})


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
        loaded = _load(spec)
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
            images = identify(n, loaded.images(columns.image).read, progress)
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
    loaded = _load(spec)
    return loaded.images(_Columns(spec, loaded).image or "")


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


@dataclass(frozen=True)
class _Loaded:
    """A split, and what is known of where it comes from."""

    rows: Dataset
    name: str
    details: Mapping[str, Any]

    def images(self, column: str) -> _Images:
        return _Images(self.rows, column)


class _Columns:
    """Which columns of a split have which role.

    Raises
    ------
    InputError
        Where a column that the spec names is not there or of another type, where `auto` leaves a
        choice, or where there is neither image nor caption.
    """

    def __init__(self, spec: HuggingFaceSpec, loaded: _Loaded) -> None:
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


def _load(spec: HuggingFaceSpec) -> _Loaded:
    """Open a split, downloading what is not cached.

    Raises
    ------
    InputError
        Where `datasets` is not installed, or cannot load the data set.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            "stimuli: source: huggingface needs the library datasets, which is not installed: "
            "pip install 'consilience[datasets]'."
        ) from None
    folder = Path(spec.dataset)
    if not folder.is_dir() and _is_path(spec.dataset):
        raise InputError(
            f"stimuli: there is no folder {folder} (paths are relative to {Path.cwd()}). dataset: "
            "is a folder, or a name on the hub such as minhuh/prh."
        )
    if folder.is_dir() and spec.revision is not None:
        raise InputError(
            f"stimuli: {folder} is a local folder, which has no revisions: leave out revision:."
        )
    try:
        return _load_folder(spec, folder) if folder.is_dir() else _load_hub(spec)
    except InputError:
        raise
    except Exception as error:  # of any type: builders of many formats meet many faults
        if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__:
            error = error.__cause__  # says what is wrong, where the other says that something is
        why = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise InputError(
            f"data set {spec.dataset} cannot be loaded: {why}. It has to be one that "
            f"datasets.load_dataset({spec.dataset!r}) loads."
        ) from None


def _is_path(dataset: str) -> bool:
    """Whether it can only be meant as a path: names on the hub have one slash at most."""
    return dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or "\\" in dataset


def _load_folder(spec: HuggingFaceSpec, folder: Path) -> _Loaded:
    import datasets

    name = folder.resolve().name
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        split = _chosen_split(spec, splits)
        return _loaded(spec, datasets.load_from_disk(str(folder / split)), name, split)
    if (folder / "state.json").is_file():
        rows = datasets.load_from_disk(str(folder))
        own = str(rows.split) if rows.split is not None else None
        if spec.split not in (None, own):
            raise InputError(
                f"data set {folder} is a single split{f', {own}' if own else ''}: leave out split:."
            )
        return _loaded(spec, rows, name, own)
    return _built(spec, datasets.load_dataset_builder(str(folder), spec.config), name)


def _loaded(spec: HuggingFaceSpec, rows: Dataset, name: str, split: str | None) -> _Loaded:
    details = {
        "fingerprint": rows._fingerprint,
        "config": rows.info.config_name or None,
        "split": split,
    }
    named = f"{name}-{split}" if split else name
    return _Loaded(rows.with_format(None), named, details)


def _built(spec: HuggingFaceSpec, builder: Any, name: str) -> _Loaded:
    """Build a split as Arrow files, unless that is done, and open it."""
    split = _chosen_split(spec, builder.info.splits or builder.config.data_files or ())
    builder.download_and_prepare()
    return _loaded(spec, builder.as_dataset(split), name, split)


def _chosen_split(spec: HuggingFaceSpec, splits: Iterable[str]) -> str:
    names = [str(s) for s in splits]
    wanted = spec.split
    if wanted is None:
        if len(names) == 1:
            return names[0]
        raise InputError(
            f"data set {spec.dataset} has {len(names)} splits. Set split: to one of "
            f"{', '.join(names)}."
        )
    plain = re.split(r"[\[+]", wanted)[0]
    if plain not in names:
        raise InputError(
            f"data set {spec.dataset} has no split {plain!r}.{did_you_mean(plain, names)} Set "
            f"split: to one of {', '.join(names)}."
        )
    return wanted


def _load_hub(spec: HuggingFaceSpec) -> _Loaded:
    import datasets

    commit, online = _resolve(spec)
    with _hub_errors(spec):
        if online:
            builder = datasets.load_dataset_builder(spec.dataset, spec.config, revision=commit)
        else:
            builder = _cached_builder(spec, commit)
        if builder.hash != commit:  # the hub failed since, and `datasets` took what was cached last
            raise _unreachable(spec)
        loaded = _built(spec, builder, spec.dataset.split("/")[-1])
    return _Loaded(loaded.rows, loaded.name, {**loaded.details, "revision": commit})


def _resolve(spec: HuggingFaceSpec) -> tuple[str, bool]:
    """Return the commit of a revision, and whether the hub said so or the cache.

    Without the hub, `datasets` takes the commit that was cached last, whatever revision it is
    asked for.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError

    name, revision = spec.dataset, spec.revision or constants.DEFAULT_REVISION
    try:
        with _hub_errors(spec):
            info = HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT)
            with suppress(EntryNotFoundError):  # keeps in the cache which commit the revision is
                hf_hub_download(name, "README.md", repo_type="dataset", revision=revision)
        return str(info.sha), True
    except (OSError, HTTPError) as error:
        if _COMMIT.fullmatch(revision):
            return revision, False
        # folders as in https://huggingface.co/docs/huggingface_hub/guides/manage-cache
        folder = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
        ref = folder / "refs" / revision
        if ref.is_file():
            return ref.read_text("utf-8").strip(), False
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        raise _unreachable(spec, status) from None


def _cached_builder(spec: HuggingFaceSpec, commit: str) -> Any:
    """Return a builder of what is cached of a commit, which needs no network."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    *owner, name = spec.dataset.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    folder /= "___".join([*owner, camelcase_to_snakecase(name)])
    found = sorted(folder.glob(f"{spec.config or '*'}/*/{commit}"))
    if not found:
        raise _unreachable(spec)
    config, version = found[0].parts[-3:-1]
    if len(found) > 1:
        configs = ", ".join(f.parts[-3] for f in found)
        raise InputError(
            f"data set {spec.dataset}: several configurations are in the cache, and which is the "
            f"default is not known without the hub. Set config: to one of {configs}."
        )
    return Cache(
        dataset_name=name, config_name=config, version=version, hash=commit, repo_id=spec.dataset
    )


def _unreachable(spec: HuggingFaceSpec, status: int | None = None) -> InputError:
    from huggingface_hub import constants

    why = "is not asked (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "cannot be reached"
    if status is not None:
        why = f"answers with status {status}"
    wanted = "".join(
        f", {key} {value}" for key in ("config", "revision") if (value := getattr(spec, key))
    )
    return InputError(
        f"data set {spec.dataset}: the hub {constants.ENDPOINT} {why}, and {spec.dataset}{wanted} "
        f"is not in the cache of this machine ({constants.HF_HOME}). Load it once where there is a "
        "network, with the same HF_HOME; or name a local folder."
    )


@contextmanager
def _hub_errors(spec: HuggingFaceSpec) -> Iterator[None]:
    """Say what is wrong with a name or a revision, or with the right to read it."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    named, hub = f"data set {spec.dataset}", constants.ENDPOINT
    try:
        yield
    except RevisionNotFoundError:
        raise InputError(
            f"{named}: the hub {hub} has no revision {spec.revision!r} of it. Set revision: to a "
            "branch, a tag or a full commit, or leave it out for the main branch."
        ) from None
    except (RepositoryNotFoundError, DatasetNotFoundError) as error:
        if isinstance(error, GatedRepoError) or isinstance(error.__cause__, GatedRepoError):
            raise InputError(
                f"{named} is gated: its owner decides who may read it. Ask for access at "
                f"{hub}/datasets/{spec.dataset}, and log in with `hf auth login`, or set HF_TOKEN."
            ) from None
        raise InputError(
            f"{named}: the hub {hub} has none of this name, or it is private, and there is no such "
            f"folder (paths are relative to {Path.cwd()}). If it is private, log in with `hf auth "
            "login`, or set HF_TOKEN."
        ) from None
    except HFValidationError:
        raise InputError(
            f"stimuli: {spec.dataset!r} is no name on the hub, which is like minhuh/prh, and there "
            f"is no such folder (paths are relative to {Path.cwd()})."
        ) from None


SOURCE = HuggingFaceSource()
