"""Trends over models: planted slopes are found, no effect gives uniform p, few models give NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binomtest, kstest, linregress, spearmanr

from pipeline.analysis import ComparisonResults
from pipeline.analysis.alignment import alignment_dataset
from pipeline.analysis.convergence import (
    CONDITIONS,
    MINIMUM_MODELS,
    PREDICTORS,
    TREND_PROSE,
    Trend,
    convergence_dataset,
    mean_alignment,
    pair_weights,
    trend,
)
from pipeline.encoder import Encoder

NAN = float("nan")
Array = np.ndarray


def planted(
    n: int, slope: float, seed: int, *, of_model: float = 0.05, of_pair: float = 0.05
) -> tuple[Array, Array]:
    """Make alignments with a slope on the mean predictor, an effect of each model, and noise."""
    rng = np.random.default_rng(seed)
    predictor = rng.uniform(5, 9, n)
    effect = rng.normal(0, of_model, n)
    noise = rng.normal(0, of_pair, (n, n))
    values = (
        0.3
        + slope * (predictor[:, None] + predictor[None]) / 2
        + effect[:, None]
        + effect[None]
        + (noise + noise.T) / np.sqrt(2)
    )
    return values, predictor


def pairs_of(values: Array, predictor: Array) -> tuple[Array, Array]:
    """Return predictor and alignment of each pair, by loops."""
    x, y = [], []
    for i in range(len(predictor)):
        for j in range(i + 1, len(predictor)):
            if np.isfinite(values[i, j]) and np.isfinite(predictor[[i, j]]).all():
                x.append((predictor[i] + predictor[j]) / 2)
                y.append(values[i, j])
    return np.array(x), np.array(y)


# trend


def test_trend__line_and_ranks_equal_scipy() -> None:
    values, predictor = planted(9, 0.1, 0)
    values[2, 5] = values[5, 2] = NAN
    predictor[7] = NAN
    found = trend(values, predictor, n_bootstrap=200)
    x, y = pairs_of(values, predictor)
    line = linregress(x, y)
    assert found.slope == pytest.approx(line.slope)
    assert found.intercept == pytest.approx(line.intercept)
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic)
    assert (found.n_models, found.n_pairs) == (8, 27)
    assert found.slope_low < found.slope < found.slope_high
    assert -1 <= found.spearman_low < found.spearman < found.spearman_high <= 1


def test_trend__exact_line() -> None:
    values, predictor = planted(8, 0.25, 1, of_model=0, of_pair=0)
    found = trend(values, predictor, n_bootstrap=200)
    np.testing.assert_allclose([found.slope, found.slope_low, found.slope_high], 0.25)
    assert found.intercept == pytest.approx(0.3)
    assert found.spearman == pytest.approx(1)
    assert found.p_qap == pytest.approx(1 / 201)


def test_trend__a_falling_line_has_a_negative_rank_correlation() -> None:
    values, predictor = planted(8, -0.25, 1)
    found = trend(values, predictor, n_bootstrap=200)
    assert found.slope_high < 0
    assert found.spearman < -0.5
    assert found.p_qap < 0.05


def test_trend__interval_covers_the_planted_slope() -> None:
    covered = 0
    for seed in range(60):
        found = trend(*planted(16, 0.05, seed), n_bootstrap=200, seed=seed)
        covered += found.slope_low <= 0.05 <= found.slope_high
    # nominally 95%; percentile intervals from 16 models are somewhat short
    assert binomtest(covered, 60, 0.95).pvalue > 1e-4
    assert covered >= 50


def test_trend__pairs_are_not_taken_for_samples() -> None:
    """With strong effects of models, the interval is far wider than least squares would say."""
    widths = []
    for seed in range(10):
        values, predictor = planted(16, 0.0, seed, of_model=0.2, of_pair=0.01)
        found = trend(values, predictor, n_bootstrap=200)
        naive = 2 * 1.96 * linregress(*pairs_of(values, predictor)).stderr
        widths.append((found.slope_high - found.slope_low) / naive)
    assert np.median(widths) > 1.5


def test_trend__p_is_uniform_without_an_effect() -> None:
    ps = [trend(*planted(10, 0.0, s), n_bootstrap=99, seed=s).p_qap for s in range(150)]
    assert min(ps) >= 1 / 100
    assert max(ps) <= 1
    assert kstest(ps, "uniform").pvalue > 0.01
    assert binomtest(sum(p <= 0.05 for p in ps), 150, 0.05).pvalue > 0.01


def test_trend__p_by_hand() -> None:
    """Four models have 24 orders: the share of them that does as well is near the p."""
    from itertools import permutations

    values, predictor = planted(4, 0.1, 3)
    slope = linregress(*pairs_of(values, predictor)).slope
    exact = np.mean(
        [
            abs(linregress(*pairs_of(values, predictor[list(o)])).slope) >= abs(slope) - 1e-12
            for o in permutations(range(4))
        ]
    )
    assert trend(values, predictor, n_bootstrap=2000).p_qap == pytest.approx(exact, abs=0.04)


def test_trend__left_out_pairs_are_left_out() -> None:
    values, predictor = planted(8, 0.1, 0)
    without = values.copy()
    without[0] = without[:, 0] = NAN
    found = trend(without, predictor, n_bootstrap=150)
    smaller = trend(values[1:, 1:], predictor[1:], n_bootstrap=150)
    assert found.n_models == 7
    assert found == smaller
    diagonal = values.copy()
    np.fill_diagonal(diagonal, 99.0)
    assert trend(diagonal, predictor, n_bootstrap=150) == trend(values, predictor, n_bootstrap=150)


def test_trend__seeded() -> None:
    given = planted(8, 0.1, 0)
    one = trend(*given, n_bootstrap=150, seed=1)
    assert trend(*given, n_bootstrap=150, seed=1) == one
    assert trend(*given, n_bootstrap=150, seed=2).slope_low != one.slope_low


def all_nan(found: Trend) -> bool:
    return all(
        np.isnan(getattr(found, name))
        for name in TREND_PROSE
        if name not in ("n_models", "n_pairs")
    )


@pytest.mark.parametrize("n", [0, 1, 2, MINIMUM_MODELS - 1])
def test_trend__few_models(n: int) -> None:
    found = trend(*planted(n, 0.1, 0), n_bootstrap=50)
    assert all_nan(found)
    assert (found.n_models, found.n_pairs) == (n if n > 1 else 0, n * (n - 1) // 2)


def test_trend__models_without_any_pair_do_not_count() -> None:
    values, predictor = planted(6, 0.1, 0)
    values[:3, :] = values[:, :3] = NAN
    found = trend(values, predictor, n_bootstrap=50)
    assert all_nan(found)
    assert found.n_models == 3


@pytest.mark.parametrize("constant", [0.0, 7.3, 1e9, NAN])
def test_trend__constant_predictor(constant: float) -> None:
    values, predictor = planted(8, 0.1, 0)
    predictor[:] = constant
    found = trend(values, predictor, n_bootstrap=50)
    assert all_nan(found)
    assert found.n_pairs == (0 if np.isnan(constant) else 28)


# the bootstrap


def test_pair_weights__equal_a_loop_over_draws() -> None:
    """Weigh pairs by the multiplicities of their models, as if the drawn models stood in a list."""
    values, predictor = planted(6, 0.1, 0)
    models = np.array([0, 2, 3, 5])
    i, j = np.triu_indices(6, 1)
    keep = np.isin(i, models) & np.isin(j, models) & ~((i == 2) & (j == 3))
    i, j = i[keep], j[keep]
    weights = pair_weights(6, models, i, j, 40, np.random.default_rng(4))
    assert weights.shape == (40, 5)
    draws = np.random.default_rng(4).multinomial(4, np.full(4, 1 / 4), size=40)
    from pipeline.analysis.convergence import _line

    x = (predictor[i] + predictor[j]) / 2
    slopes, intercepts = _line(x, values[i, j], weights)
    for b in range(40):
        drawn = np.repeat(models, draws[b])
        xs, ys = [], []
        for first in range(4):
            for second in range(first + 1, 4):
                a, c = sorted((drawn[first], drawn[second]))
                if a != c and (a, c) != (2, 3):
                    xs.append((predictor[a] + predictor[c]) / 2)
                    ys.append(values[a, c])
        assert weights[b].sum() == len(xs)
        if len(set(xs)) < 2:
            assert np.isnan(slopes[b])
        else:
            line = linregress(xs, ys)
            assert slopes[b] == pytest.approx(line.slope)
            assert intercepts[b] == pytest.approx(line.intercept)


def test_pair_weights__of_every_draw_as_many_models() -> None:
    models = np.arange(5)
    i, j = np.triu_indices(5, 1)
    weights = pair_weights(5, models, i, j, 500, np.random.default_rng(0))
    # E[c_i c_j] = n(n-1)/n² for multinomial counts
    np.testing.assert_allclose(weights.mean(0), 0.8, atol=0.2)
    assert (weights == np.round(weights)).all()


def test_mean_alignment__by_hand() -> None:
    values, _ = planted(10, 0.0, 0)
    values[1, 4] = values[4, 1] = NAN
    mean, low, high, n = mean_alignment(values, n_bootstrap=300)
    _, y = pairs_of(values, np.zeros(10))
    assert n == 44
    assert mean == pytest.approx(y.mean())
    assert low < mean < high
    naive = 2 * 1.96 * y.std() / np.sqrt(n)
    assert high - low > naive  # pairs share models


def test_mean_alignment__interval_covers() -> None:
    covered = 0
    for seed in range(60):
        values, _ = planted(16, 0.0, seed)
        _, low, high, _ = mean_alignment(values, n_bootstrap=200, seed=seed)
        covered += low <= 0.3 <= high
    assert covered >= 49


def test_mean_alignment__few_models() -> None:
    values, _ = planted(3, 0.0, 0)
    mean, low, high, n = mean_alignment(values)
    assert n == 3
    assert mean == pytest.approx(values[np.triu_indices(3, 1)].mean())
    assert np.isnan([low, high]).all()
    found = mean_alignment(np.full((5, 5), NAN))
    assert np.isnan(found[:3]).all()
    assert found[3] == 0


# the dataset


STEPS = (0, 10, 100)
N_MODELS = 6
SIZES = [1e4 * 3**k for k in range(N_MODELS)]


def encoders(text: bool = False, related: tuple[int, int] | None = None) -> list[Encoder]:
    made = []
    for k in range(N_MODELS):
        last = 90 + k  # each ends at a step of its own
        kin = {"related": [f"timm/m{related[1]}"]} if related and k == related[0] else {}
        for step in (*STEPS[:2], last):
            for tower in ("image", "text") if text else ("image",):
                made.append(
                    Encoder(
                        f"timm/m{k}",
                        f"step{step}",
                        tower,
                        step,
                        ("a",),
                        step == 0,
                        step == last,
                        attributes={
                            "family": "m",
                            "n_parameters": SIZES[k],
                            "flops": 5.0,
                            "metadata": {"samples_seen": 100 * SIZES[k]},
                            "last_step": last,
                            **kin,
                        },
                    )
                )
    return made


def score_of(a: Encoder, b: Encoder) -> float:
    """Let final alignment grow with size by 0.1 per tenfold, on average of the two."""
    noise = 0.01 * np.sin(hash_of(a) * hash_of(b))
    if a.tower != b.tower:
        return 0.99
    if not (a.final and b.final):
        return 0.05 + 0.001 * min(a.step, b.step) + float(noise)
    sizes = [float(e.attributes["n_parameters"]) for e in (a, b)]
    return float(0.1 * np.mean(np.log10(sizes)) + noise)


def hash_of(e: Encoder) -> float:
    return 1.0 + float(e.model[-1]) + e.step / 7


def alignment(chosen: list[Encoder]) -> xr.Dataset:
    scores = {(a.id, b.id): np.array([[score_of(a, b)]]) for a in chosen for b in chosen}
    nulls = {
        (a.id, b.id): np.tile(np.linspace(-0.2, 0.04, 39), (2, 1))
        for a in chosen
        for b in chosen
        if a.final and b.final
    }
    competence = {
        e.id: {"knn_accuracy": 0.5, "probe_accuracy": 0.1 * int(e.model[-1]) + e.step / 1000}
        for e in chosen
        if e.tower == "image"
    }
    return alignment_dataset(
        chosen,
        [ComparisonResults(64, scores, nulls)],
        alpha=0.05,
        maximum=1.0,
        columns=competence,
        attributes={},
    )


def of_images(chosen: list[Encoder], **options: int) -> xr.Dataset:
    return convergence_dataset(alignment(chosen), **options).sel(modality="image")


@pytest.fixture(scope="module")
def made() -> xr.Dataset:
    return of_images(encoders(), n_bootstrap=150, seed=3)


def test_convergence_dataset__shape(made: xr.Dataset) -> None:
    found = convergence_dataset(alignment(encoders()), n_bootstrap=120)
    assert found.modality.values.tolist() == ["image"]
    assert made.condition.values.tolist() == list(CONDITIONS)
    assert made.value.values.tolist() == ["raw", "calibrated"]
    assert made.predictor.values.tolist() == list(PREDICTORS)
    for name, prose in TREND_PROSE.items():
        assert found[name].dims == ("modality", "condition", "value", "predictor")
        assert found[name].attrs["description"] == prose
    assert made.attrs["bootstrap"] == "over models"
    assert made.attrs["seed"] == 3
    assert made.attrs["log10_predictors"] == ["flops", "n_parameters", "samples_seen"]


def test_convergence_dataset__trend_of_the_final_models(made: xr.Dataset) -> None:
    found = made.sel(condition="final", value="raw", predictor="n_parameters")
    finals = [e for e in encoders() if e.final]
    values = np.array([[score_of(a, b) for b in finals] for a in finals])
    expected = trend(values, np.log10(SIZES), n_bootstrap=150, seed=3)
    for name in TREND_PROSE:
        assert float(found[name]) == pytest.approx(getattr(expected, name))
    assert float(found.slope) == pytest.approx(0.1, abs=0.02)  # per tenfold
    assert (int(found.n_models), int(found.n_pairs)) == (6, 15)


def test_convergence_dataset__samples_seen_is_taken_as_log(made: xr.Dataset) -> None:
    found = made.sel(condition="final", value="raw")
    assert float(found.slope.sel(predictor="samples_seen")) == pytest.approx(
        float(found.slope.sel(predictor="n_parameters"))
    )
    probe = float(found.slope.sel(predictor="probe_accuracy"))
    assert probe == pytest.approx(0.1 * np.log10(3) / 0.1, rel=0.2)  # not as log


def test_convergence_dataset__calibrated_beside_raw(made: xr.Dataset) -> None:
    found = made.sel(condition="final", predictor="n_parameters").slope
    tau = alignment(encoders()).threshold
    tau = float(tau.values[np.isfinite(tau.values)][0])
    assert float(found.sel(value="calibrated")) == pytest.approx(
        float(found.sel(value="raw")) / (1 - tau)
    )


def test_convergence_dataset__constant_predictors(made: xr.Dataset) -> None:
    for name in ("flops", "knn_accuracy"):
        found = made.sel(predictor=name)
        for field in TREND_PROSE:
            if not field.startswith("n_"):
                assert np.isnan(found[field].values).all()
    assert (made.n_pairs.sel(predictor="flops", value="raw") == 15).all()


def test_convergence_dataset__control_at_initialisation(made: xr.Dataset) -> None:
    found = made.sel(condition="init", predictor="n_parameters")
    assert int(found.n_pairs.sel(value="raw")) == 15
    assert abs(float(found.slope.sel(value="raw"))) < 0.02
    assert int(found.n_pairs.sel(value="calibrated")) == 0  # no null was asked for there
    # nothing is seen at initialisation
    assert np.isnan(float(made.slope.sel(condition="init", value="raw", predictor="samples_seen")))


def test_convergence_dataset__related_pairs_are_left_out() -> None:
    found = of_images(encoders(related=(1, 4)), n_bootstrap=120)
    pairs = found.sel(condition="final", value="raw", predictor="n_parameters").n_pairs
    assert int(pairs) == 14
    assert int(found.n_pairs_stage.sel(stage="end", value="raw")) == 14


def test_convergence_dataset__each_modality_has_its_own() -> None:
    """Those of one are as if there were no other, and pairs of two are in none."""
    both = [e for e in encoders(text=True) if not (e.tower == "text" and e.step == 10)]
    found = convergence_dataset(alignment(both), n_bootstrap=150, seed=3)
    assert found.modality.values.tolist() == ["image", "text"]
    for modality in ("image", "text"):
        own = [e for e in both if e.tower == modality]
        alone = convergence_dataset(alignment(own), n_bootstrap=150, seed=3)
        assert alone.modality.values.tolist() == [modality]
        same = found.sel(modality=modality, stage=alone.stage)
        xr.testing.assert_identical(same, alone.sel(modality=modality))
    assert found.stage.values.tolist() == ["step 0", "step 10", "end"]
    lacks = found.sel(modality="text", stage="step 10")
    assert np.isnan(lacks["mean"].values).all()
    assert (lacks.n_pairs_stage.values.tolist(), int(lacks.step)) == ([0, 0], -1)


def test_convergence_dataset__stages(made: xr.Dataset) -> None:
    # steps that most models have; each one's own last step is its end
    assert made.stage.values.tolist() == ["step 0", "step 10", "end"]
    assert made.step.values.tolist() == [0, 10, 92]
    raw = made.sel(value="raw")
    assert raw.n_pairs_stage.values.tolist() == [15, 15, 15]
    chosen = encoders()
    for stage, at in (("step 0", 0), ("step 10", 10)):
        members = [e for e in chosen if e.step == at]
        values = np.array([[score_of(a, b) for b in members] for a in members])
        mean, low, high, _ = mean_alignment(values, n_bootstrap=150, seed=3)
        found = raw.sel(stage=stage)
        np.testing.assert_allclose(
            [found["mean"], found.mean_low, found.mean_high], [mean, low, high]
        )
        ends = {e.model: e for e in chosen if e.final}
        own = np.mean([score_of(e, ends[e.model]) for e in members])
        assert float(made.to_final.sel(stage=stage)) == pytest.approx(own)
        probes = np.mean([0.1 * int(e.model[-1]) + at / 1000 for e in members])
        assert float(made.probe_accuracy.sel(stage=stage)) == pytest.approx(probes)
    assert made.sel(value="calibrated").n_pairs_stage.values.tolist() == [0, 0, 15]


def test_convergence_dataset__published_models_have_one_stage() -> None:
    chosen = [
        Encoder(f"timm/m{k}", "pretrained", "image", -1, ("a",), False, True,
                attributes={"n_parameters": SIZES[k]})
        for k in range(N_MODELS)
    ]  # fmt: skip
    found = of_images(chosen, n_bootstrap=120)
    assert found.stage.values.tolist() == ["end"]
    assert found.step.values.tolist() == [-1]
    assert found.n_pairs.sel(condition="init").values.max() == 0
    assert float(found.slope.sel(condition="final", value="raw", predictor="n_parameters")) > 0.05


def test_convergence_dataset__no_encoders_at_a_stage() -> None:
    chosen = [e for e in encoders() if not (e.final or e.initial)]
    found = convergence_dataset(alignment(chosen), n_bootstrap=120)
    fields: list[Any] = [name for name in TREND_PROSE if not name.startswith("n_")]
    for name in fields:
        assert np.isnan(found[name].values).all()
    assert found.n_models.values.max() == 0
