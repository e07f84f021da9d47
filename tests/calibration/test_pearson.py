import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from pipeline.calibration import pearson
from pipeline.calibration.pearson import PearsonIII, from_normal

SKEWS = [5.0, 3.0, 2.0, 1.0, 0.3, 0.1, 0.02, 0.011, 0.009, 0.003]


def test_sf__exponential_distribution():
    x = np.array([-0.5, 0.0, 0.3, 1.0, 7.0, 27.0, 300.0])
    right = PearsonIII(1.0, 1.0, 2.0)
    np.testing.assert_allclose(right.sf(x), np.minimum(np.exp(-x), 1.0), rtol=1e-12)
    left = PearsonIII(-1.0, 1.0, -2.0)
    np.testing.assert_allclose(left.sf(-x), np.maximum(-np.expm1(-x), 0.0), rtol=1e-12)


@pytest.mark.parametrize("shape", [1, 4, 25, 400, 10_000, 39_999, 40_001, 250_000])
def test_sf__erlang_distributions(shape):
    """A gamma of integer shape exceeds x as often as a Poisson of mean x stays below the shape."""
    z = np.array([-2.5, -1.0, 0.0, 1.0, 2.0, 4.0, 6.0, 7.5])
    x = shape + z * np.sqrt(shape)
    inside = x > 0
    j = np.arange(shape)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.exp(
            special.logsumexp(j * np.log(x[inside]) - x[inside] - special.gammaln(j + 1), axis=0)
        )
    found = PearsonIII(0.0, 1.0, 2 / np.sqrt(shape)).sf(z[inside])
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("skew", [s * sign for s in SKEWS for sign in (1, -1)])
def test_sf__as_scipy(skew):
    # scipy gives up in the far left tail below 0.003, and calls 1e-5 normal.
    z = np.linspace(-5.0, 9.0, 57)
    expected = scipy.stats.pearson3.sf(z, skew)
    ours = PearsonIII(3.0, 4.0, skew)
    np.testing.assert_allclose(ours.sf(3 + 2 * z), expected, rtol=1e-7)


@pytest.mark.parametrize("skew", [0.0, 1e-8, 1e-6, 1e-5, 1e-4])
def test_sf__nearly_normal(skew):
    z = np.array([-7.0, -3.0, -0.5, 0.0, 1.0, 2.0, 4.0, 7.0])
    # Edgeworth's series to the second order, without which 1e-4 would be off by 1e-5.
    density = scipy.stats.norm.pdf(z)
    hermite = [np.polynomial.hermite_e.hermeval(z, np.eye(6)[i]) for i in range(6)]
    second = skew**2 * (hermite[3] / 16 + hermite[5] / 72)
    expected = scipy.stats.norm.sf(z) + density * (skew / 6 * hermite[2] + second)
    np.testing.assert_allclose(PearsonIII(0.0, 1.0, skew).sf(z), expected, rtol=1e-6)
    np.testing.assert_allclose(1 - PearsonIII(0.0, 1.0, -skew).sf(-z), expected, atol=1e-12)


@pytest.mark.parametrize("skew", [0.009, -0.009, 0.005, -0.005])
def test_sf__expansion_meets_the_gamma_function(skew, monkeypatch):
    z = np.linspace(-6.0, 9.0, 151)
    expansion = PearsonIII(0.0, 1.0, skew).sf(z)
    monkeypatch.setattr(pearson, "LARGE_SHAPE", 1e12)
    np.testing.assert_allclose(expansion, PearsonIII(0.0, 1.0, skew).sf(z), rtol=1e-8)


@pytest.mark.parametrize("skew", [s * sign for s in (0.0, *SKEWS) for sign in (1, -1)])
def test_from_normal__as_scipy(skew):
    z = np.linspace(-5.0, 5.0, 201)
    found = from_normal(z.astype(np.float32)[None, :, None], np.full((1, 1), skew))[0, :, 0]
    expected = scipy.stats.pearson3.isf(special.ndtr(-z), skew)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@settings(max_examples=100, deadline=None)
@given(st.floats(-5.0, 5.0), st.floats(-5.0, 5.0), st.floats(-3.0, 3.0), st.floats(1e-6, 1e6))
def test_sf__undoes_from_normal(z, skew, mean, variance):
    """A quantile that was interpolated is exceeded as often as it says, to about 1e-3."""
    standard = float(from_normal(np.full((1, 1, 1), z, np.float32), np.full((1, 1), skew)).item())
    p, deviation = float(special.ndtr(-z)), float(np.sqrt(variance))
    near = PearsonIII(mean, variance, skew).sf(
        mean + deviation * np.array([standard - 3e-3, standard + 3e-3])
    )
    assert near[1] <= p <= near[0]


@pytest.mark.parametrize("skew", [2.0, -1.0, 0.5, -0.009, 1e-7])
def test_from_normal__has_the_moments(skew):
    nodes, weights = np.polynomial.legendre.leggauss(400)
    z, density = 6 * nodes, 6 * weights * scipy.stats.norm.pdf(6 * nodes)
    x = from_normal(z.astype(np.float32)[None, :, None], np.full((1, 1), skew))[0, :, 0]
    assert density @ x == pytest.approx(0.0, abs=1e-3)
    assert density @ x**2 == pytest.approx(1.0, rel=2e-3)
    assert density @ x**3 == pytest.approx(skew, rel=5e-3, abs=1e-3)


def test_from_normal__beyond_the_table():
    z = np.array([-9.0, -6.0, 6.0, 9.0], dtype=np.float32)[None, :, None]
    at_end, beyond = (from_normal(z, np.full((1, 1), skew)) for skew in (5.0, 80.0))
    assert at_end[0, 0] == at_end[0, 1]
    assert at_end[0, 2] == at_end[0, 3]
    np.testing.assert_array_equal(at_end, beyond)


def test_from_moments__skewness_and_broadcast():
    variance, third = np.array([[4.0], [1.0]]), np.array([8.0, -3.0, 0.0])
    ours = PearsonIII.from_moments(1.0, variance, third)
    np.testing.assert_allclose(ours.skewness, third / variance**1.5)
    x = np.array([0.0, 2.0, 4.0])
    found = ours.sf(x)
    assert found.shape == (2, 3)
    for i, v in enumerate((4.0, 1.0)):
        for j in range(3):
            assert found[i, j] == PearsonIII(1.0, v, third[j] / v**1.5).sf(x[j])


@pytest.mark.parametrize("skew", [1.5, -1.5, 0.005, -0.005, 0.0])
def test_sf__ends(skew):
    ours = PearsonIII(1.0, 4.0, skew)
    np.testing.assert_array_equal(ours.sf([-np.inf, np.inf]), [1.0, 0.0])
    if skew:
        beyond = float(ours.sf(1.0 - 4.0 / skew - np.sign(skew)))
        assert beyond == (1.0 if skew > 0 else 0.0)


def test_sf__undefined():
    for parameters in ((0.0, 0.0, 0.1), (0.0, -1.0, 0.1), (0.0, 1.0, np.nan), (np.nan, 1.0, 0.0)):
        assert np.isnan(PearsonIII(*parameters).sf(0.5))
    assert np.isnan(PearsonIII.from_moments(0.0, 0.0, 0.0).sf(0.0))
    for skew in (0.0, 1.0):
        assert np.isnan(PearsonIII(0.0, 1.0, skew).sf(np.nan))
