"""Checkpoint files as training programs leave them: read safely, and matched with a model.

A file may hold several sets of weights, such as an average beside the last ones, at the top or one
or two levels down, and their names may have a prefix. Sets and prefixes are found by the names and
shapes of the model's own weights; where several fit, the entry has to say which.
"""

from __future__ import annotations

import fnmatch
import pickle
import re
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipeline.config.model import Checkpoint, ModelSpec
from pipeline.errors import ModelError, first_line
from pipeline.sources import SOURCES
from pipeline.suggest import did_you_mean

Tensors = dict[str, torch.Tensor]

_OPTIONAL = ("position_ids", "num_batches_tracked", "relative_position_index", "attn_mask")
"""Buffers that versions of libraries have or lack, and that no output depends on, or that follow
from the architecture."""
_SAVE = "Save the state dict alone: torch.save(model.state_dict(), …)."


class _Inert:
    """What is made of an object that is of no use here, with none of its own class's code."""

    def __new__(cls, *_: Any) -> _Inert:
        """Take any arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Drop the state."""


def _empty(*_: Any) -> dict[Any, Any]:
    return {}


_HARMLESS = {
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "datetime": "date datetime time timedelta timezone",
    "pathlib": "Path PosixPath PurePosixPath WindowsPath PureWindowsPath",
    "pathlib._local": "Path PosixPath PurePosixPath WindowsPath PureWindowsPath",
    "numpy": "dtype ndarray bool bool_ float16 float32 float64 int8 int16 int32 int64 uint8",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "torch.torch_version": "TorchVersion",
    "builtins": "bool dict float frozenset int list range slice str tuple",
}
"""What training programs save beside weights: arguments, paths, statistics."""
# torch's list of allowed names is global to the process, and so are filters of warnings
_ALLOWED: list[Any] = [
    *(
        (_Inert, f"{module}.{name}")
        for module, names in _HARMLESS.items()
        for name in names.split()
    ),
    (_empty, "collections.defaultdict"),
]
_one_at_a_time = threading.Lock()


def read_checkpoint(file: str | Path) -> Any:
    """Read a file of safetensors, or one that `torch.save` wrote, without running code of it.

    Tensors are mapped from the file and read when they are used, except those of files that torch
    wrote before version 1.6.

    Raises
    ------
    ModelError
        Where the file is broken, holds code or classes, or has compressed entries; the message
        begins with what the file does.
    """
    try:
        with open(file, "rb") as opened:
            start = opened.read(9)
        if start[:2] == b"PK":
            _check_archive(file)
        elif Path(file).suffix == ".safetensors" or start[8:] == b"{":
            return load_file(file)
        with (
            _one_at_a_time,
            torch.serialization.safe_globals(_ALLOWED),
            warnings.catch_warnings(action="ignore"),
        ):
            return torch.load(file, "cpu", weights_only=True, mmap=start[:2] == b"PK")
    except ModelError:
        raise
    except Exception as error:  # safetensors, zipfile and torch raise errors of any type
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise ModelError(
                f"holds a pickled {refused[1]}, which could run code when loaded. {_SAVE}"
            ) from None
        kind, why = type(error).__name__, first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's advice is to read it unsafely
            why = "it is not a whole file of torch.save with its default pickle protocol."
        raise ModelError(
            f"cannot be read: {kind}: {why} Replace the file or drop the checkpoint."
        ) from None


def _check_archive(file: str | Path) -> None:
    """Refuse code, and entries that could unpack to any size: torch stores weights as they are."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(e.filename.endswith("/constants.pkl") for e in entries):
        raise ModelError(
            "is a TorchScript archive, which holds code. Save its state dict alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), …)."
        )
    packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ModelError(
            f"has compressed entries ({packed[0]}), which torch does not write and which could "
            f"unpack to any size. {_SAVE}"
        )


@dataclass(frozen=True)
class _Weights:
    """One set of weights of a file, without the prefix of their names."""

    key: str
    prefix: str
    tensors: Tensors


@dataclass(frozen=True)
class CheckpointReader:
    """Finds the weights of one model in a checkpoint file.

    Attributes
    ----------
    have
        The model's own weights, on any device, torch's meta device included.
    convert
        What the library's own loader does with weights in older and foreign formats; may raise
        anything.
    """

    spec: ModelSpec
    checkpoint: Checkpoint
    have: Mapping[str, torch.Tensor]
    convert: Callable[[Tensors], Tensors]

    def read(self) -> Tensors:
        """Return the weights under the model's names, without those that are ignored.

        Raises
        ------
        ModelError
            Where the file is gone, unreadable or unsafe, where nothing in it fits, or several sets
            of weights do.
        """
        file = str(self.checkpoint.file)
        if not Path(file).is_file():
            raise self._error("is gone.")
        try:
            content = read_checkpoint(file)
        except ModelError as error:
            raise self._error(str(error)) from None
        found = list(_sets(content))
        if not found:
            raise self._error(f"holds no weights, {_listing(content)}. {_SAVE}")
        candidates = self._candidates(self._under_key(found))
        self._check_ignore(candidates)
        fitting = [c for c in candidates if self._covers(c)]
        if not fitting:
            fitting = [c for c in self._converted(candidates) if self._covers(c)]
        if not fitting:
            raise self._misfit(max(candidates, key=self._agreement))
        chosen = fitting[0]
        others = [c for c in fitting[1:] if not self._same(c, chosen)]
        if others:
            raise self._ambiguous([chosen, *others])
        if self._surplus(chosen):
            raise self._misfit(chosen)
        return {name: chosen.tensors[name] for name in self.wanted if name in chosen.tensors}

    @property
    def wanted(self) -> list[str]:
        """The model's names, without those that are ignored."""
        return [name for name in self.have if not _matches(name, self.checkpoint.ignore)]

    @property
    def ignored(self) -> list[str]:
        """The names of the model's weights that keep their initial values."""
        return [name for name in self.have if _matches(name, self.checkpoint.ignore)]

    @property
    def _needed(self) -> list[str]:
        return [name for name in self.wanted if not name.endswith(_OPTIONAL)]

    def _error(self, what: str) -> ModelError:
        return ModelError(f"model {self.spec.id}: the checkpoint {self.checkpoint.file} {what}")

    def _under_key(self, found: Sequence[_Weights]) -> list[_Weights]:
        key = self.checkpoint.key
        if key is None:
            return list(found)
        chosen = [s for s in found if s.key == key or (key and s.key.startswith(f"{key}."))]
        if not chosen:
            keys = [s.key for s in found]
            raise self._error(
                f"has no weights under the key {key!r}.{did_you_mean(key, keys)} It has weights "
                f"under {_quoted(keys)}."
            )
        return chosen

    def _candidates(self, sets: Sequence[_Weights]) -> list[_Weights]:
        """Return the weights under the prefix that is asked for, or under each that may be it."""
        asked = self.checkpoint.prefix
        if asked is not None and not any(n.startswith(asked) for s in sets for n in s.tensors):
            there = [p for s in sets for p in _prefixes(s.tensors, self.have)]
            raise self._error(
                f"has no weights with the prefix {asked!r}.{did_you_mean(asked, there)} It has "
                f"{_shapes(sets[0].tensors)}."
            )
        return [
            _Weights(found.key, prefix, _without(prefix, found.tensors))
            for found in sets
            for prefix in _prefixes(found.tensors, self.have, asked)
        ]

    def _converted(self, candidates: Sequence[_Weights]) -> Iterator[_Weights]:
        for c in candidates:
            try:
                yield _Weights(c.key, c.prefix, self.convert(dict(c.tensors)))
            except Exception:  # of any type: these weights are not in a format that it takes
                continue

    def _covers(self, candidate: _Weights) -> bool:
        given = candidate.tensors
        return all(n in given and _alike(given[n], self.have[n]) for n in self._needed) and all(
            _alike(given[n], self.have[n]) for n in self.wanted if n in given
        )

    def _same(self, x: _Weights, y: _Weights) -> bool:
        return all(
            x.tensors[n].dtype == y.tensors[n].dtype and torch.equal(x.tensors[n], y.tensors[n])
            for n in self._needed
        )

    def _agreement(self, candidate: _Weights) -> tuple[int, int, int]:
        given = candidate.tensors
        named = [n for n in self.wanted if n in given]
        return sum(_alike(given[n], self.have[n]) for n in named), len(named), len(given)

    def _surplus(self, candidate: _Weights) -> list[str]:
        ignored = self.checkpoint.ignore
        return [
            name
            for name in candidate.tensors
            if name not in self.have
            and not name.endswith(_OPTIONAL)
            and not _matches(name, ignored)
        ]

    def _check_ignore(self, candidates: Sequence[_Weights]) -> None:
        names = dict.fromkeys([*self.have, *(n for c in candidates for n in c.tensors)])
        for pattern in self.checkpoint.ignore:
            if not any(_matches(name, [pattern]) for name in names):
                raise self._error(
                    f"and the model {self.spec.name} have no weights that match ignore: "
                    f"{pattern!r}.{did_you_mean(pattern, names)}"
                )
        if not self._needed:
            raise self._error("would load no weights, since `ignore:` leaves out all.")

    def _ambiguous(self, fitting: Sequence[_Weights]) -> ModelError:
        keys = dict.fromkeys(c.key for c in fitting)
        prefixes = dict.fromkeys(c.prefix for c in fitting)
        what, names = ("key", keys) if len(keys) > 1 else ("prefix", prefixes)
        template, choice = self.spec.checkpoints, f"{what}: {next(iter(names)) or repr('')}"
        if isinstance(template, str):
            shown = f"checkpoints: [{{file: '{template}', {choice}}}]"
        else:
            shown = f"{{file: '{self.checkpoint.file}', {choice}}}"
        return self._error(
            f"holds {len(names)} different sets of weights that fit {self.spec.name}, with the "
            f"{what} {_quoted(names)}. Choose one with `{what}:`, as in {shown}."
        )

    def _misfit(self, candidate: _Weights) -> ModelError:
        given, model = candidate.tensors, self.spec.name
        odd = [n for n in self.wanted if n in given and not _alike(given[n], self.have[n])]
        absent = [n for n in self._needed if n not in given]
        surplus = self._surplus(candidate)
        differences = [
            *(
                f"{n} is {_kind(given[n])} in the file, {_kind(self.have[n])} in the model"
                for n in odd
            ),
            *(f"{n} is missing in the file" for n in absent),
            *(f"{n} is in the file only" for n in surplus),
        ]
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        where = " and ".join(
            f"the {what} {name!r}"
            for what, name in (("key", candidate.key), ("prefix", candidate.prefix))
            if name
        )
        return self._error(
            f"does not fit the architecture {model}: {'; '.join(differences[:3])}{more}. "
            f"{self._remedy(candidate, odd, absent, surplus)} The file has "
            f"{f'under {where} ' if where else ''}{_shapes(given)}."
        )

    def _remedy(
        self, candidate: _Weights, odd: list[str], absent: list[str], surplus: list[str]
    ) -> str:
        agreeing, named, _ = self._agreement(candidate)
        arguments = SOURCES[self.spec.source].size_arguments
        if not named:
            return (
                "No weight has the name of one of the model's: the file is of another "
                "architecture, or of another library. Correct `name:` or the file."
            )
        if not odd and not absent:
            return f"Leave these entries out, ignore: {_globs(surplus)}, or correct `name:`."
        wrong = [*odd, *absent]
        if all("pos" in n for n in wrong) and agreeing:
            return f"Set `arguments:` to those of the training run ({arguments}, …)."
        if len(_modules(wrong)) <= 2 and 2 * agreeing > named:
            return (
                f"Set `arguments:` to those of the training run ({arguments}, …), or leave these "
                f"weights at their initial values, ignore: {_globs([*wrong, *surplus])}."
            )
        return (
            f"Set `arguments:` to those of the training run ({arguments}, …), or name the right "
            "file: if most names differ, it is of another architecture."
        )


def _sets(content: Any, key: str = "", depth: int = 2) -> Iterator[_Weights]:
    """Yield every mapping that holds tensors, at the top or up to two levels down."""
    if not isinstance(content, Mapping):
        return
    named = {k: v for k, v in content.items() if isinstance(k, str)}
    tensors = {k: v for k, v in named.items() if _is_weight(v)}
    if tensors:
        yield _Weights(key, "", tensors)
    if depth:
        for name, value in named.items():
            yield from _sets(value, f"{key}.{name}" if key else name, depth - 1)


def _is_weight(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
    )


def _prefixes(names: Iterable[str], have: Mapping[str, Any], asked: str | None = None) -> list[str]:
    """Return the prefix that is asked for, if some name has it.

    By default, none, and the beginnings after which most of the model's names follow.
    """
    if asked is not None:
        return [asked] if any(name.startswith(asked) for name in names) else []
    votes = Counter(
        name[:end]
        for name in names
        for end in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[end:] in have
    )
    most = max(votes.values(), default=0)
    likely = [prefix for prefix, count in votes.most_common() if 2 * count > most]
    return list(dict.fromkeys(["", *likely]))


def _without(prefix: str, tensors: Tensors) -> Tensors:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _alike(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.shape == y.shape and x.is_floating_point() == y.is_floating_point()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _kind(tensor: torch.Tensor) -> str:
    shape = str(tuple(tensor.shape))
    return shape if tensor.is_floating_point() else f"{shape} of {str(tensor.dtype)[6:]}"


def _modules(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _globs(names: Iterable[str]) -> str:
    names = list(names)
    globs = [f"{m}.*" if m not in names else m for m in _modules(names)]
    return f"[{', '.join(globs[:3])}{', …' if len(globs) > 3 else ''}]"


def _quoted(keys: Iterable[str]) -> str:
    return ", ".join(repr(key) for key in keys)


def _shapes(tensors: Mapping[str, torch.Tensor]) -> str:
    first = ", ".join(f"{name} {tuple(t.shape)}" for name, t in list(tensors.items())[:3])
    return f"{first}{f' and {len(tensors) - 3} more' if len(tensors) > 3 else ''}"


def _listing(content: Any) -> str:
    if not isinstance(content, Mapping):
        known = isinstance(content, list | tuple | torch.Tensor)
        return f"but a {type(content).__name__.lower() if known else 'single object'}"
    keys = [str(key) for key in content]
    return f"only {_quoted(keys[:5])}{', …' if len(keys) > 5 else ''}" if keys else "and is empty"
