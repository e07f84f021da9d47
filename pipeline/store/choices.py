"""Resolve what a caller named, or left out, among what a store holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.errors import InputError
from pipeline.suggest import did_you_mean


def resolve_one(given: str | None, choices: Sequence[str], argument: str, what: str) -> str:
    """Return the choice given, or the only one; ambiguity is an error that lists the choices."""
    if given is None:
        if len(choices) == 1:
            return choices[0]
        if not choices:
            raise InputError(f"there is no {what} in this store yet.")
        raise InputError(f"which {what} is meant? Pass {argument}= one of: {', '.join(choices)}.")
    if given not in choices:
        raise InputError(
            f"there is no {what} {given!r}.{did_you_mean(given, choices)} "
            f"There are: {', '.join(choices) or 'none'}."
        )
    return given


def unique(values: Iterable[str]) -> list[str]:
    """Return the distinct values, in order."""
    return list(dict.fromkeys(values))
