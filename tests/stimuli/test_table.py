"""Ordered, content-addressed stimuli, and subsets of them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.stimuli import StimulusTable, Subset, SubsetSpec, content_id, draw
from pipeline.stimuli.ids import array_id, as_ids, fingerprint, hex_ids, row_ids
from pipeline.stimuli.memory import table_of


def images(n: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, size=(n, 4, 4), dtype=np.uint8))


def some(n: int = 10, captions: list[str] | None = None, name: str = "some") -> StimulusTable:
    return table_of(name, {"source": "test"}, images=images(n), captions=captions)


# ids


def test_content_id__by_hand() -> None:
    expected = hashlib.sha256(b"\x01\0\0\0\0\0\0\0a\x02\0\0\0\0\0\0\0bc").hexdigest()[:16]
    assert content_id(b"a", b"bc") == expected


@settings(deadline=None)
@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_content_id__differs_where_the_parts_do(a: list[bytes], b: list[bytes]) -> None:
    assert (content_id(*a) == content_id(*b)) == (a == b)


def test_fingerprint__of_ids_one_to_a_line() -> None:
    a, b = content_id(b"a"), content_id(b"b")
    assert fingerprint(as_ids([a, b])) == hashlib.sha256(f"{a}\n{b}".encode()).hexdigest()
    assert fingerprint(as_ids([a, b])) != fingerprint(as_ids([b, a]))


def test_hex_ids__and_back() -> None:
    texts = [content_id(b"a"), "", "0000000000000001", content_id(b"b")]
    assert list(hex_ids(as_ids(texts))) == texts
    assert as_ids(texts)[1:3].tolist() == [0, 1]
    assert len(as_ids([])) == len(hex_ids(as_ids([]))) == 0


def test_array_id__of_shape_and_pixels() -> None:
    flat = np.arange(8, dtype=np.uint8)
    shapes = [flat.reshape(2, 4), flat.reshape(4, 2), flat[::-1].reshape(2, 4)]
    assert len({array_id(s) for s in shapes}) == 3
    # the memory order of an array is no content
    assert array_id(np.asfortranarray(shapes[0])) == array_id(shapes[0])
    backwards = np.ascontiguousarray(flat.reshape(2, 4)[:, ::-1])[:, ::-1]
    assert array_id(backwards) == content_id(b"(2, 4)", flat.tobytes())


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, ">i2", bool])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_row_ids__those_of_each_row(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 100, (7, *shape)).astype(dtype)
    assert list(hex_ids(row_ids(values))) == [array_id(v) for v in values]
    assert list(hex_ids(row_ids(values[::2]))) == [array_id(v) for v in values[::2]]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_row_ids__of_nothing(shape: tuple[int, ...]) -> None:
    values = np.zeros(shape, np.float32)
    assert list(hex_ids(row_ids(values))) == [array_id(v) for v in values]


def test_array_id__of_the_dtype_but_not_of_its_byte_order() -> None:
    values = np.arange(3, dtype=np.int32)
    assert array_id(values) == array_id(values.astype(">i4"))
    assert len({array_id(values.astype(d)) for d in (np.int32, np.float32, np.uint32)}) == 3


def test_table__images_do_not_depend_on_captions() -> None:
    plain, told, retold = some(3), some(3, ["a", "b", "c"]), some(3, ["c", "b", "a"])
    assert plain.fingerprint == told.fingerprint == retold.fingerprint
    assert plain.key == told.key == f"some-{plain.fingerprint[:8]}"
    assert plain.fingerprint_of("image") == told.fingerprint_of("image") == plain.fingerprint
    with pytest.raises(InputError, match="no captions"):
        plain.fingerprint_of("text")
    assert told.fingerprint_of("text") != retold.fingerprint_of("text")
    assert told.ids("text")[0] == retold.ids("text")[2] == int(content_id(b"a"), 16)
    np.testing.assert_array_equal(told.ids("image"), plain.row_ids)


def test_table__captions_in_utf_8() -> None:
    assert hex_ids(some(1, ["Größe"]).ids("text"))[0] == content_id("Größe".encode())


def test_ids__no_captions() -> None:
    with pytest.raises(
        InputError,
        match=r"stimuli 'some': they have no captions, which text towers need\. Choose stimuli "
        r"with captions, or models with towers: \[image\]",
    ):
        some().ids("text")
    with pytest.raises(InputError, match="no captions"):
        draw(some(), SubsetSpec(n=3)).distinct_captions()


def test_table__captions_alone() -> None:
    words = table_of("words", {}, captions=["b", "a", "b"])
    assert len(words) == 3
    assert words.modalities == ("text",)
    assert list(words.columns["caption"]) == ["b", "a", "b"]
    np.testing.assert_array_equal(words.row_ids, words.ids("text"))
    assert words.fingerprint == words.fingerprint_of("text") == fingerprint(words.ids("text"))
    assert words.key == f"words-{words.fingerprint[:8]}"
    assert draw(words, SubsetSpec(n=2)).fingerprint != words.fingerprint
    distinct = draw(words, SubsetSpec()).distinct_captions()
    assert distinct.rows.tolist() == [0, 1]
    assert distinct.key == f"words-captions-n2-{distinct.fingerprint[:8]}"
    with pytest.raises(
        InputError,
        match=r"stimuli 'words': they have no images, which image towers need\. Choose stimuli "
        r"with images, or models with towers: \[text\]",
    ):
        words.ids("image")


def test_table__modalities() -> None:
    assert some(2).modalities == ("image",)
    assert some(2, ["a", "b"]).modalities == ("image", "text")
    assert len(table_of("none", {})) == 0


# subsets


def test_subset__all_rows() -> None:
    base = some(10)
    for whole in (draw(base, SubsetSpec()), draw(base, SubsetSpec(n=10, seed=5))):
        np.testing.assert_array_equal(whole.rows, np.arange(10))
        assert whole.fingerprint == base.fingerprint
        assert whole.key == f"some-n10-{base.fingerprint[:8]}"


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_subset__without_replacement_in_order(n: int, seed: int) -> None:
    base = some(40)
    rows = draw(base, SubsetSpec(n=n, seed=seed)).rows
    assert len(rows) == n
    assert (np.diff(rows) > 0).all()
    assert rows.min() >= 0
    assert rows.max() < 40
    np.testing.assert_array_equal(draw(base, SubsetSpec(n=n, seed=seed)).rows, rows)


def test_subset__every_row_is_as_likely() -> None:
    base = some(8)
    drawn = [draw(base, SubsetSpec(n=3, seed=s)).rows for s in range(800)]
    counts = np.bincount(np.concatenate(drawn), minlength=8)
    assert abs(counts - 300).max() < 5 * np.sqrt(800 * 3 / 8 * 5 / 8)


def test_subset__fingerprint_follows_the_rows() -> None:
    base = some(20)
    prints = {draw(base, SubsetSpec(n=10, seed=s)).fingerprint for s in range(5)}
    assert len(prints | {base.fingerprint}) == 6
    rows = draw(base, SubsetSpec(n=10, seed=1)).rows
    assert Subset(base, rows).fingerprint == fingerprint(base.row_ids[rows])


def test_subset__too_many() -> None:
    with pytest.raises(
        InputError,
        match=r"subset: n = 11 rows were asked of stimuli 'some', which have 10\. Set subset.n "
        r"to at most 10, or leave it out",
    ):
        draw(some(10), SubsetSpec(n=11))


def test_distinct_captions__first_of_each_in_order() -> None:
    base = some(6, ["b", "a", "b", "c", "a", "d"])
    captions = draw(base, SubsetSpec()).distinct_captions()
    assert captions.rows.tolist() == [0, 1, 3, 5]
    assert len(captions) == 4
    assert captions.kind == "captions"
    assert captions.key == f"some-captions-n4-{captions.fingerprint[:8]}"
    chosen = Subset(base, np.array([2, 3, 4])).distinct_captions()
    assert chosen.rows.tolist() == [2, 3, 4]


def test_distinct_captions__fingerprint_knows_the_captions() -> None:
    one, other = some(3, ["a", "b", "c"]), some(3, ["a", "b", "d"])
    assert draw(one, SubsetSpec()).fingerprint == draw(other, SubsetSpec()).fingerprint
    captions = draw(one, SubsetSpec()).distinct_captions()
    assert captions.fingerprint != draw(other, SubsetSpec()).distinct_captions().fingerprint
    # the same rows, of another kind
    assert captions.fingerprint != draw(one, SubsetSpec()).fingerprint


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=12))
def test_distinct_captions__every_caption_once(captions: list[str]) -> None:
    base = some(len(captions), captions)
    rows = draw(base, SubsetSpec()).distinct_captions().rows
    assert [captions[r] for r in rows] == list(dict.fromkeys(captions))
