"""A cache of what was used most recently, within a limit."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Keeps the values used most recently, whose sizes add up to at most a limit. Thread-safe.

    Parameters
    ----------
    limit
        Largest sum of sizes.
    size
        Size of a value; default: 1 each, so that the limit is a number of values.
    """

    def __init__(self, limit: int, size: Callable[[V], int] = lambda _: 1) -> None:
        self.limit, self.used = limit, 0
        self.values: dict[K, V] = {}
        self._size, self._lock = size, Lock()

    def get(self, key: K) -> V | None:
        """Return a value, which is now the most recent, or None."""
        with self._lock:
            value = self.values.pop(key, None)
            if value is not None:
                self.values[key] = value
            return value

    def put(self, key: K, value: V) -> None:
        """Keep a value, and drop the least recent ones beyond the limit."""
        with self._lock:
            replaced = self.values.pop(key, None)
            if replaced is not None:
                self.used -= self._size(replaced)
            self.values[key] = value
            self.used += self._size(value)
            while self.used > self.limit:
                self.used -= self._size(self.values.pop(next(iter(self.values))))
