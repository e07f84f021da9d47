"""The model registry: entries with their lines, selections of them, and related models."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.builtin import BUILTIN, builtin_registry
from pipeline.config.model import ModelSpec
from pipeline.config.yaml import Document, YamlPath, load_yaml, validate
from pipeline.errors import FaultyFileError, InputError
from pipeline.linked import linked
from pipeline.suggest import did_you_mean


@dataclass(frozen=True)
class Entry:
    """A spec, and where it is in its file, for messages."""

    spec: ModelSpec
    document: Document
    location: YamlPath

    @property
    def where(self) -> str:
        """`file, line n`."""
        return self.document.where(self.location)


@dataclass(frozen=True)
class Registry:
    """Model specs by id."""

    entries: Mapping[str, Entry]

    def __iter__(self) -> Any:
        return iter(entry.spec for entry in self.entries.values())

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, model_id: str) -> ModelSpec:
        try:
            return self.entries[model_id].spec
        except KeyError:
            raise InputError(
                f"there is no model {model_id!r} in the registry."
                f"{did_you_mean(model_id, self.entries)} "
                "`consilience models list` shows all."
            ) from None

    @property
    def sets(self) -> set[str]:
        """Every set that an entry belongs to."""
        return {name for spec in self for name in spec.sets}

    def select(
        self,
        *,
        sets: Iterable[str] = (),
        ids: Iterable[str] = (),
        families: Iterable[str] = (),
    ) -> list[ModelSpec]:
        """Return the union of the named sets, families, ids and globs of ids, in file order.

        Raises
        ------
        InputError
            Where a name selects nothing.
        """
        chosen: set[str] = set()
        for name in sets:
            found = {s.id for s in self if name in s.sets}
            chosen |= self._some(found, "set", name, self.sets)
        for name in families:
            found = {s.id for s in self if s.family == name}
            chosen |= self._some(found, "family", name, {s.family or "" for s in self})
        for name in ids:
            found = {i for i in self.entries if fnmatch.fnmatchcase(i, name)}
            chosen |= self._some(found, "model", name, self.entries)
        return [spec for spec in self if spec.id in chosen]

    def _some(self, found: set[str], what: str, name: str, known: Iterable[str]) -> set[str]:
        if not found:
            known = sorted(set(known))
            listing = f" Known: {', '.join(known)}." if len(known) <= 20 else ""
            files = dict.fromkeys(str(entry.document.path) for entry in self.entries.values())
            raise InputError(
                f"no {what} {name!r} in the registry, which is {', '.join(files) or 'empty'}."
                f"{did_you_mean(name, known)}{listing} A file of your own counts once `registry:` "
                "names it."
            )
        return found

    def related(self) -> set[frozenset[str]]:
        """Return the pairs of ids that were not trained independently, as the entries declare.

        The relation is transitive: two fine-tunes of one model are related.
        """
        group = linked(
            self.entries,
            (
                (spec.id, other)
                for spec in self
                for other in (*spec.same_weights_as, *spec.initialised_from)
            ),
        )
        members: dict[str, list[str]] = {}
        for i in self.entries:
            members.setdefault(group[i], []).append(i)
        return {frozenset((a, b)) for ids in members.values() for a in ids for b in ids if a != b}


def load_registry(paths: Iterable[str | Path]) -> Registry:
    """Read and check registry files; ids are unique over all of them.

    Parameters
    ----------
    paths
        Files; `builtin` is the registry that comes with the package.

    Raises
    ------
    InputError
        Where a file cannot be read.
    FaultyFileError
        Where entries are wrong: with file, line, entry and remedy of each.
    """
    entries: dict[str, Entry] = {}
    faults: list[str] = []
    for path in paths:
        document = load_yaml(builtin_registry() if str(path) == BUILTIN else path)
        models = document.data.get("models")
        if not isinstance(models, list):
            faults.append(
                f"{document.path}: a registry needs `models:`, a list of entries "
                "(- source: …, name: …)."
            )
            continue
        for position, value in enumerate(models):
            location = ("models", position)
            label = value.get("id") or value.get("name") if isinstance(value, dict) else None
            try:
                spec = validate(ModelSpec, value, document, location, str(label) if label else None)
            except FaultyFileError as error:
                faults += error.faults
                continue
            entry = Entry(spec, document, location)
            if spec.id in entries:
                faults.append(
                    f"{entry.where}: the id {spec.id!r} is taken already by "
                    f"{entries[spec.id].where}. Give one of the two another `id:`, or, if they "
                    "are two states of one training run, make them checkpoints of one entry."
                )
                continue
            entries[spec.id] = entry
    # a related model may be one of the faulty entries, whose id is unknown
    faults = faults or [
        f"{entry.where}: entry {entry.spec.id!r} names {other!r} as a related model, but there is "
        f"no such entry.{did_you_mean(other, entries)}"
        for entry in entries.values()
        for other in (*entry.spec.same_weights_as, *entry.spec.initialised_from)
        if other not in entries
    ]
    if faults:
        raise FaultyFileError(faults)
    return Registry(entries)


def models_schema() -> dict[str, Any]:
    """Return the JSON Schema of a registry file, for editors."""
    entry = ModelSpec.model_json_schema(ref_template="#/$defs/{model}")
    definitions = entry.pop("$defs", {})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Consilience model registry",
        "type": "object",
        "required": ["models"],
        "properties": {
            "models": {"type": "array", "items": {"$ref": "#/$defs/ModelSpec"}},
            "training": {"type": "object"},
        },
        "$defs": {**definitions, "ModelSpec": entry},
    }
