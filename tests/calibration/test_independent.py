"""Calibration by permutation against the authors' own package, given the same permutations."""

import calibrated_similarity
import numpy as np
import pytest
import torch

from pipeline.calibration import calibrate, calibrate_layers, permutations
from pipeline.measures import similarity

K = 99


def same_permutations(n):
    """Give our permutations one after the other, in the form that the package asks for."""
    orders = iter(permutations(n, K, seed=0))
    return lambda _n, _device: torch.as_tensor(next(orders))


def measure(name):
    return lambda x, y: similarity(x.numpy(), y.numpy(), name)


def arrays(count, n=40, d=6):
    rng = np.random.default_rng(0)
    common = rng.normal(size=(n, d))
    return [0.4 * common + rng.normal(size=(n, d)) for _ in range(count)]


@pytest.mark.parametrize("name", ["cka", "cka_debiased", "mutual_knn", "rsa", "procrustes"])
def test_calibrate__equals_the_published_package(name):
    x, y = arrays(2)
    calibrated, p, tau = calibrated_similarity.calibrate(
        torch.as_tensor(x), torch.as_tensor(y), measure(name), K=K,
        perm_fn=same_permutations(len(x)),
    )  # fmt: skip
    found = calibrate(x, y, name, n_permutations=K)
    assert found.p == pytest.approx(float(p), abs=1e-6)
    assert found.threshold == pytest.approx(float(tau), abs=1e-6)
    assert found.calibrated == pytest.approx(float(calibrated), abs=1e-6)


@pytest.mark.parametrize("aggregate", ["max", "mean"])
@pytest.mark.parametrize("name", ["cka_debiased", "mutual_knn"])
def test_calibrate_layers__equals_the_published_package(name, aggregate):
    xs, ys = arrays(5)[:3], arrays(5)[3:]
    calibrated, p, tau = calibrated_similarity.calibrate_layers(
        [torch.as_tensor(x) for x in xs], [torch.as_tensor(y) for y in ys], measure(name),
        agg=aggregate, K=K, perm_fn=same_permutations(len(xs[0])),
    )  # fmt: skip
    found = calibrate_layers(xs, ys, name, aggregate=aggregate, n_permutations=K)
    assert found.p == pytest.approx(float(p), abs=1e-6)
    assert found.threshold == pytest.approx(float(tau), abs=1e-6)
    assert found.calibrated == pytest.approx(float(calibrated), abs=1e-6)
