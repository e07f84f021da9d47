"""The linear part of a similarity and the rest of it, against all permutations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.calibration.coupling import Coupling, LinearMoments


def centred(rng, rows, n):
    x = rng.standard_t(3, size=(rows, n))
    return x - x.mean(axis=1, keepdims=True)


def every_value(xs, ys):
    orders = np.array(list(itertools.permutations(range(xs.shape[1]))))
    return np.einsum("ai,bpi->pab", xs, ys[:, orders])


@pytest.mark.parametrize("n", [4, 5, 7])
def test_linear_moments__all_permutations(n):
    rng = np.random.default_rng(n)
    xs, ys = centred(rng, 3, n), centred(rng, 2, n)
    found, values = LinearMoments.of(xs, ys), every_value(xs, ys)
    np.testing.assert_allclose(values.mean(axis=0), 0.0, atol=1e-12)
    for power, moment in ((2, found.variance), (3, found.third), (4, found.fourth)):
        np.testing.assert_allclose(moment, (values**power).mean(axis=0), rtol=1e-9, atol=1e-12)


def test_meeting__gives_back_the_moments_it_was_made_of():
    rng = np.random.default_rng(0)
    xs, ys = centred(rng, 2, 7), centred(rng, 2, 7)
    linear = every_value(xs, ys)
    moments = LinearMoments.of(xs, ys)
    deviation = np.sqrt(moments.variance)
    variance = np.full((2, 2), 2.0)
    twice = 0.2 * deviation**2
    once = np.array([[0.3, -0.3], [0.1, 0.0]]) * deviation
    coupling = Coupling.of(moments, twice, once, variance)
    shift, spread = coupling.shift(linear), coupling.spread(linear)
    own = variance - coupling.explained_variance
    # over all permutations, and over any z of mean 0 and variance `own` beside them
    np.testing.assert_allclose(shift.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose((shift * linear).mean(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose((shift * linear**2).mean(axis=0), twice, rtol=1e-9)
    np.testing.assert_allclose((own * spread**2 + shift**2).mean(axis=0), variance, rtol=1e-9)
    np.testing.assert_allclose((linear * own * spread**2).mean(axis=0), once, rtol=1e-9, atol=1e-9)
    one = coupling.at((0, 1))
    np.testing.assert_allclose(one.shift(linear[:, 0, 1]), shift[:, 0, 1])
    np.testing.assert_allclose(one.spread(linear[:, 0, 1]), spread[:, 0, 1])


def test_meeting__of_nothing_changes_nothing():
    nothing = np.zeros((2, 5))
    coupling = Coupling.of(
        LinearMoments.of(nothing, nothing), np.zeros((2, 2)), np.zeros((2, 2)), np.ones((2, 2))
    )
    values = np.zeros((3, 2, 2), dtype=np.float32)
    np.testing.assert_array_equal(coupling.shift(values), 0.0)
    np.testing.assert_array_equal(coupling.spread(values), 1.0)
    assert coupling.spread(values).dtype == np.float32


def test_meeting__spread_stays_positive():
    linear = LinearMoments.of(np.eye(6)[:1] - 1 / 6, np.eye(6)[:1] - 1 / 6)
    deviation = np.sqrt(linear.variance)
    coupling = Coupling.of(linear, np.zeros((1, 1)), 5.0 * deviation, np.ones((1, 1)))
    assert (coupling.spread(-10 * deviation[None]) > 0).all()
