"""False positives where neighbours tie, under H0: a section of docs/nulls.md.

Two encoders are drawn independently, on data in which stimuli are equally far from others: labels
(one-hot, a tenth of them changed in each layer), whole numbers, rectified features with a share
of rows that are zero in every layer, and rows that are drawn repeatedly. The first table has
nulls from moments, as above. The second has nulls by permutation, for every measure of
neighbours: the share of fresh pairs of encoders with p at most 5%.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from nulls import FIGURES, PERMUTATIONS, Row, study

from pipeline.calibration import permutations
from pipeline.measures import measure_spec, prepare, score_pairs, score_permuted

HEADING = "## Neighbours that tie"
ANALYTIC = {
    "mutual_knn": measure_spec("mutual_knn", k=10),
    "mutual_knn, k = 5": measure_spec("mutual_knn", k=5, neighbours="euclidean"),
}
PERMUTED = {
    name: measure_spec(name, k=10)
    for name in (
        "mutual_knn", "jaccard_knn", "cycle_knn", "lcs_knn", "edit_knn", "cknna",
        "second_order_cosine",
    )
}  # fmt: skip
REPEATS, DRAWS = 200, 39
N, D, LAYERS = 100, 16, 3
Layers = list[np.ndarray]


def one_hot(classes: int) -> Callable[..., Layers]:
    def drawn(rng: np.random.Generator, n: int, d: int, layers: int) -> Layers:
        labels = rng.integers(0, classes, n)
        found = []
        for _ in range(layers):
            other = np.where(rng.random(n) < 0.1, rng.integers(0, classes, n), labels)
            found.append(np.eye(classes)[other])
        return found

    return drawn


def network(rng: np.random.Generator, h: np.ndarray, layers: int) -> Iterator[np.ndarray]:
    d = h.shape[1]
    for _ in range(layers):
        h = h + 0.3 * np.tanh(h @ rng.normal(size=(d, d)) / d**0.5)
        yield h


def whole_numbers(rng: np.random.Generator, n: int, d: int, layers: int) -> Layers:
    return [np.rint(h[:, :4]) for h in network(rng, rng.normal(size=(n, d)), layers)]


def rectified(share: float) -> Callable[..., Layers]:
    def drawn(rng: np.random.Generator, n: int, d: int, layers: int) -> Layers:
        alive = rng.random((n, 1)) >= share
        return [np.maximum(h, 0) * alive for h in network(rng, rng.normal(size=(n, d)), layers)]

    return drawn


def repeated(rng: np.random.Generator, n: int, d: int, layers: int) -> Layers:
    return list(network(rng, rng.normal(size=(n, d))[rng.integers(0, n, n)], layers))


KINDS = {
    "one-hot of 2": one_hot(2),
    "one-hot of 6": one_hot(6),
    "one-hot of 10": one_hot(10),
    "whole numbers": whole_numbers,
    "2% of rows zero": rectified(0.02),
    "5% of rows zero": rectified(0.05),
    "10% of rows zero": rectified(0.1),
    "30% of rows zero": rectified(0.3),
    "rows drawn repeatedly": repeated,
}


def analytic(kind: str, seed: int) -> list[Row]:
    """Study thresholds from moments, of 24 × 24 layers of 200 stimuli."""
    n, d, layers = 200, 50, 24
    xs, ys = (KINDS[kind](np.random.default_rng([seed, s]), n, d, layers) for s in (0, 1))
    about = {"n": n, "d": str(d), "layers": f"{layers}×{layers}", "data": kind}
    return list(study(about, xs, ys, ANALYTIC, seed, {}))


@dataclass(frozen=True)
class Permuted:
    """How often a null by permutation gave p ≤ 5%, in %; None where most lists have no order."""

    data: str
    measure: str
    tied: float
    """Share of stimuli whose neighbours tie."""
    one: float | None
    most: float | None
    """With the best of all layers."""

    def __str__(self) -> str:
        rates = ("undefined" if r is None else f"{r:.1f}" for r in (self.one, self.most))
        return f"| {self.data} | {self.measure} | {self.tied:.2f} | {' | '.join(rates)} |"


def permuted(kind: str, seed: int) -> list[Permuted]:
    """Study nulls by permutation, of 3 × 3 layers of 100 stimuli."""
    below: dict[str, list[tuple[bool, bool]]] = {name: [] for name in PERMUTED}
    tied: dict[str, list[float]] = {name: [] for name in PERMUTED}
    for repeat in range(REPEATS):
        sides = [
            KINDS[kind](np.random.default_rng([seed, repeat, s]), N, D, LAYERS) for s in (2, 3)
        ]
        xs, ys = ([prepare(x, PERMUTED) for x in side] for side in sides)
        known = {
            name: spec
            for name, spec in PERMUTED.items()
            if all(each.defined(spec) for each in (*xs, *ys))
        }
        scores = score_pairs(xs, ys, known)
        nulls = score_permuted(xs, ys, known, permutations(N, DRAWS, repeat))
        for name, spec in PERMUTED.items():
            tied[name].append(float(np.mean([each.ties(spec) / N for each in xs])))
            if name in known:
                found, null = scores[name].values, nulls[name]
                pairs = ((found[0, 0], null[:, 0, 0]), (found.max(), null.max(axis=(1, 2))))
                below[name].append(
                    tuple((1 + (k >= s - 1e-9).sum()) / (DRAWS + 1) <= 0.05 for s, k in pairs)
                )
    rows = []
    for name, found in below.items():
        rates = (
            (None, None) if len(found) < REPEATS / 2 else 100 * np.mean(found, axis=0)
        )  # fmt: skip
        one, most = (None if rate is None else float(rate) for rate in rates)
        rows.append(Permuted(kind, name, float(np.mean(tied[name])), one, most))
    return rows


def section(moments: list[Row], by_permutation: list[Permuted]) -> Iterator[str]:
    """Give the lines of the section."""
    yield HEADING
    yield ""
    yield from (__doc__ or "").splitlines()[2:]
    yield ""
    used = [
        rate - level
        for row in moments
        for rate, level, use in zip(row.rates, row.levels, row.used, strict=True)
        if use
    ]
    yield (
        f"By moments, {PERMUTATIONS:,} permutations: rates minus levels of all rates used, in "
        f"percentage points: {min(used):+.1f} to {max(used):+.1f} ({len(used)})."
    )
    yield ""
    yield "| n | d | layers | data | measure | flagged | " + " | ".join(FIGURES) + " |"
    yield "| --- " * 10 + "|"
    yield from (
        str(row).replace(f"{row.flagged:.2f} |  |", f"{row.flagged:.2f} |") for row in moments
    )
    yield ""
    rates = [r for row in by_permutation for r in (row.one, row.most) if r is not None]
    yield (
        f"By permutation, n = {N}, d = {D}, {LAYERS}×{LAYERS} layers, {DRAWS} permutations of each "
        f"of {REPEATS} pairs of encoders (binomial error {(0.05 * 0.95 / REPEATS) ** 0.5:.1%}): "
        f"{min(rates):.1f} to {max(rates):.1f}% ({len(rates)}). A list whose order ties leave open "
        "is left out of `lcs_knn` and `edit_knn`, which are undefined if that is half of the "
        "lists or more."
    )
    yield ""
    yield "| data | measure | stimuli tied | one 5% | max 5% |"
    yield "| --- " * 5 + "|"
    yield from map(str, by_permutation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="docs/nulls.md")
    parser.add_argument(
        "--rows",
        default="store/nulls-ties.jsonl",
        help="finished cases; a study goes on from there",
    )
    options = parser.parse_args()
    kept = Path(options.rows)
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for seed, kind in enumerate(KINDS):
        for study_of, name in ((analytic, "moments"), (permuted, "permutation")):
            if any(line["row"]["data"] == kind and line["study"] == name for line in lines):
                continue
            found = study_of(kind, seed)
            print(*found, sep="\n", flush=True)
            lines += [{"study": name, "row": asdict(row)} for row in found]
            kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    moments = [Row(**line["row"]) for line in lines if line["study"] == "moments"]
    by_permutation = [Permuted(**line["row"]) for line in lines if line["study"] == "permutation"]
    page = Path(options.output)
    before = page.read_text().split(HEADING)[0].rstrip()
    page.write_text("\n".join([before, "", *section(moments, by_permutation)]) + "\n")


if __name__ == "__main__":
    main()
