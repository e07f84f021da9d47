"""What other code computes under the same names, each written out from its definition.

The numbers are those of docs/conventions.md.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist

from pipeline import calibrate, similarity
from pipeline.errors import InputError
from pipeline.measures import get_measure, list_measures, measure_spec
from pipeline.workflow.spec import CompareSpec

PAGE = (Path(__file__).parents[2] / "docs" / "conventions.md").read_text(encoding="utf-8")


def pair(n=100, d=20, e=30):
    """Two views of five common causes, with features and stimuli of many scales, and offsets."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(n, 5)) * rng.lognormal(size=(n, 1))
    return tuple(
        (common @ rng.normal(size=(5, width)) / 2 + rng.normal(size=(n, width)) + 1 / 2)
        * rng.lognormal(size=width)
        for width in (d, e)
    )


def told(here, there, *, apart):
    """Check two scores, and that the page has them."""
    assert abs(here - there) > apart
    assert f"{here:.4f}" in PAGE
    assert f"{there:.4f}" in PAGE


def test_rsa__euclidean_distances_are_not_squared():
    x, y = pair()
    of = {
        m: stats.pearsonr(pdist(x, m), pdist(y, m)).statistic for m in ("euclidean", "sqeuclidean")
    }
    here = similarity(x, y, "rsa", dissimilarity="euclidean")
    assert here == pytest.approx(of["euclidean"], abs=1e-9)
    told(here, of["sqeuclidean"], apart=0.01)


def second_order(x, y):
    """Compare cosines with the neighbours, and their distances."""
    near = [reference.nearest(z, 10) for z in (x, y)]
    unions = [sorted(a | b) for a, b in zip(*near, strict=True)]
    distances = [cdist(z, z, "cosine") for z in (x, y)]
    return [
        np.mean(
            [
                1 - cdist(*(table[i : i + 1, some] for table in tables), "cosine")[0, 0]
                for i, some in enumerate(unions)
            ]
        )
        for tables in ([1 - d for d in distances], distances)
    ]


def test_second_order_cosine__of_cosines_not_of_distances():
    x, y = pair()
    of_cosines, of_distances = second_order(x, y)
    here = similarity(x, y, "second_order_cosine")
    assert here == pytest.approx(of_cosines, abs=1e-9)
    told(here, of_distances, apart=0.01)


def test_second_order_cosine__of_noise():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 64)), rng.normal(size=(100, 64))
    told(similarity(x, y, "second_order_cosine"), second_order(x, y)[1], apart=0.7)


def whitening(x):
    values, vectors = np.linalg.eigh(x.T @ x)
    return vectors / np.sqrt(values) @ vectors.T


def pwcca(x, y, *, whitened):
    """Weight canonical correlations by the variates, or by what the authors' code has for them."""
    own, other = x - x.mean(0), y - y.mean(0)
    u, correlations, _ = np.linalg.svd(
        whitening(own) @ own.T @ other @ whitening(other), full_matrices=False
    )
    if whitened:
        weights = np.abs((own @ whitening(own) @ u).T @ own).sum(axis=1)
    else:
        basis, _ = np.linalg.qr(own @ u + x.mean(0))
        weights = np.abs(basis.T @ x).sum(axis=1)
    return correlations @ weights / weights.sum()


def test_pwcca__variates_are_whitened():
    x, y = pair()
    here = similarity(x, y, "pwcca")
    assert here == pytest.approx(pwcca(x, y, whitened=True), abs=1e-9)
    told(here, pwcca(x, y, whitened=False), apart=0.01)


@pytest.mark.parametrize("widths", [(20, 20), (20, 30)])
def test_soft_matching__is_a_transport_plan_not_a_semi_matching(widths):
    x, y = pair(d=widths[0], e=widths[1])
    correlations = np.corrcoef(x.T, y.T)[: widths[0], widths[0] :]
    common = np.lcm(*widths)  # copies of weight 1/common each, matched one to one
    copies = np.repeat(np.repeat(correlations, common // widths[0], 0), common // widths[1], 1)
    plan = copies[linear_sum_assignment(copies, maximize=True)].mean()
    semi = (correlations.max(0).mean() + correlations.max(1).mean()) / 2
    here = similarity(x, y, "soft_matching")
    assert here == pytest.approx(plan, abs=1e-9)
    assert here <= semi
    if widths == (20, 30):
        told(here, semi, apart=0.01)


def svcca_of_prh(x, y, seed):
    bases = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for z in (x, y):
            scaled = torch.tensor((z - z.mean(0)) / z.std(0, ddof=1))
            basis = torch.svd_lowrank(scaled, q=10)[0].numpy()
            bases.append(np.linalg.qr(basis - basis.mean(0))[0])
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean()


def test_svcca__is_not_that_of_the_code_of_the_presets():
    x, y = pair(d=200, e=300)
    there = [svcca_of_prh(x, y, seed) for seed in range(10)]
    here = similarity(x, y, "svcca", dimension=10)
    bases = [np.linalg.svd(z - z.mean(0), full_matrices=False)[0][:, :10] for z in (x, y)]
    exact = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean()
    assert here == pytest.approx(exact, abs=1e-9)
    assert f"{here:.4f}" in PAGE
    assert (min(there), max(there)) == (
        pytest.approx(0.58, abs=0.02),
        pytest.approx(0.62, abs=0.02),
    )
    assert max(there) - min(there) > 0.02


@pytest.mark.parametrize("preset", ["prh", "prh_rowwise"])
def test_svcca__has_no_preset(preset):
    with pytest.raises(
        InputError,
        match=r"'svcca' has no preset: .* randomised decomposition, so that the score changes with "
        r"the seed\. Leave the preset out",
    ):
        measure_spec("svcca", preset=preset)
    with pytest.raises(ValueError, match="s: The measure 'svcca' has no preset"):
        CompareSpec(measures={"s": {"measure": "svcca", "preset": preset}})
    assert all(measure_spec(m.name, preset=preset) for m in list_measures() if m.name != "svcca")


def kernel(x, *, diagonal):
    squares = cdist(x, x, "sqeuclidean")
    kept = squares if diagonal else squares[np.triu_indices(len(x), k=1)]
    median = np.median(kept) if diagonal else np.median(np.sqrt(kept)) ** 2
    return reference.doubly_centred(np.exp(-squares / (2 * median)))


def test_cka_rbf__the_median_leaves_out_the_diagonal():
    x, y = pair(n=10)
    of = {}
    for diagonal in (False, True):
        k, m = (kernel(z, diagonal=diagonal) for z in (x, y))
        of[diagonal] = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    here = similarity(x, y, "cka_rbf")
    assert here == pytest.approx(of[False], abs=1e-9)
    told(here, of[True], apart=1e-3)


@pytest.mark.parametrize("n", [4, 16, 40])
def test_cknna__with_all_others_is_debiased_cka_of_unit_rows(n):
    x, y = (z[:n] for z in pair())
    units = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y)]
    k = [u @ u.T for u in units]
    hsic = reference.hsic_unbiased
    expected = hsic(*k) / np.sqrt(hsic(k[0], k[0]) * hsic(k[1], k[1]))
    found = similarity(x, y, "cknna", k=n - 1, form="unbiased")
    assert found == pytest.approx(expected, abs=1e-9)
    assert found == pytest.approx(similarity(*units, "cka_debiased"), abs=1e-9)
    with pytest.raises(InputError, match=rf"x has {n} .* at least {n + 1}: .*, or k of at most"):
        similarity(x, y, "cknna", k=n, form="unbiased")


@pytest.mark.parametrize(
    ("measure", "smallest"),
    [("mutual_knn", 2), ("cycle_knn", 2), ("jaccard_knn", 2), ("lcs_knn", 1), ("edit_knn", 1),
     ("cknna", 1), ("second_order_cosine", 1)],
)  # fmt: skip
def test_minimum_stimuli__as_few_as_can_be_told_apart(measure, smallest):
    """With all others as neighbours, sets of neighbours are all alike, and orders are not."""
    k = 4
    n = k + smallest
    assert measure_spec(measure, k=k).minimum_stimuli == n
    some = [np.random.default_rng(seed).normal(size=(n, 9)) for seed in range(8)]
    assert len({similarity(*two, measure, k=k) for two in itertools.combinations(some, 2)}) > 1
    with pytest.raises(InputError, match=rf"Use more stimuli, or k of at most {k - 1}\.$"):
        similarity(some[0][1:], some[1][1:], measure, k=k)


def test_minimum_stimuli__no_remedy_that_is_none():
    x = np.random.default_rng(0).normal(size=(2, 5))
    for measure in ("mutual_knn", "linear_regression", "cka"):
        with pytest.raises(InputError, match=r"Use more stimuli\.$"):
            similarity(x, x, measure)


# remedies


def test_cca__the_remedies_of_its_refusal_lead_somewhere():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 200)), rng.normal(size=(50, 200))
    for measure in ("cca", "pwcca"):
        with pytest.raises(
            InputError,
            match="Use more stimuli, fewer features, or .*cka_debiased. What svcca gives is near 1 "
            r"for anything, noise included, .* only calibration \(pipeline\.calibrate",
        ):
            similarity(x, y, measure)
        assert similarity(x[:, :10], y[:, :10], measure) < 0.6
    assert abs(similarity(x, y, "cka_debiased")) < 0.1
    assert similarity(x, y, "svcca") == pytest.approx(0.981, abs=1e-3)
    found = calibrate(x, y, "svcca", n_permutations=199)
    assert (found.p, found.calibrated) == (0.485, 0.0)
    assert similarity(x, y, "svcca", dimension=5) < 0.6


# the page


def test_page__says_what_the_records_say():
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
    named = {measure.name for measure in list_measures() if measure.elsewhere}
    assert named == {"cka_rbf", "rsa", "second_order_cosine", "svcca", "pwcca", "soft_matching"}
    for name in named:
        section = " ".join(sections[name].split())
        for whose, what in get_measure(name).elsewhere:
            assert f"- {whose}: {what}" in section
