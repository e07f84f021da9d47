"""Naive oracles: what each measure is by definition, in loops, in float64, with no tricks."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits


def gram(x):
    n = len(x)
    return np.array([[float(np.dot(x[i], x[j])) for j in range(n)] for i in range(n)])


def doubly_centred(k):
    n = len(k)
    out = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            out[i, j] = k[i, j] - k[i].mean() - k[:, j].mean() + k.mean()
    return out


def u_centred(k):
    """Székely & Rizzo 2014, eq. 2.4, of a matrix whose diagonal is ignored."""
    n = len(k)
    k = k - np.diag(np.diag(k))
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                out[i, j] = (
                    k[i, j]
                    - k[i].sum() / (n - 2)
                    - k[:, j].sum() / (n - 2)
                    + k.sum() / ((n - 1) * (n - 2))
                )
    return out


def _cosine(a, b):
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def cka(x, y):
    x, y = np.asarray(x, float), np.asarray(y, float)
    return _cosine(doubly_centred(gram(x)), doubly_centred(gram(y)))


def hsic_unbiased(k, l):  # noqa: E741
    """Song et al. 2012, eq. 5."""
    n = len(k)
    k = k - np.diag(np.diag(k))
    l = l - np.diag(np.diag(l))  # noqa: E741
    one = np.ones(n)
    total = np.trace(k @ l)
    total += (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    total -= 2 / (n - 2) * (one @ k @ l @ one)
    return total / (n * (n - 3))


def cka_debiased(x, y):
    """By Song's estimator; features are centred only to keep the oracle's own digits."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    k, l = gram(x - x.mean(0)), gram(y - y.mean(0))  # noqa: E741
    return float(hsic_unbiased(k, l) / np.sqrt(hsic_unbiased(k, k) * hsic_unbiased(l, l)))


def nearest(x, k, neighbours="cosine", decimals=9):
    """Sets of nearest neighbours; what is equal to `decimals` digits goes by lowest index."""
    x = np.asarray(x, float)
    n = len(x)
    sets = []
    for i in range(n):
        ranked = []
        for j in range(n):
            if j == i:
                continue
            if neighbours == "cosine":
                lengths = np.linalg.norm(x[i]) * np.linalg.norm(x[j])
                near = float(np.dot(x[i], x[j])) / lengths if lengths > 0 else 0.0
            elif neighbours == "inner":
                near = float(np.dot(x[i], x[j]))
            else:
                near = -float(((x[i] - x[j]) ** 2).sum())
            ranked.append((-round(near, decimals), j))
        sets.append({j for _, j in sorted(ranked)[:k]})
    return sets


def mutual_knn(x, y, k=10, neighbours="cosine"):
    shared = [
        len(a & b)
        for a, b in zip(nearest(x, k, neighbours), nearest(y, k, neighbours), strict=True)
    ]
    return sum(shared) / (len(shared) * k)


MEASURES = {"cka": cka, "cka_debiased": cka_debiased, "mutual_knn": mutual_knn}


def digits_layers(n=80):
    """Real images through two random networks of different widths."""
    pixels = load_digits().data[:n]
    rng = np.random.default_rng(1)
    layers = []
    for width in (32, 150):
        hidden = np.maximum(pixels @ rng.normal(size=(64, width)) / 8, 0)
        layers.append(np.maximum(hidden @ rng.normal(size=(width, width)) / width**0.5, 0))
    return layers
