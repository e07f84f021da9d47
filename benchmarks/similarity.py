"""All pairs, their nulls, and what they cost: ratios measured side by side in one run.

The field's way forms both Gram matrices for each pair, centres them by multiplication with
H = I − 11ᵀ/n, and ranks neighbours by a full argsort; the careful way centres by means and picks
the k nearest without sorting the others. Both are timed on a few pairs. Times are the best of
`--repeats`, preparation included; BLAS takes the threads it likes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.calibration import (
    calibrate,
    draw,
    flagged_encoders,
    nulls_of,
    permutation_null,
    permutations,
)
from pipeline.measures import measure_spec, prepare, score_pairs
from pipeline.measures.dense.panels import HostPanel
from pipeline.measures.prepared import Prepared
from pipeline.store.activations import TowerGroup
from pipeline.store.layout import open_root
from pipeline.types import Weights

PLAIN_PAIRS = 4
SPECS = {
    "cka": measure_spec("cka"),
    "cka_debiased": measure_spec("cka_debiased"),
    "mutual_knn": measure_spec("mutual_knn", k=10),
}


def centred_by_products(x: np.ndarray) -> np.ndarray:
    h = np.eye(len(x), dtype=x.dtype) - np.float32(1 / len(x))
    return h @ (x @ x.T) @ h


def centred_by_means(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(0)
    return x @ x.T


def cka_of(k: np.ndarray, m: np.ndarray) -> float:
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    n = len(k)
    r, s = k.sum(1, dtype=float), m.sum(1, dtype=float)
    inner = float((k * m).sum()) - 2 / (n - 2) * float(r @ s)
    return inner + float(r.sum() * s.sum()) / ((n - 1) * (n - 2))


def debiased_of(k: np.ndarray, m: np.ndarray) -> float:
    for each in (k, m):
        np.fill_diagonal(each, 0)
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def neighbours(x: np.ndarray, *, sort: bool, k: int = 10) -> np.ndarray:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    if sort:
        return np.argsort(-similarity, axis=1)[:, :k]
    return np.argpartition(-similarity, k, axis=1)[:, :k]


def shared(a: np.ndarray, b: np.ndarray) -> float:
    return float((a[:, :, None] == b[:, None]).any(2).mean())


def trace_cka(x: np.ndarray, y: np.ndarray) -> float:
    k, m = centred_by_products(x), centred_by_products(y)
    return float(np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m)))


FIELD: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "cka": trace_cka,
    "cka_debiased": lambda x, y: debiased_of(centred_by_products(x), centred_by_products(y)),
    "mutual_knn": lambda x, y: shared(neighbours(x, sort=True), neighbours(y, sort=True)),
}
CAREFUL: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "cka": lambda x, y: cka_of(centred_by_means(x), centred_by_means(y)),
    "cka_debiased": lambda x, y: debiased_of(centred_by_means(x), centred_by_means(y)),
    "mutual_knn": lambda x, y: shared(neighbours(x, sort=False), neighbours(y, sort=False)),
}


def best(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def representations(m: int, n: int, widths: list[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, 32), dtype=np.float32)
    return [
        common @ rng.standard_normal((32, d), dtype=np.float32)
        + rng.standard_normal((n, d), dtype=np.float32)
        for d in (widths[i % len(widths)] for i in range(m))
    ]


def peak() -> float:
    """Largest memory of this process so far, GiB."""
    # of a new process `ru_maxrss` begins with what its parent had
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in row)
    return int(line.split()[1]) / 2**20


def all_pairs(m: int, n: int, d: int, repeats: int) -> None:
    xs = representations(m, n, [d])
    pairs = m * (m + 1) // 2
    print(f"\nall pairs, preparation included: n = {n}, d = {d}, M = {m}, {pairs} pairs, float32")
    print(f"{'measure':<14}{'prepare s':>10}{'compare s':>10}{'ms a pair':>10}"
          f"{'field ms':>10}{'ratio':>8}{'careful ms':>12}{'ratio':>8}")  # fmt: skip
    for label, spec in SPECS.items():
        one = {label: spec}
        preparing = best(lambda one=one: [prepare(x, one) for x in xs], repeats)
        prepared = [prepare(x, one) for x in xs]
        comparing = best(lambda one=one, p=prepared: score_pairs(p, p, one), repeats)
        values = score_pairs(prepared, prepared, one)[label].values[0, :PLAIN_PAIRS]
        each = (preparing + comparing) / pairs
        line = f"{label:<14}{preparing:>10.2f}{comparing:>10.2f}{1e3 * each:>10.3f}"
        for way, width in ((FIELD, 10), (CAREFUL, 12)):
            function = way[label]
            found = [function(xs[0], xs[i]) for i in range(PLAIN_PAIRS)]
            if not np.allclose(found, values, atol=2e-3):
                raise SystemExit(f"{label}: {found} is not {values}")
            plain = best(lambda f=function: [f(xs[0], x) for x in xs[:PLAIN_PAIRS]], repeats)
            plain /= PLAIN_PAIRS
            line += f"{1e3 * plain:>{width}.1f}{plain / each:>7.0f}×"
        print(line, flush=True)


def product_rate(ms: list[int], n: int, repeats: int) -> None:
    """Time the products as the comparison makes them, in its own tiles."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4096, 4096), dtype=np.float32)
    rate = 2 * 4096**3 / best(lambda: a @ a.T.copy(), repeats)
    print(f"\nfloat32 matrix products here: {rate / 1e9:.0f} GFLOP/s; M² n² operations over that")
    multiply, spent = HostPanel.add_products, [0.0]

    def timed(*arguments: object) -> None:
        started = time.perf_counter()
        multiply(*arguments)
        spent[0] += time.perf_counter() - started

    one = {"cka": SPECS["cka"]}
    for m in ms:
        prepared = [prepare(rng.standard_normal((n, 64), dtype=np.float32), one) for _ in range(m)]
        shortest = float("inf")
        HostPanel.add_products = timed
        for _ in range(repeats):
            spent[0] = 0.0
            score_pairs(prepared, prepared, one)
            shortest = min(shortest, spent[0])
        HostPanel.add_products = multiply
        print(f"M = {m}: {shortest:.2f} s, {m**2 * n**2 / shortest / rate:.0%}", flush=True)


def published_scale(draws: int) -> None:
    """Vision: 17 encoders with 352 layers; language: 12 with 460; widths 192 to 4096."""
    layers = 12 * [21] + 5 * [20] + 8 * [38] + 4 * [39]
    vision = [192, 384, 768, 1024, 1280, 768, 1024, 1536, 768, 1024, 1280, 768, 1024, 1280]
    language = [1024, 1536, 2048, 1024, 1536, 2048, 2560, 768, 1024, 2048, 3072, 4096]
    widths = [*vision, 768, 1024, 1280, *language]
    n, m = 1024, sum(layers)
    groups = np.repeat(np.arange(len(layers)), layers)
    wanted = np.triu(np.ones((len(layers), len(layers)), bool), 1)
    print(f"\nthe published scale: M = {m}, {len(layers)} encoders, n = {n}, three measures")
    prepared: list[Prepared] = []
    preparing = reading = size = 0.0
    for i, (count, width) in enumerate(zip(layers, widths, strict=True)):
        xs = representations(count, n, [width], seed=i)  # one encoder's features at a time
        reading += store_reads(xs)
        size += sum(x.nbytes for x in xs)
        start = time.perf_counter()
        prepared += [prepare(x, SPECS) for x in xs]
        preparing += time.perf_counter() - start
    start = time.perf_counter()
    score_pairs(prepared, prepared, SPECS)
    comparing = time.perf_counter() - start
    raw = preparing + comparing
    print(f"apart: {size / 2**30:.1f} GiB read from stores just written {reading:.1f} s")
    print(f"prepare {preparing:.1f} s, compare {m * (m + 1) // 2} pairs {comparing:.1f} s")
    start = time.perf_counter()
    nulls = nulls_of(prepared, prepared, groups, groups, SPECS)
    scalars, searching = time.perf_counter() - start, 0.0
    print(f"scalars of all three measures {scalars:.1f} s")
    for label, null in nulls.items():
        start = time.perf_counter()
        draw(null, groups, groups, wanted, draws, seed=0)
        searching += time.perf_counter() - start
        flagged = flagged_encoders(null, groups, groups, wanted).sum() / wanted.sum()
        print(f"null of {label}: {draws} draws for {wanted.sum()} pairs of encoders "
              f"{time.perf_counter() - start:.1f} s, flagged {flagged:.0%}")  # fmt: skip
    print(f"scalars of every pair {scalars / raw:.0%} of the raw comparison, the maximum over "
          f"layers {(scalars + searching) / raw:.2f} × it; all {raw + scalars + searching:.0f} s; "
          f"peak {peak():.1f} GiB")  # fmt: skip
    x, y = representations(2, n, [1024], seed=99)
    field = sum(best(lambda f=f: f(x, y), 2) for f in FIELD.values())
    pairs = m * (m + 1) // 2
    print(f"pair by pair with 200 permutations, from measured times: "
          f"{field * pairs * 201 / 86400:.0f} days")  # fmt: skip


def store_reads(xs: list[np.ndarray]) -> float:
    """Return the seconds in which an encoder's layers are read that were written just before."""
    layers = {f"blocks.{i}": x for i, x in enumerate(xs)}
    with tempfile.TemporaryDirectory() as folder:
        tower = TowerGroup.create(
            open_root(f"{folder}/one.zarr", "a"), "activations/set/timm/one/image",
            stimulus_ids=[str(i) for i in range(len(xs[0]))],
            layers={name: x.shape[1] for name, x in layers.items()},
            attributes={"recipe_digest": "", "stimuli_fingerprint": ""},
        )  # fmt: skip
        tower.add_checkpoints({"last": (0, Weights("sha256:0"))})
        for start, stop in tower.blocks:
            tower.write_block("last", (start, stop), {n: x[start:stop] for n, x in layers.items()})
        start = time.perf_counter()
        for layer in layers:
            TowerGroup(tower.group).read("last", layer)
        return time.perf_counter() - start


def growth(repeats: int) -> None:
    print("\ngrowth of cka, preparation included: seconds = a M n² d + b M² n² + c M n²")
    print(f"{'M':>6}{'n':>7}{'d':>6}{'s':>9}{'peak GiB':>10}{'features GiB':>14}")
    rows, seconds = [], []
    for m, n, d in ((100, 1024, 64), (400, 1024, 64), (1600, 1024, 64), (100, 1024, 768),
                    (400, 2048, 64), (100, 4096, 256), (64, 8192, 128)):  # fmt: skip
        case = [sys.executable, __file__, "--case", *map(str, (m, n, d, min(2, repeats)))]
        taken, most = map(float, subprocess.check_output(case, text=True).split())
        print(f"{m:>6}{n:>7}{d:>6}{taken:>9.2f}{most:>10.2f}{4 * m * n * d / 2**30:>14.2f}",
              flush=True)  # fmt: skip
        # the third: what is done once with each element of a relation (centring, its norm)
        rows.append((m * n**2 * d, m**2 * n**2, m * n**2))
        seconds.append(taken)
    weights = 1 / np.array(seconds)  # relative errors
    found, *_ = np.linalg.lstsq(np.array(rows) * weights[:, None], np.ones(len(rows)), rcond=None)
    fitted = np.array(rows) @ found
    error = np.abs(fitted / seconds - 1).max()
    print(f"a = {found[0]:.2g}, b = {found[1]:.2g}, c = {found[2]:.2g} s; "
          f"worst fit {error:.0%} off")  # fmt: skip


def one_case(m: int, n: int, d: int, repeats: int) -> None:
    """In a process of its own, for its peak of memory."""
    spec = {"": SPECS["cka"]}
    xs = representations(m, n, [d])

    def compared() -> None:
        prepared = [prepare(x, spec) for x in xs]
        score_pairs(prepared, prepared, spec)

    print(best(compared, repeats), peak())


def many_stimuli(m: int = 64, n: int = 50_000, d: int = 256) -> None:
    """More than fits in memory as n × n, and nearly as features: they are read tile by tile."""
    rng = np.random.default_rng(0)
    spec = {"": SPECS["cka"]}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        prepared = []
        for _ in range(m):
            x = rng.standard_normal((n, d), dtype=np.float32)
            prepared.append(prepare(x, spec).spilled(Path(folder)))
        middle = time.perf_counter()
        score_pairs(prepared, prepared, spec)
        comparing = time.perf_counter() - middle
        print(f"\nn = {n}, M = {m}, d = {d}, cka: prepare {middle - start:.0f} s, "
              f"compare {comparing:.0f} s, peak {peak():.2f} GiB")  # fmt: skip


def preparing_once(repeats: int) -> None:
    m, n, d = 10, 1024, 256
    xs = representations(m, n, [d])
    print(f"\npair by pair: n = {n}, d = {d}, {m * m} ordered pairs; preparing once, or every time")
    for name in ("procrustes", "cca", "svcca", "pwcca", "linear_regression", "gulp", "jaccard_knn",
                 "cknna"):  # fmt: skip
        one = {name: measure_spec(name)}
        measure = one[name].measure
        settings = dict(one[name].parameters)
        for_prepare = {k: settings[k] for k in measure.prepares}
        for_compare = {k: v for k, v in settings.items() if k not in measure.prepares}
        values = [x.astype(float) for x in xs[:3]]

        def every_time(
            measure=measure, values=values, for_prepare=for_prepare, for_compare=for_compare
        ) -> None:
            for y in values[1:]:
                states = [measure.prepare(z, **for_prepare) for z in (values[0], y)]
                measure.compare(*states, **for_compare)

        def once(one: dict = one) -> None:
            prepared = [prepare(x, one) for x in xs]
            score_pairs(prepared, list(reversed(prepared)), one)

        each, ours = best(every_time, repeats) / 2, best(once, 1) / m**2
        print(f"{name:<18}{1e3 * ours:>9.1f} ms a pair{1e3 * each:>9.1f} ms{each / ours:>7.1f}×",
              flush=True)  # fmt: skip


def permuting() -> None:
    some = [prepare(x, SPECS) for x in representations(40, 1024, [768])]
    groups = np.repeat(np.arange(2), 10)
    orders = permutations(1024, 20, seed=0)
    raw = best(lambda: score_pairs(some[:20], some[20:], SPECS), 2)
    null = best(lambda: permutation_null(some[:20], some[20:], groups, groups, SPECS, orders), 1)
    print(f"\nnull by permutation, 20 × 20 layers, three measures: {null / 20 / raw:.2f} raw "
          f"comparisons a permutation")  # fmt: skip


def published_packages(repeats: int) -> None:
    """The same numbers from other packages: RSA of all pairs, and one calibrated pair."""
    import torch
    from calibrated_similarity import calibrate as calibrate_published
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, compare
    from rsatoolbox.rdm.rdms import concat

    m, n, d = 24, 1024, 768
    xs = representations(m, n, [d])
    one = {"": measure_spec("rsa")}

    def ours() -> np.ndarray:
        prepared = [prepare(x, one) for x in xs]
        return score_pairs(prepared, prepared, one)[""].values

    def theirs() -> np.ndarray:
        rdms = concat([calc_rdm(Dataset(x), method="correlation") for x in xs])
        return compare(rdms, rdms, method="corr")

    if not np.allclose(ours(), theirs(), atol=1e-4):
        raise SystemExit("rsa is not that of rsatoolbox")
    here, there = best(ours, repeats), best(theirs, 1)
    print(f"\nrsa of {m} representations, n = {n}, d = {d}: {here:.2f} s, rsatoolbox "
          f"{there:.2f} s, {there / here:.1f}×")  # fmt: skip
    x, y = xs[:2]
    small = {"": SPECS["cka"]}

    def by_moments() -> None:
        calibrate(x, y, small[""], method="analytic")

    def by_permutation() -> None:
        calibrate(x, y, small[""], n_permutations=200)

    def published() -> None:
        calibrate_published(
            torch.as_tensor(x), torch.as_tensor(y), K=200,
            sim=lambda a, b: CAREFUL["cka"](a.numpy(), b.numpy()),
        )  # fmt: skip

    moments, permuted = best(by_moments, repeats), best(by_permutation, 1)
    there = best(published, 1)
    print(f"one pair calibrated, cka, K = 200: by moments {moments:.2f} s, by permutation "
          f"{permuted:.2f} s, calibrated-similarity {there:.2f} s: {there / moments:.0f}× and "
          f"{there / permuted:.0f}×", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--draws", type=int, default=999)
    parser.add_argument("--quick", action="store_true", help="only the first two tables")
    parser.add_argument("--large", action="store_true", help="only n = 50,000, twenty minutes")
    parser.add_argument("--case", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        one_case(*options.case)
        return
    if options.large:
        many_stimuli()
        return
    all_pairs(204, 1024, 768, options.repeats)
    product_rate([204, 812], 1024, options.repeats)
    if options.quick:
        return
    permuting()
    preparing_once(options.repeats)
    published_packages(options.repeats)
    published_scale(options.draws)
    growth(options.repeats)


if __name__ == "__main__":
    main()
