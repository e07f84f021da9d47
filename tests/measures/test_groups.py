import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.measures.groups import plan_groups

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2))
square_masks = hnp.arrays(bool, st.integers(1, 7).map(lambda m: (m, m)))


def covered(groups, shape):
    """How often each pair is computed."""
    count = np.zeros(shape, int)
    for group in groups:
        count[np.ix_(group.rows, group.columns)] += 1
    return count


@given(mask=masks)
def test_plan_groups__covers_exactly_what_is_wanted(mask):
    np.testing.assert_array_equal(covered(plan_groups(mask, overhead=0), mask.shape), mask)


@given(mask=masks, overhead=st.integers(0, 50))
def test_plan_groups__joined_groups_cover_all_and_nothing_twice(mask, overhead):
    count = covered(plan_groups(mask, overhead=overhead), mask.shape)
    assert count.max() <= 1
    assert count[mask].all()


@given(mask=square_masks, overhead=st.integers(0, 50))
def test_plan_groups__symmetric_covers_each_unordered_pair(mask, overhead):
    mask = mask | mask.T
    count = covered(plan_groups(mask, symmetric=True, overhead=overhead), mask.shape)
    assert count.max() <= 1
    assert (count + count.T)[mask].all()
    if overhead == 0:
        np.testing.assert_array_equal((count + count.T) > 0, mask)


def test_plan_groups__large_blocks_stay_apart_and_ragged_rows_join():
    blocks = np.kron(np.eye(4), np.ones((100, 100))).astype(bool)
    assert [group.rows.size for group in plan_groups(blocks, symmetric=True)] == [100] * 4
    ragged = np.random.default_rng(0).random((200, 200)) < 0.5
    assert len(plan_groups(ragged)) == 1


def test_plan_groups__nothing_wanted():
    assert plan_groups(np.zeros((3, 4), bool)) == []
