"""What tests of the store share: stimuli, and an empty store that can be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.stimuli import StimuliSpec, StimulusSet, load_stimuli
from pipeline.store.writer import StoreWriter


@pytest.fixture(scope="module")
def stimuli() -> StimulusSet:
    return load_stimuli(StimuliSpec(source="digits", part="test"))


@pytest.fixture
def writer(tmp_path: Path) -> StoreWriter:
    return StoreWriter(tmp_path / "s.zarr", create=True)
