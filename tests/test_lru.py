"""What a cache keeps within its limit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.lru import LruCache


def bytes_cache(limit: int) -> LruCache[object, bytes]:
    return LruCache(limit, size=len)


def test_lru_cache__most_recent_within_the_limit() -> None:
    cache = bytes_cache(10)
    a, b, c = (bytes([i] * 4) for i in range(3))
    cache.put("a", a)
    cache.put("b", b)
    assert cache.get("a") is a  # now more recent than b
    cache.put("c", c)
    assert cache.get("b") is None
    assert cache.get("a") is a
    assert cache.get("c") is c
    assert cache.used == 8


def test_lru_cache__value_larger_than_the_limit() -> None:
    cache = bytes_cache(10)
    cache.put("a", bytes(4))
    cache.put("big", bytes(11))
    assert cache.get("big") is None
    assert cache.used == 0
    cache.put("a", bytes(10))
    assert cache.used == 10


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), unique_by=lambda p: p[0]))
def test_lru_cache__never_above_the_limit(puts: list[tuple[int, int]]) -> None:
    cache = bytes_cache(8)
    for key, size in puts:
        cache.put(key, bytes(size))
        assert cache.used == sum(map(len, cache.values.values())) <= 8


def test_lru_cache__put_again() -> None:
    # once wrong: the bytes of a key that is there already count twice
    # (two threads of a worker that miss together), and at last popping an empty cache fails
    cache = bytes_cache(10)
    for _ in range(3):
        cache.put("a", bytes(4))
        assert cache.used == 4


def test_lru_cache__counts_values_by_default() -> None:
    cache: LruCache[int, str] = LruCache(2)
    for key in range(3):
        cache.put(key, "x")
    assert list(cache.values) == [1, 2]
