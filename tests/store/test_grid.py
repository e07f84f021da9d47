"""Grids: slots are appended, never moved; a changed member retires its own."""

from __future__ import annotations

import numpy as np
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.schema import NULL_GROUP, SCORE_GROUP, Slot, State
from pipeline.store.grid import Grid, PendingPairs, allocate, padded_state

CHUNK = 4


def new_grid(table: str = "measures") -> Grid:
    root = zarr.open_group(zarr.storage.MemoryStore(), mode="w", zarr_format=3)
    if table == "measures":
        return Grid.create(root, "g", SCORE_GROUP, chunk=CHUNK, attributes={"a": 1})
    attributes = {"aggregates": ["max", "mean"], "n_permutations": 3}
    return Grid.create(root, "g", NULL_GROUP, chunk=CHUNK, attributes=attributes)


def reopened(grid: Grid) -> Grid:
    return Grid(zarr.open_group(grid.group.store, mode="r+", path=grid.group.path), grid.kind)


def write(
    grid: Grid, i: int, j: int, value: float, wanted: NDArray[np.bool_], undefined: bool = False
) -> None:
    values = np.full((CHUNK, CHUNK), value, np.float32)
    grid.write_chunk(i, j, {"score": values}, wanted, np.full((CHUNK, CHUNK), undefined))


def test_create__empty(tmp_path: object) -> None:
    grid = new_grid()
    assert grid.chunk == CHUNK
    assert grid.members == {}
    assert grid.state().shape == (0, 0)
    assert grid.group.attrs["a"] == 1


def test_admit__pads_to_whole_chunks() -> None:
    grid = new_grid()
    grid.admit({"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"})
    assert grid.members == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert grid.digests == {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}
    assert grid.state().shape == (8, 8)
    assert grid.array("slot")[...].tolist() == [Slot.LIVE] * 5 + [Slot.FREE] * 3
    assert grid.array("n_ties")[...].tolist() == [-1] * 8
    assert np.isnan(grid.array("score")[...]).all()


def test_admit__other_dimensions_stay() -> None:
    grid = new_grid("calibration")
    grid.admit({"a": "1"})
    assert grid.array("null").shape == (2, CHUNK, CHUNK, 3)
    assert grid.array("null").chunks == (2, CHUNK, CHUNK, 3)


def test_admit__again_changes_nothing() -> None:
    grid = new_grid()
    grid.admit({"a": "1", "b": "2"})
    grid.admit({"b": "2"})
    grid.admit({"b": "2", "a": "1"})
    assert reopened(grid).members == {"a": 0, "b": 1}


def test_admit__changed_digest_retires_the_slot() -> None:
    grid = new_grid()
    grid.admit({"a": "1", "b": "2"})
    write(grid, 0, 0, 0.5, np.ones((CHUNK, CHUNK), bool))
    grid.admit({"a": "changed", "b": "2"})
    assert grid.members == {"b": 1, "a": 2}
    assert grid.array("slot")[...].tolist() == [Slot.RETIRED, Slot.LIVE, Slot.LIVE, Slot.FREE]
    assert grid.digests == {"b": "2", "a": "changed"}


def test_admit__a_new_slot_has_no_results() -> None:
    grid = new_grid()
    grid.admit({"a": "1", "b": "2"})
    only = np.zeros((CHUNK, CHUNK), bool)
    only[:2, :2] = True
    write(grid, 0, 0, 0.5, only)
    grid.admit({"a": "changed"})
    assert (grid.state()[2] == State.MISSING).all()
    assert np.isnan(grid.array("score")[2]).all()


def test_allocate__previews_a_grid_that_is_not_there() -> None:
    found = allocate(None, {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}, CHUNK)
    assert (found.members["e"], found.length, found.retired) == (4, 8, [])
    assert found.new == ["a", "b", "c", "d", "e"]
    assert allocate(None, {}, CHUNK).length == 0


def test_write_chunk__merges_only_what_is_wanted() -> None:
    grid = new_grid()
    grid.admit({c: c for c in "abcdef"})
    first = np.zeros((CHUNK, CHUNK), bool)
    first[0, :] = True
    write(grid, 0, 1, 0.25, first)
    second = np.zeros((CHUNK, CHUNK), bool)
    second[1, 2] = True
    write(grid, 0, 1, 0.75, second)
    score, state = reopened(grid).array("score")[...], reopened(grid).state()
    assert (score[0, 4:] == 0.25).all()
    assert score[1, 6] == 0.75
    assert np.isfinite(score).sum() == (state == State.DONE).sum() == 5
    assert set(np.unique(state)) == {State.MISSING, State.DONE}


def test_write_chunk__undefined_is_not_missing() -> None:
    grid = new_grid()
    grid.admit({"a": "1"})
    wanted = np.zeros((CHUNK, CHUNK), bool)
    wanted[0, 0] = True
    write(grid, 0, 0, np.nan, wanted, undefined=True)
    assert grid.state()[0, 0] == State.UNDEFINED
    assert (grid.state() == State.MISSING).sum() == CHUNK**2 - 1


def test_write_chunk__with_other_dimensions_on_both_sides() -> None:
    grid = new_grid("calibration")
    grid.admit({c: c for c in "abcde"})
    values = np.arange(2 * CHUNK * CHUNK * 3, dtype=np.float32).reshape(2, CHUNK, CHUNK, 3)
    wanted = np.zeros((CHUNK, CHUNK), bool)
    wanted[3, 0] = True
    grid.write_chunk(0, 1, {"null": values}, wanted, np.zeros_like(wanted))
    null = grid.array("null")[...]
    np.testing.assert_array_equal(null[:, 3, 4], values[:, 3, 0])
    assert np.isfinite(null).sum() == 6


def test_padded_state__keeps_what_is_stored() -> None:
    grid = new_grid()
    grid.admit({"a": "1"})
    write(grid, 0, 0, 1.0, np.ones((CHUNK, CHUNK), bool))
    state = padded_state(grid, 8)
    assert (state[:4, :4] == State.DONE).all()
    assert state.sum() == 16 * State.DONE
    assert padded_state(None, 4).sum() == 0


@given(
    st.integers(0, 4).flatmap(
        lambda n: st.lists(
            st.tuples(st.integers(0, max(4 * n - 1, 0)), st.integers(0, max(4 * n - 1, 0))),
            max_size=6 if n else 0,
        ).map(lambda pairs: (n, pairs))
    )
)
def test_blocks__each_with_something_missing_once(
    case: tuple[int, list[tuple[int, int]]],
) -> None:
    n, pairs = case
    missing = np.zeros((4 * n, 4 * n), bool)
    for a, b in pairs:
        missing[a, b] = True
    expected = sorted({tuple(sorted((a // 4, b // 4))) for a, b in pairs})
    assert list(PendingPairs({}, missing | missing.T, 4).blocks()) == expected


DIGESTS = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("123"), max_size=8)


@given(st.lists(DIGESTS, max_size=6))
@settings(max_examples=30, deadline=None)
def test_admit__any_sequence(batches: list[dict[str, str]]) -> None:
    """Slots never move, never come back, and `allocate` foretells each admission."""
    grid = new_grid()
    known: dict[str, str] = {}
    taken: dict[int, tuple[str, str]] = {}
    for batch in batches:
        foretold = allocate(grid, batch, CHUNK)
        before = grid.members
        grid.admit(batch)
        assert grid.members == foretold.members
        assert foretold.new == [m for m in batch if known.get(m) != batch[m]]
        assert foretold.retired == [
            before[m] for m in batch if m in before and known[m] != batch[m]
        ]
        known |= batch
        assert grid.digests == known
        for member, slot in grid.members.items():
            assert taken.setdefault(slot, (member, known[member])) == (member, known[member])
        slots = np.asarray(grid.array("slot")[...])
        assert len(slots) == foretold.length == grid.state().shape[0] == grid.state().shape[1]
        assert len(slots) % CHUNK == 0
        assert set(np.flatnonzero(slots == Slot.LIVE)) == set(grid.members.values())
        assert (slots == Slot.RETIRED).sum() == len(taken) - len(known)
        assert reopened(grid).members == grid.members
