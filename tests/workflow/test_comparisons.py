"""Which encoders meet which."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoder import Encoder
from pipeline.workflow.comparisons import expand_to_layers, wanted_pairs, with_modality

KINDS = ("all", "final", "init", "same_step", "within_model")


def encoder(model: str, step: int, tower: str = "image", final: bool = False) -> Encoder:
    return Encoder(model, f"c{step}", tower, step, ("a", "b"), initial=step == 0, final=final)


FOUR = [
    encoder("m", 0), encoder("m", 9, final=True),
    encoder("n", 0), encoder("n", 5), encoder("n", 9, final=True), encoder("p", -1, final=True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("final", {(1, 4), (1, 5), (4, 5)}),
        ("init", {(0, 2)}),
        ("same_step", {(0, 2), (1, 4)}),
        ("within_model", {(0, 0), (0, 1), (1, 1), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4),
                          (5, 5)}),
        ("all", {(i, j) for i in range(6) for j in range(i, 6)}),
    ],
)  # fmt: skip
def test_wanted_pairs__kind(kind: str, expected: set[tuple[int, int]]) -> None:
    mask = wanted_pairs(FOUR, [kind])
    assert {(int(i), int(j)) for i, j in np.argwhere(np.triu(mask))} == expected
    np.testing.assert_array_equal(mask, mask.T)


def test_wanted_pairs__unknown_steps_are_not_the_same_step() -> None:
    assert not wanted_pairs([encoder("m", -1), encoder("n", -1)], ["same_step"]).any()


@given(st.sets(st.sampled_from(KINDS)), st.sets(st.sampled_from(KINDS)))
def test_wanted_pairs__union_of_kinds(some: set[str], others: set[str]) -> None:
    both = wanted_pairs(FOUR, some | others)
    np.testing.assert_array_equal(both, wanted_pairs(FOUR, some) | wanted_pairs(FOUR, others))


def test_with_modality__where_either_is_one() -> None:
    mask = with_modality([encoder("m", 0), encoder("m", 0, "text"), encoder("n", 0)], "text")
    assert mask.tolist() == [[False, True, False], [True, True, True], [False, True, False]]


def test_expand_to_layers__repeats_for_layers() -> None:
    mask = expand_to_layers(np.array([[True, False], [False, True]]), [1, 2])
    assert mask.astype(int).tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
