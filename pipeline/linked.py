"""Groups of things that are linked, directly or through others."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def linked(items: Iterable[T], links: Iterable[tuple[T, T]]) -> dict[T, T]:
    """Return item → the item that stands for its group; links with unknown items do not count."""
    group = {item: item for item in items}

    def root(item: T) -> T:
        while group[item] != item:
            item = group[item]
        return item

    for a, b in links:
        if a in group and b in group:
            group[root(a)] = root(b)
    return {item: root(item) for item in group}
