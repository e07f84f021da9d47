"""Errors of two parts: what is wrong, and the remedy."""

from __future__ import annotations

import pickle

import pytest

from pipeline.errors import LostError, StoreError, UnreadableError


@pytest.mark.parametrize("kind", [StoreError, LostError, UnreadableError])
def test_str__what_and_remedy_are_sentences(kind: type[StoreError]) -> None:
    assert str(kind("a.zarr is damaged", "Repair it.")) == "a.zarr is damaged. Repair it."
    assert str(kind("a.zarr is damaged")) == "a.zarr is damaged."


@pytest.mark.parametrize("kind", [StoreError, LostError, UnreadableError])
def test_pickle__keeps_both_parts(kind: type[StoreError]) -> None:
    """A worker's error reaches the driver as it was."""
    found = pickle.loads(pickle.dumps(kind("what", "Remedy.")))
    assert type(found) is kind
    assert (found.what, found.remedy) == ("what", "Remedy.")
