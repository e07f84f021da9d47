import tracemalloc

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import InputError
from pipeline.measures import list_measures, measure_spec, pairs, prepare, score_pairs

SPECS = {
    "biased": measure_spec("cka"),
    "debiased": measure_spec("cka_debiased"),
    "knn5": measure_spec("mutual_knn", k=5),
    "euclidean3": measure_spec("mutual_knn", k=3, neighbours="euclidean"),
}


def representations(n=37, widths=(3, 50, 8, 20, 64), seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 4))
    arrays = [common @ rng.normal(size=(4, d)) + rng.normal(size=(n, d)) for d in widths]
    return arrays, [prepare(a, SPECS, dtype=dtype) for a in arrays]


def assert_same(one, other, atol=1e-12):
    for label in SPECS:
        np.testing.assert_allclose(one[label].values, other[label].values, atol=atol)
        np.testing.assert_array_equal(one[label].undefined, other[label].undefined)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_score_pairs__equals_the_loops(dtype):
    arrays, prepared = representations(dtype=dtype)
    scores = score_pairs(prepared[:2], prepared[2:], SPECS)
    for label, spec in SPECS.items():
        naive = reference.MEASURES[spec.name]
        expected = [[naive(x, y, **dict(spec.parameters)) for y in arrays[2:]] for x in arrays[:2]]
        atol = 1e-5 if dtype == np.float32 else 1e-10
        np.testing.assert_allclose(scores[label].values, expected, atol=atol)
        assert not scores[label].undefined.any()


@pytest.mark.parametrize("tile", [1, 5, 36, 37, 1000])
@pytest.mark.parametrize("symmetric", [True, False])
def test_score_pairs__tiled_equals_untiled(tile, symmetric):
    _, prepared = representations()
    others = prepared if symmetric else prepared[1:4]
    assert_same(
        score_pairs(prepared, others, SPECS, tile=tile, memory=3000),
        score_pairs(prepared, others, SPECS, tile=37),
    )


def test_score_pairs__symmetric_equals_both_halves():
    _, prepared = representations()
    _, copies = representations()
    assert_same(score_pairs(prepared, prepared, SPECS), score_pairs(prepared, copies, SPECS))


def test_score_pairs__on_itself_is_one_in_float32():
    _, prepared = representations(n=300, dtype=np.float32)
    for scores in score_pairs(prepared, prepared, SPECS).values():
        np.testing.assert_allclose(np.diag(scores.values), 1.0, atol=1e-6)
        np.testing.assert_array_equal(scores.values, scores.values.T)


masks = hnp.arrays(bool, (5, 5)) | st.builds(
    lambda a, b: np.equal.outer(a, b), *[hnp.arrays(int, 5, elements=st.integers(0, 1))] * 2
)
_, PREPARED = representations()
_, COPIES = representations()
FULL = score_pairs(PREPARED, PREPARED, SPECS)


@given(mask=masks, symmetric=st.booleans())
def test_score_pairs__a_mask_changes_no_wanted_score(mask, symmetric):
    scores = score_pairs(PREPARED, PREPARED if symmetric else COPIES, SPECS, wanted=mask)
    for label in SPECS:
        np.testing.assert_allclose(
            scores[label].values, np.where(mask, FULL[label].values, np.nan), atol=1e-12
        )
        assert not scores[label].undefined.any()


def test_score_pairs__does_not_form_what_is_not_wanted(monkeypatch):
    formed = set()
    upper = pairs.Relation.upper

    def spy(self, rows, columns, out):
        formed.add(id(self))
        upper(self, rows, columns, out)

    monkeypatch.setattr(pairs.Relation, "upper", spy)
    mask = np.zeros((5, 5), bool)
    score_pairs(PREPARED, PREPARED, SPECS, wanted=mask)
    assert formed == set()
    mask[1, [1, 3]] = True
    score_pairs(PREPARED, PREPARED, SPECS, wanted=mask)
    assert formed == {id(PREPARED[i].relations["", "linear"]) for i in (1, 3)}


def test_score_pairs__tells_undefined_from_not_wanted():
    _, prepared = representations()
    constant = prepare(np.ones((37, 4)), SPECS)
    mask = np.array([[True, True], [False, True]])
    for scores in score_pairs(prepared[:2], [prepared[2], constant], SPECS, wanted=mask).values():
        np.testing.assert_array_equal(np.isnan(scores.values), [[False, True], [True, True]])
        np.testing.assert_array_equal(scores.undefined, [[False, True], [False, True]])
    equidistant = prepare(np.eye(37), SPECS)
    scores = score_pairs([equidistant], prepared, SPECS)
    assert scores["debiased"].undefined.all()
    assert not scores["biased"].undefined.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_permuted__equals_reordering_the_array(dtype):
    arrays, prepared = representations(dtype=dtype)
    order = np.random.default_rng(3).permutation(37)
    moved = [p.permuted(order) for p in prepared]
    again = [prepare(a[order], SPECS, dtype=dtype) for a in arrays]
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    assert_same(score_pairs(prepared, moved, SPECS), score_pairs(prepared, again, SPECS), tolerance)
    back = [p.permuted(np.argsort(order)) for p in moved]
    assert_same(score_pairs(prepared, back, SPECS), score_pairs(prepared, PREPARED, SPECS), 1e-6)


@pytest.mark.parametrize("order", [np.arange(36), np.zeros(37, int), np.arange(37) + 1])
def test_permuted__refuses_what_is_not_a_permutation(order):
    with pytest.raises(InputError, match="must be a permutation of the 37 row numbers"):
        PREPARED[0].permuted(order)


def test_score_pairs__heavy_tails_keep_their_digits():
    rng = np.random.default_rng(0)
    x, y = rng.standard_t(1.5, size=(2, 60, 30))
    prepared = [prepare(z, SPECS) for z in (x, y)]
    scores = score_pairs(prepared[:1], prepared[1:], SPECS)
    for label, spec in SPECS.items():
        expected = reference.MEASURES[spec.name](x, y, **dict(spec.parameters))
        assert scores[label].values[0, 0] == pytest.approx(expected, abs=1e-5)


def test_score_pairs__memory_stays_in_the_budget():
    rng = np.random.default_rng(0)
    prepared = [prepare(rng.normal(size=(700, 8)), SPECS) for _ in range(30)]
    score_pairs(prepared[:2], prepared[:2], SPECS)  # imports and caches
    least = 30 * 2**16  # a cell of each
    for budget in (least, 8_000_000):
        tracemalloc.start()
        score_pairs(prepared, prepared, SPECS, memory=budget)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.2 * budget + 1_500_000


def test_prepare__only_what_is_needed():
    x = np.random.default_rng(0).normal(size=(30, 5))
    assert prepare(x, [SPECS["knn5"]]).relations == {}
    assert list(prepare(x, [SPECS["knn5"]]).neighbours) == [("", "cosine", 5)]
    assert prepare(x, [SPECS["biased"]]).neighbours == {}
    assert prepare(x, [SPECS["biased"]]).relations["", "linear"].dtype == np.float32


def test_prepare__does_not_change_its_input():
    for measure in list_measures():
        x = np.random.default_rng(0).normal(size=(30, 5))
        before = x.copy()
        prepare(x, [measure_spec(measure.name)])
        np.testing.assert_array_equal(x, before)


def test_prepare__refuses_a_dtype_it_cannot_multiply():
    with pytest.raises(InputError, match="dtype of products is float16; use float32 or float64"):
        prepare(np.eye(20), SPECS, dtype=np.float16)


def test_prepare__names_the_array():
    x = np.eye(20)
    x[4, 3] = np.nan
    with pytest.raises(InputError, match=r"^vit/blocks\.3 holds NaN or infinity .* first in row 4"):
        prepare(x, SPECS, name="vit/blocks.3")


def test_score_pairs__not_prepared():
    x = np.random.default_rng(0).normal(size=(30, 5))
    only = [prepare(x, [SPECS["biased"]])]
    assert np.isfinite(score_pairs(only, only, {"d": SPECS["debiased"]})["d"].values).all()
    with pytest.raises(InputError, match=r"not prepared for mutual_knn\(k=5, .*`prepare` too"):
        score_pairs(only, only, SPECS)
    without = [prepare(x, [SPECS["knn5"]])]
    with pytest.raises(InputError, match=r"not prepared for cka\."):
        score_pairs(without, without, {"cka": SPECS["biased"]})


def test_score_pairs__wrong_shapes():
    with pytest.raises(
        InputError, match=r"the same stimuli in the same order; these have 20 and 37"
    ):
        score_pairs(PREPARED, [prepare(np.eye(20), SPECS)], SPECS)
    with pytest.raises(InputError, match=r"mask of wanted pairs has shape \(2,\); with 5 and 5"):
        score_pairs(PREPARED, PREPARED, SPECS, wanted=[True, False])
    with pytest.raises(InputError, match="a list of representations is empty"):
        score_pairs([], PREPARED, SPECS)
