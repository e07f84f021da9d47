"""From layers to encoders, against loops; calibration, q, relations, metadata."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pipeline.analysis import ComparisonResults
from pipeline.analysis.alignment import (
    LayerAggregate,
    aggregate_block,
    alignment_dataset,
    encoder_columns,
    matched_depths,
)
from pipeline.analysis.competence import COLUMNS
from pipeline.calibration import benjamini_hochberg, calibrate_score
from pipeline.encoder import Encoder, equal_weights, related
from pipeline.errors import InputError
from pipeline.schema import ALIGNMENT, ENCODER, validate

NAN = float("nan")


# layers


def by_loops(block: NDArray[np.float64]) -> LayerAggregate:
    n, m = block.shape
    best, at, values = -math.inf, (-1, -1), []
    for i in range(n):
        for j in range(m):
            if not math.isnan(block[i, j]):
                values.append(block[i, j])
                if block[i, j] > best:
                    best, at = block[i, j], (i, j)
    deep = max(n, m)
    matched = []
    for k in range(deep):
        depth = k / (deep - 1) if deep > 1 else 1.0
        value = block[round(depth * (n - 1)), round(depth * (m - 1))]
        if not math.isnan(value):
            matched.append(value)
    if not values:
        return LayerAggregate(NAN, -1, -1, NAN, NAN)
    return LayerAggregate(
        best, *at, sum(values) / len(values), sum(matched) / len(matched) if matched else NAN
    )


def same(a: LayerAggregate, b: LayerAggregate) -> None:
    assert (a.layer_x, a.layer_y) == (b.layer_x, b.layer_y)
    np.testing.assert_allclose(
        [a.score, a.mean, a.matched], [b.score, b.mean, b.matched], rtol=1e-12, atol=1e-12
    )


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
        elements=st.one_of(st.just(NAN), st.integers(-4, 4).map(lambda i: i / 4)),
    )
)
def test_aggregate_block__equals_loops(block: NDArray[np.float64]) -> None:
    same(aggregate_block(block), by_loops(block))


def test_aggregate_block__negative_scores_do_not_vanish() -> None:
    found = aggregate_block(np.array([[-0.5, NAN], [-0.2, -0.9]]))
    assert found == LayerAggregate(-0.2, 1, 0, pytest.approx(-1.6 / 3), pytest.approx(-0.7))


def test_aggregate_block__first_of_equals() -> None:
    found = aggregate_block(np.array([[0.1, 0.7], [0.7, 0.7]]))
    assert (found.layer_x, found.layer_y) == (0, 1)


def test_aggregate_block__nothing_defined() -> None:
    same(aggregate_block(np.full((2, 3), NAN)), LayerAggregate(NAN, -1, -1, NAN, NAN))


def test_aggregate_block__nothing_defined_at_matched_depths() -> None:
    found = aggregate_block(np.array([[NAN, 0.5], [0.25, NAN]]))
    assert found.score == 0.5
    assert math.isnan(found.matched)


def test_aggregate_block__types_can_be_stored() -> None:
    found = aggregate_block(np.eye(2))
    assert {type(v) for v in (found.score, found.mean, found.matched)} == {float}
    assert {type(v) for v in (found.layer_x, found.layer_y)} == {int}


@pytest.mark.parametrize(
    ("n", "m", "pairs"),
    [
        (1, 1, [(0, 0)]),
        (3, 3, [(0, 0), (1, 1), (2, 2)]),
        (1, 3, [(0, 0), (0, 1), (0, 2)]),
        (5, 3, [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2)]),
        (2, 4, [(0, 0), (0, 1), (1, 2), (1, 3)]),
    ],
)
def test_matched_depths__by_hand(n: int, m: int, pairs: list[tuple[int, int]]) -> None:
    x, y = matched_depths(n, m)
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == pairs


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_matched_depths__ends_meet_and_every_layer_of_the_deeper(n: int, m: int) -> None:
    x, y = matched_depths(n, m)
    assert len(x) == len(y) == max(n, m)
    deeper, other = (x, y) if n >= m else (y, x)
    assert deeper.tolist() == list(range(max(n, m)))
    assert (x[-1], y[-1]) == (n - 1, m - 1)
    assert n == 1 or m == 1 or (x[0], y[0]) == (0, 0)
    assert (np.diff(other) >= 0).all()
    again_y, again_x = matched_depths(m, n)
    np.testing.assert_array_equal(x, again_x)
    np.testing.assert_array_equal(y, again_y)


# the dataset


def encoder(name: str, checkpoint: str = "end", tower: str = "image", **more: Any) -> Encoder:
    attributes = more.pop("attributes", {})
    fields = {
        "step": 10,
        "layers": ("a", "b"),
        "initial": False,
        "final": True,
        "attributes": {"family": name[0], "n_parameters": 100, "flops": 7.0, **attributes},
        **more,
    }
    return Encoder(f"timm/{name}", checkpoint, tower, **fields)


ENCODERS = [
    encoder("a", attributes={"metadata": {"samples_seen": 1000}, "last_step": 10}),
    encoder("b", attributes={"related": ["timm/c"]}),
    encoder("c"),
    encoder(
        "a",
        "start",
        step=0,
        initial=True,
        final=False,
        attributes={"metadata": {"samples_seen": 1000}, "last_step": 10},
    ),
    encoder("d"),
    encoder("e", attributes={"related": ["timm/d", "timm/gone"]}),
]
A, B, C, START, D, E = (e.id for e in ENCODERS)
N_NULL = 39


def blocks(pairs: list[tuple[str, str]], seed: int = 0) -> dict[tuple[str, str], Any]:
    rng = np.random.default_rng(seed)
    return {p: rng.uniform(-0.2, 1, size=(2, 3)) for p in pairs}


def nulls(pairs: list[tuple[str, str]], seed: int = 1) -> dict[tuple[str, str], Any]:
    rng = np.random.default_rng(seed)
    return {p: rng.uniform(-0.2, 1, size=(2, N_NULL)).astype(np.float32) for p in pairs}


PAIRS = [(A, B), (B, A), (A, C), (C, A), (B, C), (C, B), (A, A), (A, START), (START, A)]


def dataset(results: list[ComparisonResults], **options: Any) -> Any:
    given: dict[str, Any] = {
        "alpha": 0.05,
        "maximum": 1.0,
        "columns": {},
        "attributes": {},
        **options,
    }
    return alignment_dataset(ENCODERS, results, **given)


def test_alignment_dataset__is_what_is_declared() -> None:
    made = dataset(
        [ComparisonResults(64, blocks(PAIRS), nulls(PAIRS))], attributes={"label": "knn"}
    )
    validate(made, ALIGNMENT, ALIGNMENT)
    for side in "xy":
        for name in ENCODER:
            assert made[f"{name}_{side}"].dims == (f"encoder_{side}",)
    assert made.attrs == {"label": "knn"}
    assert made.encoder_x.values.tolist() == [e.id for e in ENCODERS]
    assert all(made[name].attrs["description"] == ALIGNMENT[name].description for name in made)


def test_alignment_dataset__scores_of_each_direction() -> None:
    given = blocks(PAIRS)
    made = dataset([ComparisonResults(64, given, {})])
    for x, y in PAIRS:
        at = made.sel(encoder_x=x, encoder_y=y)
        best = aggregate_block(given[x, y])
        assert at.score == best.score == given[x, y].max()
        assert at["mean"] == best.mean
        assert at.matched == best.matched
        assert (at.layer_x, at.layer_y) == (best.layer_x, best.layer_y)
        assert at.n_stimuli == 64
        assert np.isnan([at.p, at.q, at.threshold, at.calibrated, at.calibrated_mean]).all()


def test_alignment_dataset__pairs_that_were_not_compared() -> None:
    made = dataset([ComparisonResults(64, blocks(PAIRS), nulls(PAIRS))])
    at = made.sel(encoder_x=D, encoder_y=A)
    for name in ("score", "mean", "matched", "threshold", "calibrated", "calibrated_mean", "p"):
        assert np.isnan(at[name])
    assert (at.layer_x, at.layer_y, at.n_stimuli) == (-1, -1, 0)


def test_alignment_dataset__several_subsets() -> None:
    one, two = blocks([(A, B)], 1), blocks([(A, C)], 2)
    made = dataset([ComparisonResults(64, one, {}), ComparisonResults(20, two, nulls([(A, C)]))])
    assert made.n_stimuli.sel(encoder_x=A).values.tolist() == [0, 64, 20, 0, 0, 0]
    assert np.isfinite(made.p.sel(encoder_x=A, encoder_y=C))
    assert np.isnan(made.p.sel(encoder_x=A, encoder_y=B))


@pytest.mark.parametrize(("alpha", "maximum"), [(0.05, 1.0), (0.25, 1.0), (0.1, 2.0)])
def test_alignment_dataset__calibrated_as_calibrate_score_does(
    alpha: float, maximum: float
) -> None:
    given, chance = blocks(PAIRS), nulls(PAIRS)
    made = dataset([ComparisonResults(64, given, chance)], alpha=alpha, maximum=maximum)
    for x, y in PAIRS:
        at = made.sel(encoder_x=x, encoder_y=y)
        null = chance[x, y].astype(np.float64)
        value, tau, p = calibrate_score(given[x, y].max(), null[0], alpha=alpha, maximum=maximum)
        np.testing.assert_allclose([at.calibrated, at.threshold, at.p], [value, tau, p])
        mean, _, _ = calibrate_score(given[x, y].mean(), null[1], alpha=alpha, maximum=maximum)
        np.testing.assert_allclose(at.calibrated_mean, mean)
        assert 0 <= at.calibrated <= 1


def test_alignment_dataset__p_below_what_draws_tell() -> None:
    """Bounds of p, where no draw reaches the score and they are below 1/(K+1)."""
    pairs = [(A, B), (A, C), (B, C)]
    chance = {p: np.full((2, N_NULL), 0.1, np.float32) for p in pairs}
    given = {(A, B): np.full((2, 2), 0.5), (A, C): np.full((2, 2), 0.5), (B, C): np.zeros((2, 2))}
    bounds = {(A, B): 1e-12, (A, C): 0.5, (B, C): 1e-12}
    made = dataset([ComparisonResults(64, given, chance, tails=bounds)])
    p = [float(made.p.sel(encoder_x=x, encoder_y=y)) for x, y in pairs]
    assert p == [1e-12, 1 / (N_NULL + 1), 1.0]
    assert float(made.q.sel(encoder_x=A, encoder_y=B)) == pytest.approx(3e-12)
    without = dataset([ComparisonResults(64, given, chance)])
    for name in ("calibrated", "threshold", "calibrated_mean"):
        np.testing.assert_array_equal(made[name], without[name])


def test_alignment_dataset__level_that_no_p_reaches() -> None:
    with pytest.raises(InputError, match=r"smallest possible p is 1/40, above alpha=0.02"):
        dataset([ComparisonResults(64, blocks(PAIRS), nulls(PAIRS))], alpha=0.02)


def test_alignment_dataset__undefined_stays_undefined() -> None:
    given = {(A, B): np.full((2, 2), NAN), (A, C): np.ones((2, 2))}
    made = dataset([ComparisonResults(64, given, nulls([(A, B), (A, C)]))])
    at = made.sel(encoder_x=A, encoder_y=B)
    assert np.isnan([at.score, at.p, at.calibrated, at.threshold, at.q]).all()
    assert (at.layer_x, at.layer_y) == (-1, -1)
    assert made.p.sel(encoder_x=A, encoder_y=C) == 1 / (N_NULL + 1)


def test_alignment_dataset__q_over_unordered_pairs() -> None:
    chance = nulls(PAIRS)
    given = blocks(PAIRS)
    for x, y in PAIRS:  # a symmetric measure: both directions have one p
        given[y, x], chance[y, x] = given[x, y].T, chance[x, y]
    made = dataset([ComparisonResults(64, given, chance)])
    unordered = [(A, B), (A, C), (B, C), (A, START)]  # without (A, A)
    ps = [float(made.p.sel(encoder_x=x, encoder_y=y)) for x, y in unordered]
    assert len(set(ps)) > 1
    for (x, y), q in zip(unordered, benjamini_hochberg(ps), strict=True):
        assert made.q.sel(encoder_x=x, encoder_y=y) == q
        assert made.q.sel(encoder_x=y, encoder_y=x) == q
    assert np.isnan(made.q.sel(encoder_x=A, encoder_y=A))
    assert np.isfinite(made.q).sum() == 8


def test_alignment_dataset__nulls_of_pairs_without_scores() -> None:
    made = dataset([ComparisonResults(64, blocks([(A, B)]), nulls([(A, B), (A, C)]))])
    assert np.isfinite(made.p).sum() == 1


def test_alignment_dataset__related() -> None:
    made = dataset([])
    kin = {frozenset((A, START)), frozenset((B, C)), frozenset((D, E))}
    for x in made.encoder_x.values:
        for y in made.encoder_y.values:
            expected = x == y or frozenset((x, y)) in kin
            assert bool(made.related.sel(encoder_x=x, encoder_y=y)) == expected


def test_related__models_with_a_trained_checkpoint_in_common() -> None:
    """A copy under another id, of any checkpoint, links the models; others stay apart."""
    first = [encoder("a", "one", weights="w1"), encoder("a", "two", weights="w2")]
    copy, other = encoder("b", weights="w1"), encoder("c", weights="w3")
    further = encoder("d", weights="w4", attributes={"related": ["timm/b"]})
    found = related([*first, copy, other, further])
    kin = [0, 0, 0, 1, 0]
    expected = np.equal.outer(kin, kin)
    np.testing.assert_array_equal(found, expected)


def test_related__equal_initialisations_link_themselves_alone() -> None:
    """Two runs may begin alike as a control: trained, they are independent all the same."""
    start = {"checkpoint": "init", "step": 0, "initial": True, "weights": "init:seed=0@ff"}
    encoders = [encoder("a", **start), encoder("b", **start), encoder("a"), encoder("b")]
    found = related(encoders)
    assert found[0, 1]
    assert found[1, 0]
    assert not found[2, 3]
    assert not found[0, 3]


def test_related__unknown_weights_are_not_equal() -> None:
    assert not related([encoder("a"), encoder("b")])[0, 1]


def test_equal_weights__named_once_for_all_towers() -> None:
    encoders = [
        encoder("a", "one", weights="w"), encoder("a", "two", weights="w"),
        encoder("b", weights="w"), encoder("b", tower="text", weights="w"),
        encoder("c", weights="v"), encoder("c", tower="text", weights="v"),
    ]  # fmt: skip
    assert equal_weights(encoders) == [["timm/a@one", "timm/a@two", "timm/b@end"]]


def test_encoder_columns__metadata() -> None:
    known = {A: {"knn_accuracy": 0.5, "probe_accuracy": 0.75}, B: {"knn_accuracy": 0.25}}
    columns = encoder_columns(ENCODERS, known)
    assert set(columns) == set(ENCODER) | set(COLUMNS)
    assert columns["model"][3] == "timm/a"
    assert columns["checkpoint"][3] == "start"
    assert columns["initial"] == [False, False, False, True, False, False]
    assert columns["final"][3] is False
    assert columns["family"] == ["a", "b", "c", "a", "d", "e"]
    np.testing.assert_array_equal(columns["samples_seen"], [1000, NAN, NAN, 0, NAN, NAN])
    np.testing.assert_array_equal(columns["knn_accuracy"], [0.5, 0.25, NAN, NAN, NAN, NAN])
    np.testing.assert_array_equal(columns["probe_accuracy"], [0.75, NAN, NAN, NAN, NAN, NAN])
    assert columns["n_parameters"] == 6 * [100.0]
    bare = Encoder("timm/z", "c", "image", -1, ("a",), False, True)
    found = encoder_columns([bare], {})
    assert np.isnan([found["n_parameters"][0], found["flops"][0]]).all()
