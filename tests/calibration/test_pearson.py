import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from pipeline.calibration import pearson
from pipeline.calibration.pearson import PearsonIII

SKEWS = [5.0, 3.0, 2.0, 1.0, 0.3, 0.1, 0.02, 0.011, 0.009, 0.003]
TAILS = np.array([0.999, 0.9, 0.5, 0.1, 0.05, 1e-3, 1e-6, 1e-9, 1e-12])


def test_sf__exponential_distribution():
    x = np.array([-0.5, 0.0, 0.3, 1.0, 7.0, 27.0, 300.0])
    right = PearsonIII(1.0, 1.0, 2.0)
    np.testing.assert_allclose(right.sf(x), np.minimum(np.exp(-x), 1.0), rtol=1e-12)
    np.testing.assert_allclose(right.isf(np.exp(-x[1:])), x[1:], rtol=1e-12, atol=1e-12)
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
def test_sf_and_isf__as_scipy(skew):
    # scipy gives up in the far left tail below 0.003, and calls 1e-5 normal.
    z = np.linspace(-5.0, 9.0, 57)
    expected = scipy.stats.pearson3.sf(z, skew)
    ours = PearsonIII(3.0, 4.0, skew)
    np.testing.assert_allclose(ours.sf(3 + 2 * z), expected, rtol=1e-7)
    known = (expected < 0.999) & (expected > 0)  # nearer 1 than that, p says less of x
    np.testing.assert_allclose(ours.isf(expected[known]), 3 + 2 * z[known], rtol=1e-7, atol=1e-7)
    tails = ours.sf(ours.isf(TAILS))
    held = np.abs((ours.isf(TAILS) - 3) * skew / 4 + 1) > 1e-6  # at the end of the support x …
    np.testing.assert_allclose(tails[held], TAILS[held], rtol=1e-6)  # … cannot hold the tail


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
    np.testing.assert_allclose(PearsonIII(0.0, 1.0, skew).isf(expected[1:]), z[1:], atol=1e-6)


@pytest.mark.parametrize("skew", [0.009, -0.009, 0.005, -0.005])
def test_sf__expansion_meets_the_gamma_function(skew, monkeypatch):
    z = np.linspace(-6.0, 9.0, 151)
    expansion = PearsonIII(0.0, 1.0, skew).sf(z)
    monkeypatch.setattr(pearson, "LARGE_SHAPE", 1e12)
    np.testing.assert_allclose(expansion, PearsonIII(0.0, 1.0, skew).sf(z), rtol=1e-8)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-8.0, np.log10(5.0)),
    st.sampled_from([-1.0, 1.0]),
    st.floats(-12.0, np.log10(0.95)),
    st.floats(-3.0, 3.0),
    st.floats(1e-6, 1e6),
)
def test_sf_and_isf__are_inverse(size, sign, exponent, mean, variance):
    p, skew = 10**exponent, sign * 10**size
    standard = PearsonIII(0.0, 1.0, skew)
    z = float(standard.isf(p))
    end = abs(z * skew / 2 + 1)
    if end > 1e-6:
        assert float(standard.sf(z)) == pytest.approx(p, rel=1e-6)
    assert float(standard.sf(z - 0.1)) >= p * (1 - 1e-6)
    scaled = PearsonIII(mean, variance, skew)
    assert float(scaled.isf(p)) == pytest.approx(mean + z * np.sqrt(variance), rel=1e-12, abs=1e-12)
    assert float(PearsonIII(0.0, 1.0, -skew).isf(1 - p)) == pytest.approx(-z, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("skew", [2.0, -1.0, 0.5, -0.009, 1e-7])
def test_isf__has_the_moments(skew):
    nodes, weights = np.polynomial.legendre.leggauss(400)
    # From p in (0, 1) by a substitution that resolves both tails.
    t = 8 * nodes
    p, density = special.ndtr(-t), 8 * weights * scipy.stats.norm.pdf(t)
    x = PearsonIII(2.0, 9.0, skew).isf(p)
    assert density @ x == pytest.approx(2.0, rel=1e-9)
    assert density @ (x - 2) ** 2 == pytest.approx(9.0, rel=1e-9)
    assert density @ (x - 2) ** 3 == pytest.approx(27 * skew, rel=1e-6, abs=1e-9)


def test_from_moments__skewness_and_broadcast():
    variance, third = np.array([[4.0], [1.0]]), np.array([8.0, -3.0, 0.0])
    ours = PearsonIII.from_moments(1.0, variance, third)
    np.testing.assert_allclose(ours.skewness, third / variance**1.5)
    x = np.array([0.0, 2.0, 4.0])
    found, back = ours.sf(x), ours.isf(0.05)
    assert found.shape == back.shape == (2, 3)
    for i, v in enumerate((4.0, 1.0)):
        for j in range(3):
            alone = PearsonIII(1.0, v, third[j] / v**1.5)
            assert found[i, j] == alone.sf(x[j])
            assert back[i, j] == alone.isf(0.05)


@pytest.mark.parametrize("skew", [1.5, -1.5, 0.005, -0.005, 0.0])
def test_sf_and_isf__ends(skew):
    ours = PearsonIII(1.0, 4.0, skew)
    np.testing.assert_array_equal(ours.sf([-np.inf, np.inf]), [1.0, 0.0])
    low, high = ours.isf([1.0, 0.0])
    end = 1.0 - 4.0 / skew if skew else np.inf
    assert low == pytest.approx(end if skew > 0 else -np.inf)
    assert high == pytest.approx(end if skew <= 0 else np.inf)
    if skew:
        beyond = float(ours.sf(end - np.sign(skew)))
        assert beyond == (1.0 if skew > 0 else 0.0)


def test_sf_and_isf__undefined():
    for parameters in ((0.0, 0.0, 0.1), (0.0, -1.0, 0.1), (0.0, 1.0, np.nan), (np.nan, 1.0, 0.0)):
        ours = PearsonIII(*parameters)
        assert np.isnan(ours.sf(0.5))
        assert np.isnan(ours.isf(0.5))
    assert np.isnan(PearsonIII.from_moments(0.0, 0.0, 0.0).sf(0.0))
    for skew in (0.0, 1.0):
        assert np.isnan(PearsonIII(0.0, 1.0, skew).sf(np.nan))
        assert np.isnan(PearsonIII(0.0, 1.0, skew).isf([np.nan, -0.1, 1.1])).all()
