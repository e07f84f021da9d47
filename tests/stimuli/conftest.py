"""What tests of sources share: reading stimuli the way workers do, by the rows of a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.stimuli import SourceSpec, StimulusReader, StimulusTable, open_stimuli
from pipeline.store.stimuli import read_table
from pipeline.store.writer import StoreWriter

Stored = Callable[[SourceSpec, StimulusTable], tuple[StimulusReader, StimulusTable]]


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """Write a table into a store; return a reader of the store's rows, and the table read back."""
    writer = StoreWriter(tmp_path / "stimuli.zarr", create=True)

    def write(spec: SourceSpec, table: StimulusTable) -> tuple[StimulusReader, StimulusTable]:
        writer.write_stimuli(table)
        found = read_table(writer.root, table.key)
        assert found is not None
        assert found.columns.keys() == table.columns.keys()
        for name, values in table.columns.items():
            np.testing.assert_array_equal(found.columns[name], values)
        assert (found.source, found.details, list(found.notes)) == (
            table.source,
            table.details,
            list(table.notes),
        )
        return open_stimuli(spec, writer.stimulus_rows(table.key)), found

    return write
