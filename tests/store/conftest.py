"""What tests of the store share: stimuli, and an empty store that can be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.stimuli import StimulusTable, index_stimuli
from pipeline.stimuli.digits import DigitsSpec
from pipeline.store.writer import StoreWriter


@pytest.fixture(scope="module")
def stimuli() -> StimulusTable:
    return index_stimuli(DigitsSpec(part="test"))


@pytest.fixture
def writer(tmp_path: Path) -> StoreWriter:
    return StoreWriter(tmp_path / "s.zarr", create=True)
