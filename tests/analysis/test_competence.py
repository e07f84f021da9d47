"""Competence against scikit-learn's own classifiers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from pipeline.analysis.competence import FOLDS, PENALTIES, knn_accuracy, probe_accuracy
from pipeline.stimuli.digits import load_digits, pixels


def digits(n: int = 250) -> tuple[np.ndarray, np.ndarray]:
    found = load_digits("test")
    assert found.labels is not None
    x = np.stack(pixels("test")[:n]).reshape(n, -1).astype(np.float32)
    return x, found.labels[:n]


def leave_one_out(x: np.ndarray, labels: np.ndarray, k: int) -> float:
    hits = 0
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        others = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
        others.fit(x[rest].astype(np.float64), labels[rest])
        hits += int(others.predict(x[[i]].astype(np.float64))[0] == labels[i])
    return hits / len(x)


@pytest.mark.parametrize("k", [1, 2, 10])
def test_knn_accuracy__equals_sklearn_leave_one_out(k: int) -> None:
    # an even k: equal votes go to the lowest class, in both
    x, labels = digits(150)
    assert knn_accuracy(x, labels, k) == pytest.approx(leave_one_out(x, labels, k), abs=1e-12)


def test_knn_accuracy__noisy_neighbours_with_many_equal_votes() -> None:
    rng = np.random.default_rng(0)
    x, labels = digits(120)
    x = x + rng.normal(0, 90, size=x.shape).astype(np.float32)
    found = knn_accuracy(x, labels, 4)
    assert found == pytest.approx(leave_one_out(x, labels, 4), abs=1e-12)
    assert 0.2 < found < 0.9


def test_knn_accuracy__default_is_ten_neighbours() -> None:
    x, labels = digits()
    assert knn_accuracy(x, labels) == knn_accuracy(x, labels, 10)
    assert knn_accuracy(x, labels) != knn_accuracy(x, labels, 3)
    assert knn_accuracy(x, labels) > 0.85


def test_knn_accuracy__equal_votes_go_to_the_lowest_class() -> None:
    # rows 0 and 1 are each other's nearest; the next is of another class: one vote each
    angles = np.array([0.0, 0.01, 0.05, 2.0, 2.01, 2.05])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    low = knn_accuracy(x, np.array([0, 0, 1, 0, 0, 1]), 2)
    high = knn_accuracy(x, np.array([1, 1, 0, 1, 1, 0]), 2)
    assert low == pytest.approx(4 / 6)
    assert high == 0.0


def test_knn_accuracy__ignores_the_length_of_rows() -> None:
    x, labels = digits()
    lengths = np.random.default_rng(0).uniform(0.5, 2, size=(len(x), 1)).astype(np.float32)
    assert knn_accuracy(x * lengths, labels) == knn_accuracy(x, labels)


def test_knn_accuracy__chance() -> None:
    x, labels = digits()
    shuffled = [knn_accuracy(x, np.random.default_rng(s).permutation(labels)) for s in range(20)]
    assert abs(np.mean(shuffled) - 0.1) < 0.03


def test_knn_accuracy__too_few() -> None:
    x, labels = digits(11)
    assert np.isnan(knn_accuracy(x, labels))
    assert not np.isnan(knn_accuracy(*digits(12)))


def left_out_errors(x: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Fit the ridge with its intercept, in the primal, without each row in turn."""
    errors = np.empty(targets.shape)
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        mean, level = x[rest].mean(0), targets[rest].mean(0)
        centred = x[rest] - mean
        inner = centred.T @ centred + penalty * np.eye(x.shape[1])
        weights = np.linalg.solve(inner, centred.T @ (targets[rest] - level))
        errors[i] = targets[i] - level - (x[i] - mean) @ weights
    return errors


def by_hand(x: np.ndarray, labels: np.ndarray, seed: int) -> float:
    hits = 0
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(x, labels):
        scaler = StandardScaler().fit(x[train])
        known, targets = scaler.transform(x[train]), 2.0 * np.eye(10)[labels[train]] - 1
        errors = [(left_out_errors(known, targets, p) ** 2).mean() for p in PENALTIES]
        chosen = PENALTIES[int(np.argmin(errors))]
        probe = RidgeClassifier(alpha=chosen).fit(known, labels[train])
        hits += int((probe.predict(scaler.transform(x[test])) == labels[test]).sum())
    return hits / len(x)


@pytest.mark.parametrize("seed", [0, 3])
def test_probe_accuracy__by_hand(seed: int) -> None:
    x, labels = digits(150)
    x = x[:, ::4] + np.random.default_rng(seed).normal(0, 60, (150, 16)).astype(np.float32)
    found = probe_accuracy(x, labels, seed)
    assert found == pytest.approx(by_hand(x.astype(np.float64), labels, seed), abs=1e-12)
    assert 0.2 < found < 0.8


def of_width(d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten classes in 16 strong directions, the same draw at every width, and weak noise in all."""
    rng = np.random.default_rng(seed)
    labels = np.arange(512) % 10
    latent = 0.6 * rng.normal(size=(10, 16))[labels] + rng.normal(size=(512, 16))
    directions = np.linalg.qr(rng.normal(size=(d, 16)))[0]
    noise = rng.normal(size=(512, d))
    return (6 * latent @ directions.T + noise).astype(np.float32), labels


def test_probe_accuracy__does_not_measure_width() -> None:
    # with one penalty: .64 at 16, .20 at 410, which is the training stimuli's number, .45 at 2048
    widths = (16, 64, 256, 410, 512, 1024, 2048)
    found = [np.mean([probe_accuracy(*of_width(d, s)) for s in range(3)]) for d in widths]
    assert max(found) - min(found) < 0.08, found
    # as much as the truth allows: the probe on the latent dimensions alone is the first
    assert found[0] > 0.6


@pytest.mark.parametrize("d", [16, 410, 1024])
def test_probe_accuracy__chance_at_every_width(d: int) -> None:
    x, labels = of_width(d, 0)
    shuffled = [probe_accuracy(x, np.random.default_rng(s).permutation(labels)) for s in range(6)]
    assert abs(np.mean(shuffled) - 0.1) < 0.03


def test_probe_accuracy__of_digits() -> None:
    x, labels = digits()
    found = probe_accuracy(x, labels)
    assert found > 0.85
    assert found == probe_accuracy(x, labels)


def test_probe_accuracy__chance() -> None:
    x, labels = digits()
    shuffled = [probe_accuracy(x, np.random.default_rng(s).permutation(labels)) for s in range(10)]
    assert abs(np.mean(shuffled) - 0.1) < 0.04


def test_probe_accuracy__does_not_depend_on_offset_and_scale() -> None:
    x, labels = digits()
    assert probe_accuracy(x * 3 + 7, labels) == pytest.approx(probe_accuracy(x, labels), abs=0.01)


def test_probe_accuracy__too_few_of_a_class_or_one_class() -> None:
    x, labels = digits(60)
    few = labels.copy()
    few[:] = 0
    assert np.isnan(probe_accuracy(x, few))
    few[: FOLDS - 1] = 1
    assert np.isnan(probe_accuracy(x, few))
    few[:FOLDS] = 1
    assert 0 <= probe_accuracy(x, few) <= 1


def test_probe_accuracy__classes_need_not_be_consecutive() -> None:
    x, labels = digits()
    chosen = (labels == 3) | (labels == 8)
    assert probe_accuracy(x[chosen], labels[chosen]) > 0.9
    assert knn_accuracy(x[chosen], labels[chosen], 5) > 0.9
