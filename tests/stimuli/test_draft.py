"""Repeated rows, found without comparing rows with each other."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stimuli.draft import _repeats


@settings(deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(0, 26), min_size=1, max_size=12))
def test_repeats__rows_that_agree_in_every_column(n_columns: int, codes: list[int]) -> None:
    digits = [[(code // 3**k) % 3 for k in range(n_columns)] for code in codes]
    columns = np.array(digits, dtype=np.uint64).T + np.uint64(2**63)  # above what int64 holds
    expected = [row in digits[:i] for i, row in enumerate(digits)]
    assert _repeats(*columns).tolist() == expected
