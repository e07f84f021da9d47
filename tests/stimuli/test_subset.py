"""Rows to compare on: by column, by list, stratified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.stimuli import StimulusTable, SubsetSpec, draw
from pipeline.stimuli.draft import text_column
from pipeline.stimuli.ids import hex_ids


def table(n: int = 60, **columns: Any) -> StimulusTable:
    ids = np.random.default_rng(0).integers(1, 2**63, n).astype(np.uint64)
    return StimulusTable("some", {}, {"image": ids}, columns)


PETS = table(
    6,
    label=np.array([1, 0, 1, 2, 0, 1]),
    label_name=text_column(["cat", "ant", "cat", "dog", "ant", "cat"]),
    year=np.array([1999, 2000, 2000, 2001, 1999, 2001]),
    id=text_column([f"pic {i}" for i in range(6)]),
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"label": "cat"}, [0, 2, 5]),
        ({"year": 2001}, [3, 5]),
        ({"label": ("dog", "ant")}, [1, 3, 4]),
        ({"year": 2000}, [1, 2]),
        ({"year": (1999, 2001), "label": "cat"}, [0, 5]),
    ],
)
def test_where__any_value_of_every_column(where: dict[str, Any], rows: list[int]) -> None:
    assert draw(PETS, SubsetSpec(where=where)).rows.tolist() == rows


def test_where__sampled_from_what_is_left() -> None:
    found = [draw(PETS, SubsetSpec(where={"label": "cat"}, n=2, seed=s)) for s in range(20)]
    assert {tuple(f.rows) for f in found} == {(0, 2), (0, 5), (2, 5)}


@pytest.mark.parametrize("name", ["list", "file"])
def test_ids__in_the_order_of_the_set(tmp_path: Path, name: str) -> None:
    content = hex_ids(PETS.row_ids)[2]
    ids = ("pic 4", content, "pic 0")
    lines = "".join(f"{i}\n" for i in (*ids, ""))
    (tmp_path / "ids.txt").write_text(f"\ufeff{lines}", encoding="utf-8")
    asked: Any = ids if name == "list" else str(tmp_path / "ids.txt")
    assert draw(PETS, SubsetSpec(ids=asked)).rows.tolist() == [0, 2, 4]


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=60), st.data())
def test_stratify__within_one_of_the_share(labels: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(labels)))
    base = table(len(labels), label=np.array(labels))
    drawn = draw(base, SubsetSpec(n=n, stratify="label", seed=1)).rows
    assert len(set(drawn)) == n
    for value in set(labels):
        share = n * labels.count(value) / len(labels)
        assert abs(np.count_nonzero(np.array(labels)[drawn] == value) - share) <= 1.5


def test_stratify__every_row_of_a_class_is_as_likely() -> None:
    base = table(12, label=np.repeat([0, 1], [8, 4]))
    drawn = [draw(base, SubsetSpec(n=6, stratify="label", seed=s)).rows for s in range(600)]
    assert all((d < 8).sum() == 4 for d in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=12)
    assert abs(counts - 300).max() < 5 * np.sqrt(600 / 4)


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"where": {"lable": 1}}, r"stimuli 'some' have no column 'lable'\. Did you mean 'label' or "
     r"'label_name'\? Columns: label, label_name, year, id"),
    ({"where": {"label": "cta"}}, r"no row of stimuli 'some' has label 'cta'\. Did you mean 'cat'\?"
     r" It has ant, cat, dog\."),
    ({"where": {"year": 2000, "label": "dog"}}, r"no row of stimuli 'some' is left by where and"),
    ({"where": {"label": "cat"}, "n": 4}, r"n = 4 rows were asked of stimuli 'some', which have 6, "
     r"of which where and ids leave 3\. Set subset\.n to at most 3"),
    ({"ids": ("pic 1", "pic 9")}, r"1 of 2 ids are not among stimuli 'some', first 'pic 9'\. Did "
     r"you mean 'pic \d'"),
    ({"ids": "nowhere.txt"}, r"ids: nowhere.txt cannot be read as UTF-8 text: .* one to a line"),
    ({"stratify": "kind", "n": 2}, r"no column 'kind'"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), FAULTS)
def test_draw__faults(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(PETS, SubsetSpec(**keys))


def test_spec__stratify_needs_n() -> None:
    with pytest.raises(ValueError, match="stratify needs n"):
        SubsetSpec(stratify="label")
