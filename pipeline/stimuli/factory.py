"""`source: factory`: what a Python function of one's own returns, such as a torchvision data set.

Indexing and reading import the function's module and call it, in the driver and in every worker:
this runs the person's own code, with all that it may do.
"""

from __future__ import annotations

import importlib
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue, field_validator

from pipeline.errors import InputError
from pipeline.stimuli.decode import as_image, decoder
from pipeline.stimuli.draft import Draft, label_columns, text_column
from pipeline.stimuli.files import identity, set_name
from pipeline.stimuli.ids import Ids, as_ids
from pipeline.stimuli.items import Item, as_item, is_scalar, type_name
from pipeline.stimuli.manifest import Manifest, described, nested_note
from pipeline.stimuli.memory import CaptionReader, check_content
from pipeline.stimuli.source import FileSpec, Progress
from pipeline.stimuli.table import StimulusRows, StimulusTable
from pipeline.suggest import did_you_mean
from pipeline.types import Modality

N_SPOTS = 16
"""Items that are compared with what is known of them before the rest is believed."""
RETURNS = (
    "a factory returns an object with a length and items, such as a torchvision data set; a "
    "mapping of columns; or an iterable of items"
)


class FactorySpec(FileSpec):
    """What a Python function returns. Naming one here runs its code, on every worker too."""

    source: Literal["factory"]
    """A Python function or class."""
    factory: str
    """`package.module:function`. Called with `arguments`, it returns an object with a length and
    items, such as a torchvision data set; a mapping of columns; or an iterable of items, which is
    held in memory. It has to return the same items each time."""
    path: str | None = None
    """Folder to import the module from, if it is not installed."""
    arguments: Mapping[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the function."""
    caption_index: int = Field(default=0, ge=0)
    """Which caption of a list, counted from 0."""

    @field_validator("factory")
    @classmethod
    def _module_and_function(cls, value: str) -> str:
        module, _, name = value.partition(":")
        if not name.isidentifier() or not all(p.isidentifier() for p in module.split(".")):
            raise ValueError(f"{value!r} is not of the form package.module:function.")
        return value

    def absolute(self) -> Self:
        """Return the spec with an absolute path; `arguments` are left as they are."""
        if self.path is None:
            return self
        return self.model_copy(update={"path": str(Path(self.path).absolute())})


class FactorySource:
    """Items of a person's own code, made again by each process that reads them."""

    spec = FactorySpec

    def index(
        self,
        spec: FactorySpec,
        known: StimulusTable | None = None,
        progress: Progress | None = None,
    ) -> StimulusTable:
        """Make and identify every item.

        Of a `known` table a few items are compared if the function's file and the number of items
        are the same; an iterable is not run again.
        """
        factory = _Factory(spec)
        made = factory.make()
        details = {
            "file": None if factory.file is None else identity(factory.file),
            "length": made.length,
            **decoder(),
        }
        if (
            known is not None
            and (known.details, known.source) == (details, spec.recorded())
            and (made.length is None or _differs(made, known, N_SPOTS) is None)
        ):
            return known
        collected = _Collected(made, progress)
        table = collected.table(spec, details)
        again = factory.make(limit=int(table.columns["row"][0]) + 1)
        row = _differs(again, table, 2)
        if row is not None:
            raise InputError(
                f"factory {spec.factory}: {collected.rows[row]} is another item when the factory "
                "is called again. Stimuli are known by their content, and every worker makes them "
                "itself, so a factory has to return the same items each time: fix its seeds, and "
                "leave out random transforms."
            )
        return table

    def open(self, spec: FactorySpec, table: StimulusRows) -> FactoryReader:
        """Call the factory when the first image or array is read."""
        return FactoryReader(spec, table)


class FactoryReader:
    """Makes images and arrays again, one at a time, and reads captions from the table."""

    def __init__(self, spec: FactorySpec, table: StimulusRows) -> None:
        self.spec, self.table = spec, table
        self.captions = CaptionReader(table)
        self._made: _Made | None = None
        self._lock = threading.Lock()  # other people's code may not bear several threads

    def read(self, modality: Modality, rows: slice) -> Sequence[Any]:
        """Return images, arrays or captions."""
        if modality == "text":
            return self.captions.read(rows)
        at = self.table.column_at("row", rows).tolist()
        where = f"factory {self.spec.factory}"
        items: list[Item] = []
        with self._lock:
            if self._made is None:
                made = _Factory(self.spec).make()
                len(made)  # runs an iterable, whose errors are not those of a row
                self._made = made
            for row in at:
                try:
                    items.append(self._made.item(row))
                except ValueError as error:
                    raise InputError(f"{where}: row {row}: {error}.") from None
        found = as_ids(item.id_of(modality) for item in items)
        try:
            check_content(self.table, modality, rows, found, where)
        except InputError as error:
            raise InputError(
                f"{error} A factory has to return the same items each time, on every machine. If "
                "its data changed, give the stimuli another name: so that they are indexed again."
            ) from None
        if modality == "image":
            return [as_image(i.image) for i in items if i.image is not None]
        return [i.array for i in items]


class _Factory:
    """A function that was imported, and the file that defines it."""

    def __init__(self, spec: FactorySpec) -> None:
        self.spec = spec
        module = _module(spec)
        name = spec.factory.partition(":")[2]
        self.function = getattr(module, name, None)
        if not callable(self.function):
            others = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise InputError(
                f"stimuli: factory: the module {module.__name__} ({_file(module)}) has no "
                f"function {name!r}.{did_you_mean(name, others)}"
            )
        defined = sys.modules.get(getattr(self.function, "__module__", ""), module)
        self.file = _file(defined)

    def make(self, limit: int | None = None) -> _Made:
        """Call the function; of an iterable, take no more than `limit` items."""
        with self.own_code():
            assert self.function is not None
            return _Made(self, self.function(**self.spec.arguments), limit)

    def own_code(self) -> AbstractContextManager[None]:
        """Turn whatever the function raises into one message."""
        return _own_code(f"factory {self.spec.factory}", self.file)


class _Made:
    """What a factory returned, item by item.

    Attributes
    ----------
    length
        Number of items; None of an iterable.
    held
        Whether the items are in memory.
    """

    def __init__(self, factory: _Factory, returned: Any, limit: int | None) -> None:
        self.factory, self._returned, self._limit = factory, returned, limit
        self.classes = getattr(returned, "classes", None)
        self.held = isinstance(returned, list | tuple | Mapping)
        self.length: int | None = None
        if isinstance(returned, Mapping):
            self._returned = _Rows(returned, factory.spec)
        elif isinstance(returned, str | bytes) or not (
            hasattr(returned, "__getitem__") or isinstance(returned, Iterable)
        ):
            raise InputError(
                f"factory {factory.spec.factory} returned {type_name(returned)}, but {RETURNS}."
            )
        if hasattr(self._returned, "__len__") and hasattr(self._returned, "__getitem__"):
            self.length = len(self._returned)
        else:
            self.held = True

    @cached_property
    def _items(self) -> Any:
        """The items; an iterable is run when this is first asked for."""
        if self.length is not None:
            return self._returned
        with self.factory.own_code():
            return list(islice(self._returned, self._limit))

    def __len__(self) -> int:
        return len(self._items)

    def item(self, row: int) -> Item:
        """Make an item.

        Raises
        ------
        ValueError
            Where it cannot be made or used, with the reason.
        """
        try:
            raw = self._items[row]
        except Exception as error:
            raise ValueError(_told(error, self.factory.file)) from None
        return as_item(raw, self.factory.spec.caption_index)


class _Rows:
    """Columns, as rows."""

    def __init__(self, columns: Mapping[str, Any], spec: FactorySpec) -> None:
        sizes = {n: len(v) for n, v in columns.items() if hasattr(v, "__len__")}
        if len(sizes) < len(columns) or len(set(sizes.values())) != 1:
            others = [f"{n} {sizes.get(n, 'none')}" for n in columns]
            raise InputError(
                f"factory {spec.factory} returned a mapping, whose columns need as many values "
                f"each; it has: {', '.join(others) or 'no columns'}."
            )
        self.columns, self.n = columns, next(iter(sizes.values()))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: values[row] for name, values in self.columns.items()}


class _Collected:
    """All items, identified, and what describes them."""

    def __init__(self, made: _Made, progress: Progress | None) -> None:
        self.made, n = made, len(made)
        self.rows = [f"row {i}" for i in range(n)]
        self.faults: dict[int, str] = {}
        self.captions: list[str] = []
        self.ids: dict[Modality, list[str]] = {"image": [], "text": [], "array": []}
        self.fields: list[dict[str, Any]] = []
        self.item_bytes = self.all_bytes = 0
        for row in range(n):
            try:
                item = made.item(row)
            except ValueError as error:
                self.faults[row], item = str(error), Item()
            for modality, ids in self.ids.items():
                ids.append(item.id_of(modality))
            self.captions.append(item.caption)
            self.fields.append(item.fields)
            self.item_bytes = max(self.item_bytes, item.n_bytes)
            self.all_bytes += item.n_bytes + len(item.caption)
            if progress is not None:
                progress(row + 1, n)
        if len(self.faults) == n:
            first = f"; the first: {self.faults[0]}" if n else ""
            raise InputError(
                f"factory {made.factory.spec.factory}: none of its {n} items can be used{first}."
            )

    def table(self, spec: FactorySpec, details: Mapping[str, Any]) -> StimulusTable:
        """Return the table of the items."""
        columns, notes = self._columns(spec)
        content: dict[Modality, Ids] = {m: as_ids(ids) for m, ids in self.ids.items() if any(ids)}
        if "text" in content:
            columns["caption"] = text_column(self.captions)
        columns["row"] = np.arange(len(self.rows))
        draft = Draft(self.rows, content, columns, self.faults, notes)
        return draft.table(
            spec,
            spec.name or set_name(spec.factory.replace(":", "-")),
            details=details,
            resident_bytes=self.all_bytes if self.made.held else 0,
            item_bytes=self.item_bytes,
        )

    def _columns(self, spec: FactorySpec) -> tuple[dict[str, NDArray[Any]], list[str]]:
        names = dict.fromkeys(name for fields in self.fields for name in fields)
        values = {name: [fields.get(name) for fields in self.fields] for name in names}
        # bad items are dropped, or end it all: what they lack does not matter
        good = [i for i in range(len(self.rows)) if i not in self.faults]
        columns: dict[str, NDArray[Any]] = {}
        labels, ids = values.pop("label", None), values.pop("id", None)
        if labels is not None:
            columns |= self._labels(labels, good, spec)
        if ids is not None:
            texts = ["" if v is None else str(v) for v in ids]
            found = [texts[i] for i in good]
            if "" in found or len(set(found)) < len(found):
                raise InputError(
                    f"factory {spec.factory}: the ids of its items have to differ, and each needs "
                    "one; or leave them out."
                )
            columns["id"] = text_column(texts)
        nested = [n for n, v in values.items() if not all(is_scalar(x) for x in v)]
        scalars = {n: v for n, v in values.items() if n not in nested}
        manifest = Manifest(Path(spec.factory), scalars, self.rows)
        others, notes = described(manifest, items=[], label=None, group="group", id=None)
        return {**columns, **others}, [*notes, *nested_note(nested)]

    def _labels(
        self, labels: list[Any], good: Sequence[int], spec: FactorySpec
    ) -> dict[str, NDArray[Any]]:
        without = [i for i in good if labels[i] is None]
        if without:
            raise InputError(
                f"factory {spec.factory}: {len(without)} of its items have no label, first "
                f"{self.rows[without[0]]}. Label all, or none."
            )
        some = labels[good[0]]
        columns = label_columns(
            [some if i in self.faults else v for i, v in enumerate(labels)], self.rows
        )
        classes = self.made.classes
        if "label_name" in columns or not isinstance(classes, list | tuple):
            return columns
        if columns["label"].max() < len(classes):
            names = [", ".join(c) if isinstance(c, tuple) else str(c) for c in classes]
            columns["label_name"] = text_column([names[i] for i in columns["label"]])
        return columns


def _differs(made: _Made, known: StimulusTable, n: int) -> int | None:
    """Return the row of the first of a few items that are not as known; None if there is none.

    Of an iterable, only what was taken from it is compared.
    """
    rows = known.columns["row"].tolist()
    if made.length is None:
        rows = [row for row in rows if row < len(made)][:1]
    spots = np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int))
    for spot in spots.tolist():
        row = rows[spot]
        try:
            item = made.item(row)
        except ValueError:
            return int(row)
        for modality in known.modalities:
            if as_ids([item.id_of(modality)])[0] != known.content[modality][spot]:
                return int(row)
    return None


_import_lock = threading.Lock()
_imported: dict[str, int] = {}
"""Module → modification time of its file when it was imported."""


def _module(spec: FactorySpec) -> ModuleType:
    """Import the factory's module, again if its file changed since."""
    name = spec.factory.partition(":")[0]
    if spec.path is not None and not Path(spec.path).is_dir():
        raise InputError(
            f"stimuli: path: there is no folder {spec.path} (paths are relative to {Path.cwd()})."
        )
    with _import_lock, _importing_from(spec.path), _own_code(f"importing {name}", None):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise _not_found(spec, name, error) from None
        file = _file(module)
        time = file.stat().st_mtime_ns if file is not None else 0
        if _imported.setdefault(name, time) != time:
            module = importlib.reload(module)
            _imported[name] = time
    if spec.path is not None:
        folder = Path(spec.path).resolve()
        if file is None or not file.resolve().is_relative_to(folder):
            raise InputError(
                f"stimuli: factory: the module {name} comes from {file}, not from {folder}: "
                "another one of this name was imported first. Rename yours."
            )
    return module


def _file(module: ModuleType) -> Path | None:
    """Return the file of a module; built-in ones have none."""
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


def _not_found(spec: FactorySpec, name: str, error: ModuleNotFoundError) -> InputError:
    missing = error.name or name
    if not (name + ".").startswith(missing + "."):
        return InputError(
            f"stimuli: factory: importing {name} needs the module {missing}, which is not "
            "installed. Install it in the environment of the driver and of every worker."
        )
    if spec.path is None:
        return InputError(
            f"stimuli: factory: there is no module {missing} among the installed ones. If it is a "
            "file of yours, name its folder with path:."
        )
    near = did_you_mean(missing, [p.stem for p in Path(spec.path).iterdir()])
    return InputError(f"stimuli: factory: the folder {spec.path} has no module {missing}.{near}")


@contextmanager
def _importing_from(path: str | None) -> Iterator[None]:
    """Look for modules in a folder first, and leave no compiled files there."""
    writes = sys.dont_write_bytecode
    folder = str(Path(path).absolute()) if path is not None else None
    if folder is not None:
        sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        if folder is not None:
            with suppress(ValueError):  # the module may have changed the path itself
                sys.path.remove(folder)


@contextmanager
def _own_code(what: str, file: Path | None) -> Iterator[None]:
    """Turn whatever a person's code raises into one message."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"stimuli: {what} failed: {_told(error, file)}.") from None


def _told(error: BaseException, file: Path | None) -> str:
    """Say what was raised, and in which line, preferably of the factory's own file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own = [f for f in frames if file is not None and Path(f.filename) == file]
    others = [f for f in frames if not f.filename.startswith("<")]
    where = ""
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})"
    elif own or others:
        at = (own or others)[-1]
        where = f" ({at.filename}, line {at.lineno})"
    why = str(error.msg if isinstance(error, SyntaxError) else error).strip().split("\n")[0]
    return f"{type(error).__name__}{f': {why}' if why else ''}{where}"


SOURCE = FactorySource()
