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


def nearness(x, neighbours="cosine", decimals=9):
    """How near stimuli are to each other, in a dictionary for each; equal to `decimals` digits."""
    x = np.asarray(x, float)
    n = len(x)
    found = []
    for i in range(n):
        near = {}
        for j in range(n):
            if neighbours == "cosine":
                lengths = np.linalg.norm(x[i]) * np.linalg.norm(x[j])
                value = float(np.dot(x[i], x[j])) / lengths if lengths > 0 else 0.0
            elif neighbours == "inner":
                value = float(np.dot(x[i], x[j]))
            else:
                value = -float(((x[i] - x[j]) ** 2).sum())
            near[j] = round(value, decimals)
        found.append(near)
    return found


def nearest(x, k, neighbours="cosine", decimals=9):
    """Sets of nearest neighbours; what is equal to `decimals` digits goes by lowest index."""
    sets = []
    for i, near in enumerate(nearness(x, neighbours, decimals)):
        ranked = sorted((-value, j) for j, value in near.items() if j != i)
        sets.append({j for _, j in ranked[:k]})
    return sets


def neighbour_shares(x, k, neighbours="cosine", decimals=9, include_self=False):
    """Who is near, `(n, n)`: 1, or an equal share of the places for which several are tied."""
    shares = np.zeros((len(x), len(x)))
    for i, near in enumerate(nearness(x, neighbours, decimals)):
        if not include_self:
            del near[i]
        last = sorted(near.values(), reverse=True)[k - 1]
        above = [j for j, value in near.items() if value > last]
        tied = [j for j, value in near.items() if value == last]
        shares[i, above] = 1.0
        shares[i, tied] = (k - len(above)) / len(tied)
    return shares


def mutual_knn(x, y, k=10, neighbours="cosine"):
    a, b = (neighbour_shares(z, k, neighbours) for z in (x, y))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def distances(x):
    n = len(x)
    return np.array([[np.sqrt(((x[i] - x[j]) ** 2).sum()) for j in range(n)] for i in range(n)])


def centred(k, estimator):
    return doubly_centred(k) if estimator == "biased" else u_centred(k)


def cka_rbf(x, y, bandwidth=1.0, estimator="biased"):
    relations = []
    for z in (np.asarray(x, float), np.asarray(y, float)):
        d = distances(z)
        sigma = bandwidth * np.median([d[i, j] for i in range(len(d)) for j in range(i) if d[i, j]])
        relations.append(centred(np.exp(-(d**2) / (2 * sigma**2)), estimator))
    return _cosine(*relations)


def distance_correlation(x, y, estimator="debiased"):
    return _cosine(*(centred(distances(np.asarray(z, float)), estimator) for z in (x, y)))


def dissimilarities(x, kind):
    """Above the diagonal, row by row; rows that are constant, or zero, have no direction."""
    x = np.asarray(x, float)
    if kind == "euclidean":
        d = distances(x)
    else:
        rows = x - x.mean(1, keepdims=True) if kind == "correlation" else x
        lengths = [np.sqrt((r * r).sum()) for r in rows]
        units = [r / s if s > 1e-12 else 0 * r for r, s in zip(rows, lengths, strict=True)]
        d = 1 - gram(np.array(units))
    return [d[i, j] for i in range(len(x)) for j in range(i + 1, len(x))]


def average_ranks(values, decimals=11):
    values = np.round(values, decimals)
    return [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]


def rsa(x, y, dissimilarity="correlation", comparison="pearson"):
    a, b = (dissimilarities(z, dissimilarity) for z in (x, y))
    if comparison == "spearman":
        a, b = average_ranks(a), average_ranks(b)
    return _cosine(*(np.asarray(v) - np.mean(v) for v in (a, b)))


MEASURES = {
    "cka": cka,
    "cka_debiased": cka_debiased,
    "cka_rbf": cka_rbf,
    "rsa": rsa,
    "distance_correlation": distance_correlation,
    "mutual_knn": mutual_knn,
}


def digits_layers(n=80):
    """Real images through two random networks of different widths."""
    pixels = load_digits().data[:n]
    rng = np.random.default_rng(1)
    layers = []
    for width in (32, 150):
        hidden = np.maximum(pixels @ rng.normal(size=(64, width)) / 8, 0)
        layers.append(np.maximum(hidden @ rng.normal(size=(width, width)) / width**0.5, 0))
    return layers
