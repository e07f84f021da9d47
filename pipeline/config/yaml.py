"""Safe YAML 1.2 with line numbers, and validation errors that a person can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.errors import FaultyFileError, InputError
from pipeline.suggest import did_you_mean

YamlPath = tuple[str | int, ...]
"""Keys and positions that lead to a value in a YAML file."""
SpecT = TypeVar("SpecT", bound="Spec")


class Spec(BaseModel):
    """Base of everything a person writes in YAML: frozen, with unknown keys as errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def as_many(value: Any) -> Any:
    """Read a single name as a list of one."""
    return (value,) if isinstance(value, str) else value


OneOrMany = Annotated[
    tuple[str, ...], BeforeValidator(as_many, json_schema_input_type=str | list[str])
]
"""A name, or a list of names."""


@dataclass(frozen=True)
class Document:
    """A parsed YAML file that knows the line of each value."""

    path: Path
    data: CommentedMap
    settings: dict[YamlPath, str] = field(default_factory=dict)
    """Where values of the command line are, and how they were given."""

    def line(self, location: Sequence[str | int]) -> int:
        """Return the line (from 1) of the deepest part of `location` that exists."""
        node: Any = self.data
        line = 0
        for part in location:
            try:
                if isinstance(node, CommentedMap):
                    line = node.lc.key(part)[0]
                elif isinstance(node, CommentedSeq):
                    line = node.lc.item(part)[0]
                else:
                    break
                node = node[part]
            except (KeyError, IndexError, TypeError):
                break
        return line + 1

    def where(self, location: Sequence[str | int] = ()) -> str:
        """Return `file, line n`, or the setting of the command line, for messages."""
        for depth in range(len(location), 0, -1):
            if tuple(location[:depth]) in self.settings:
                return self.settings[tuple(location[:depth])]
        return f"{self.path}, line {self.line(location)}"


def load_yaml(path: str | Path) -> Document:
    """Read one YAML mapping.

    Raises
    ------
    InputError
        Where the file is missing, is not YAML, repeats a key, or is not a mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        raise InputError(
            f"{path}: there is no such file (paths are relative to the working directory, "
            f"{Path.cwd()}).{near}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a text file: {error}.") from None
    yaml = YAML(typ="rt")  # the round-trip loader builds no objects and keeps line numbers
    try:
        data = yaml.load(text)
    except DuplicateKeyError as error:
        mark = error.problem_mark
        raise InputError(
            f"{path}, line {mark.line + 1 if mark else '?'}: {error.problem}. Keep one of the two."
        ) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        raise InputError(
            f"{path}, line {mark.line + 1 if mark else '?'}: this is not YAML: {error.problem}. "
            "Look for a missing colon, quote or bracket, or a wrong indentation, there or just "
            "above."
        ) from None
    except YAMLError as error:
        raise InputError(f"{path}: this is not YAML: {error}.") from None
    if not isinstance(data, CommentedMap):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        raise InputError(f"{path}: expected a mapping (key: value) at the top, found {kind}.")
    return Document(path, data)


def validate(
    kind: type[SpecT],
    value: Any,
    document: Document,
    location: YamlPath = (),
    entry: str | None = None,
) -> SpecT:
    """Build a spec from parsed YAML.

    Raises
    ------
    FaultyFileError
        With every fault of the value.
    """
    plain = _plain(value)
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        found = [
            {**f, "loc": _in_file(f["loc"], plain, f["type"]), "path": f["loc"]}
            for f in error.errors()
        ]
        raise FaultyFileError(
            [_describe(fault, kind, document, location, entry) for fault in _essential(found)]
        ) from None


_WRONG_KIND = {
    "string_type",
    "int_type",
    "float_type",
    "bool_type",
    "tuple_type",
    "list_type",
    "dict_type",
    "literal_error",
    "model_type",
    "int_parsing",
    "float_parsing",
    "bool_parsing",
}


def _essential(faults: Sequence[Any]) -> list[Any]:
    """Drop pydantic's faults about union members that were not meant.

    A key of several possible types gives a fault for each of them. Where one type looked inside
    the value, its faults are the informative ones; otherwise all are joined into one.
    """
    by_key: dict[YamlPath, list[Any]] = {}
    for fault in faults:
        loc = fault["loc"]
        key = next((k for k in by_key if loc[: len(k)] == k or k[: len(loc)] == loc), loc)
        by_key.setdefault(key, []).append(fault)
    kept = []
    for group in by_key.values():
        outermost = min(len(f["loc"]) for f in group)
        informative = [
            f for f in group if len(f["loc"]) > outermost or f["type"] not in _WRONG_KIND
        ]
        if informative or len(group) == 1:
            kept += informative or group
            continue
        wanted = (f["msg"].removeprefix("Input should be ") for f in group)
        kept.append({**group[0], "msg": f"Input should be {', or '.join(dict.fromkeys(wanted))}"})
    return kept


def _describe(
    fault: Any, kind: type[Spec], document: Document, location: YamlPath, entry: str | None
) -> str:
    loc = fault["loc"]
    where = document.where((*location, *loc))
    if entry:
        where += f": entry {entry!r}"
    key = ".".join(str(part) for part in loc) or "the entry"
    given = fault.get("input")
    match fault["type"]:
        case "extra_forbidden":
            known = _known_keys(kind, fault["path"][:-1])
            return (
                f"{where}: unknown key {key!r}.{did_you_mean(str(loc[-1]), known)} "
                f"Known keys: {', '.join(sorted(known))}."
            )
        case "union_tag_invalid":
            known = fault["ctx"]["expected_tags"].replace("'", "").split(", ")
            given = fault["ctx"]["tag"]
            return (
                f"{where}: {key}: there is no source {given!r}.{did_you_mean(given, known)} "
                f"Sources: {', '.join(known)}."
            )
        case "union_tag_not_found":
            return f"{where}: {key!r}: expected {{source: …}} and its keys (given: {given!r})."
        case "missing":
            return f"{where}: {key!r} is missing."
        case "value_error":
            return f"{where}: {key}: {fault['ctx']['error']}"
        case _:
            return f"{where}: {key!r}: {fault['msg']} (given: {given!r})."


def _in_file(loc: Sequence[str | int], value: Any, kind: str) -> YamlPath:
    """Keep the parts of a path that are in the file; pydantic adds names of union members."""
    kept: list[str | int] = []
    for i, part in enumerate(loc):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part] if part < len(value) else None
        elif kind != "missing" or i < len(loc) - 1:
            continue
        kept.append(part)
    return tuple(kept)


def _known_keys(kind: type[Spec], path: Sequence[str | int]) -> set[str]:
    current: Any = kind
    members: dict[str, Any] = {}
    for part in path:
        declared = current.model_fields.get(part)
        if part in members:  # names a member of a union
            current = members[str(part)]
        elif declared is not None:
            members = {n: m for m in _specs_in(declared.annotation) for n in _names_of(m)}
            current = next(iter(members.values()), current)
    fields: dict[str, Any] = current.model_fields
    return {f.alias or name for name, f in fields.items()}


def _names_of(member: Any) -> list[str]:
    """Return the names by which pydantic calls a member of a union: its class, or its tag."""
    source = member.model_fields.get("source")
    return [member.__name__, *(get_args(source.annotation) if source is not None else ())]


def _specs_in(annotation: Any) -> list[Any]:
    return [
        a
        for a in (annotation, *_nested(annotation))
        if isinstance(a, type) and issubclass(a, BaseModel)
    ]


def _nested(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for arg in get_args(annotation):
        found += [arg, *_nested(arg)]
    return found


def _plain(value: Any) -> Any:
    """Convert ruamel's containers and scalars to plain ones, without the file's layout."""
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    return value
