"""All pairs and their nulls, against the same written plainly: ratios measured in one run.

The plain way forms both Gram matrices for each pair, centres them by multiplication with
H = I − 11ᵀ/n, and ranks neighbours by a full argsort. It is timed on a few pairs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from pipeline.calibration import permutation_null, permutations
from pipeline.measures import measure_spec, prepare, score_pairs

PLAIN_PAIRS = 6
SPECS = {
    "cka": measure_spec("cka"),
    "cka_debiased": measure_spec("cka_debiased"),
    "mutual_knn": measure_spec("mutual_knn", k=10),
}


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    h = np.eye(n, dtype=x.dtype) - np.float32(1 / n)
    k, m = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
    return float(np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m)))


def plain_cka_debiased(x: np.ndarray, y: np.ndarray) -> float:
    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        return float(
            np.trace(k @ m)
            + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ k @ m @ one)
        )

    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    return float(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


def plain_mutual_knn(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    lists = []
    for z in (x, y):
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        s = z @ z.T
        np.fill_diagonal(s, -np.inf)
        lists.append(np.argsort(-s, axis=1)[:, :k])
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*lists, strict=True)]))


PLAIN: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "cka": plain_cka,
    "cka_debiased": plain_cka_debiased,
    "mutual_knn": plain_mutual_knn,
}


def best(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1024, help="stimuli")
    parser.add_argument("-d", type=int, default=768, help="features")
    parser.add_argument("-m", type=int, default=204, help="representations")
    parser.add_argument("-k", type=int, default=20, help="permutations")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(options.n, 32)).astype(np.float32)
    xs = [
        shared @ rng.normal(size=(32, options.d)).astype(np.float32)
        + rng.normal(size=(options.n, options.d)).astype(np.float32)
        for _ in range(options.m)
    ]
    pairs = options.m * (options.m + 1) // 2
    print(f"n = {options.n}, d = {options.d}, M = {options.m}, {pairs} pairs, float32")
    print(f"{'measure':<14}{'all pairs s':>12}{'ms a pair':>11}{'plain ms':>10}{'ratio':>8}")
    for label, spec in SPECS.items():
        one = {label: spec}

        def all_pairs(one: dict = one) -> dict:
            prepared = [prepare(x, one) for x in xs]
            return score_pairs(prepared, prepared, one)

        seconds = best(all_pairs, options.repeats)
        values = all_pairs()[label].values
        found = [PLAIN[label](xs[0], xs[i]) for i in range(PLAIN_PAIRS)]
        if not np.allclose(found, values[0, :PLAIN_PAIRS], atol=1e-3):
            raise SystemExit(f"{label}: {found} is not {values[0, :PLAIN_PAIRS]}")
        plain = (
            best(
                lambda f=PLAIN[label]: [f(xs[0], xs[i]) for i in range(PLAIN_PAIRS)],
                options.repeats,
            )
            / PLAIN_PAIRS
        )
        each = seconds / pairs
        print(
            f"{label:<14}{seconds:>12.2f}{1e3 * each:>11.3f}{1e3 * plain:>10.1f}"
            f"{plain / each:>7.0f}×"
        )
    some = [prepare(x, SPECS) for x in xs[:40]]
    groups = np.repeat(np.arange(4), 10)
    orders = permutations(options.n, options.k, seed=0)
    raw = best(lambda: score_pairs(some[:20], some[20:], SPECS), options.repeats)
    null = best(
        lambda: permutation_null(some[:20], some[20:], groups[:20], groups[20:] - 2, SPECS, orders),
        1,
    )
    print(
        f"null by permutation, 20 × 20 layers, three measures: {null / options.k / raw:.2f} raw "
        f"comparisons a permutation ({options.k} permutations, {null:.1f} s)"
    )


if __name__ == "__main__":
    main()
