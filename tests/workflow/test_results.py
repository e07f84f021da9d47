"""What a run has stored, against naive definitions on the stored activations."""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np
import pytest
import reference
import zarr
from numpy.typing import NDArray
from zoo import MEASURES, N_PERMUTATIONS, Zoo

from pipeline.calibration import permutation_null, permutations
from pipeline.encoder import Encoder
from pipeline.measures import prepare
from pipeline.schema import NULL_GROUP, SCORE_GROUP, State
from pipeline.stimuli.digits import load_digits
from pipeline.store import Store
from pipeline.store.grid import Grid

K = 5
N = 64


class Results:
    """The store of the zoo, with what it should hold worked out anew."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.encoders = {e.id: e for e in store.encoders()}
        self.representations = [r for e in self.encoders.values() for r in e.representations]
        (self.subset,) = store.subsets
        self.grams, self.clipped_grams, self.centred, self.sets = (
            cache(self._gram),
            cache(self._clipped_gram),
            cache(self._centred),
            cache(self._sets),
        )

    @cached_property
    def rows(self) -> dict[str, NDArray[np.int64]]:
        drawn = np.sort(np.random.default_rng(0).permutation(597)[:N])
        captions = [str(load_digits("test").columns["caption"][i]) for i in drawn]
        first = [
            i
            for i, c in zip(drawn, captions, strict=True)
            if captions.index(c) == list(drawn).index(i)
        ]
        return {"images": drawn, "captions": np.array(first)}

    def x(self, name: str, kind: str) -> NDArray[np.float32]:
        return self.store.activations(name).values[self.rows[kind]]

    def _gram(self, name: str, kind: str) -> NDArray[np.float64]:
        x = self.x(name, kind).astype(float)
        return reference.gram(x - x.mean(0))

    def _centred(self, name: str, kind: str) -> NDArray[np.float64]:
        n = len(self.rows[kind])
        centring = np.eye(n) - 1 / n
        return centring @ self.grams(name, kind) @ centring

    def _sets(self, name: str, kind: str) -> list[set[int]]:
        return reference.nearest(self.x(name, kind), K)

    def expected(self, label: str, a: str, b: str, kind: str) -> float:
        if label == "knn":
            pairs = zip(self.sets(a, kind), self.sets(b, kind), strict=True)
            return sum(len(x & y) for x, y in pairs) / (len(self.rows[kind]) * K)
        if label == "cka":
            x, y = self.centred(a, kind), self.centred(b, kind)
            return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))
        if label == "prh":
            return self.expected_prh(a, b, kind)
        x, y = self.grams(a, kind), self.grams(b, kind)
        own = reference.hsic_unbiased(x, x) * reference.hsic_unbiased(y, y)
        return float(reference.hsic_unbiased(x, y) / np.sqrt(own))

    def expected_prh(self, a: str, b: str, kind: str) -> float:
        """Clip all layers of an encoder together, scale rows, add 1e-6 to the denominator."""
        grams = [self.clipped_grams(name, kind) for name in (a, b)]
        kl, kk, ll = (
            reference.hsic_unbiased(x, y) for x, y in (grams, grams[:1] * 2, grams[1:] * 2)
        )
        return float(kl / (np.sqrt(kk * ll) + 1e-6))

    def _clipped_gram(self, name: str, kind: str) -> NDArray[np.float64]:
        clipped = np.clip(self.x(name, kind).astype(float), *self.clip(name, kind))
        return reference.gram(clipped / np.linalg.norm(clipped, axis=1, keepdims=True))

    def clip(self, name: str, kind: str) -> tuple[float, float]:
        layers = [self.x(r, kind).ravel() for r in self.encoder(name).representations]
        sizes = np.sort(np.abs(np.concatenate(layers)).astype(float))
        tau = float(sizes[int(0.95 * sizes.size)])
        return -tau, tau

    def encoder(self, representation: str) -> Encoder:
        return self.encoders[representation.rpartition("/")[0]]

    def wanted(self, a: Encoder, b: Encoder) -> bool:
        """Whether final, init, same_step or within_model pairs the two."""
        if a.model == b.model:
            return True
        return a.final == b.final == True or a.step == b.step  # noqa: E712

    def kind(self, a: Encoder, b: Encoder) -> str:
        return "captions" if "text" in (a.tower, b.tower) else "images"

    def grid(self, kind: str, label: str) -> Grid:
        group = self.store.root["measures"]
        assert isinstance(group, zarr.Group)
        (key,) = (k for k, g in group.groups() if g.attrs["kind"] == kind)
        found = group[f"{key}/{label}"]
        assert isinstance(found, zarr.Group)
        return Grid(found, SCORE_GROUP)

    def null(self, kind: str, label: str) -> Grid:
        group = self.store.root["calibration"]
        assert isinstance(group, zarr.Group)
        (key,) = (k for k, _ in group.groups() if ("captions" in k) == (kind == "captions"))
        found = group[f"{key}/{label}/permutation-{N_PERMUTATIONS}-seed3"]
        assert isinstance(found, zarr.Group)
        return Grid(found, NULL_GROUP)


@pytest.fixture(scope="module")
def results(zoo_store: Store) -> Results:
    return Results(zoo_store)


def test_encoders__every_model_checkpoint_and_tower(results: Results) -> None:
    assert list(results.encoders) == [
        "open_clip/clip@step0#image", "open_clip/clip@step10#image",
        "open_clip/clip@step0#text", "open_clip/clip@step10#text",
        "timm/conv@init#image", "timm/conv@end#image",
        "timm/vit-a@step0#image", "timm/vit-a@step10#image",
        "timm/vit-b@step0#image", "timm/vit-b@step10#image",
    ]  # fmt: skip
    assert [e.initial for e in results.encoders.values()] == 5 * [True, False]
    assert [e.final for e in results.encoders.values()] == 5 * [False, True]
    assert [e.step for e in results.encoders.values()] == 5 * [0, 10]
    assert [e.samples_seen for e in results.encoders.values()] == 5 * [0.0, 640.0]


def test_rows__are_the_subsets(results: Results) -> None:
    np.testing.assert_array_equal(results.store.rows(results.subset), results.rows["images"])
    group = results.store.root["measures"]
    (key,) = (k for k, g in group.groups() if g.attrs["kind"] == "captions")  # type: ignore[union-attr]
    np.testing.assert_array_equal(results.store.rows(key), results.rows["captions"])
    assert len(results.rows["captions"]) < N


@pytest.mark.parametrize("label", MEASURES)
def test_score__every_stored_one_is_the_naive_one(results: Results, label: str) -> None:
    found = results.store.similarity(label)
    names = found["representation_x"].values.tolist()
    assert sorted(names) == sorted(results.representations)
    compared = 0
    for i, a in enumerate(names):
        for j, b in enumerate(names[: i + 1]):
            score, mirrored = float(found[i, j]), float(found[j, i])
            kind = results.kind(results.encoder(a), results.encoder(b))
            if not results.wanted(results.encoder(a), results.encoder(b)):
                assert np.isnan(score), (a, b)
                assert np.isnan(mirrored), (a, b)
                continue
            assert score == mirrored, (a, b)
            assert score == pytest.approx(results.expected(label, a, b, kind), abs=1e-5), (a, b)
            assert int(found["n_stimuli"][i, j]) == len(results.rows[kind])
            compared += 1
    assert 150 < compared < len(names) * (len(names) + 1) / 2


@pytest.mark.parametrize("label", MEASURES)
@pytest.mark.parametrize("kind", ["images", "captions"])
def test_state__done_exactly_where_pairs_are_wanted(
    results: Results, label: str, kind: str
) -> None:
    grid = results.grid(kind, label)
    state = grid.state()
    expected = np.full(state.shape, State.MISSING)
    for a, i in grid.members.items():
        for b, j in grid.members.items():
            x, y = results.encoder(a), results.encoder(b)
            if results.wanted(x, y) and results.kind(x, y) == kind:
                expected[i, j] = State.DONE
    np.testing.assert_array_equal(state, expected)
    score = np.asarray(grid.array("score")[...])
    np.testing.assert_array_equal(np.isfinite(score), state == State.DONE)


@pytest.mark.parametrize("kind", ["images", "captions"])
def test_n_ties__counted_naively(results: Results, kind: str) -> None:
    grid = results.grid(kind, "knn")
    stored = np.asarray(grid.array("n_ties")[...])
    for name, slot in grid.members.items():
        x = results.x(name, kind).astype(float)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        near = np.round(unit @ unit.T, 12)
        np.fill_diagonal(near, -np.inf)
        ordered = -np.sort(-near, axis=1)
        assert stored[slot] == (ordered[:, K - 1] == ordered[:, K]).sum(), name
    free = np.setdiff1d(np.arange(len(stored)), list(grid.members.values()))
    assert (stored[free] == -1).all()


def test_n_ties__none_where_there_are_no_neighbours(results: Results) -> None:
    assert (np.asarray(results.grid("images", "cka").array("n_ties")[...]) == -1).all()


@pytest.mark.parametrize("kind", ["images", "captions"])
def test_clip__is_kept_for_every_representation(results: Results, kind: str) -> None:
    grid = results.grid(kind, "prh")
    stored = np.asarray(grid.array("clip")[...])
    compared = (grid.state() == State.DONE).any(axis=1)
    assert compared.any()
    for name, slot in grid.members.items():
        if compared[slot]:
            assert stored[slot] == results.clip(name, kind)[1], name
    assert np.isnan(np.asarray(results.grid(kind, "cka").array("clip")[...])).all()


def test_digests__of_the_grid_are_the_encoders(results: Results) -> None:
    for name, digest in results.grid("images", "cka").digests.items():
        assert digest == results.encoder(name).digest


@pytest.mark.parametrize("kind", ["images", "captions"])
def test_null__is_the_permutation_null_of_the_same_arrays(results: Results, kind: str) -> None:
    specs = {label: results.store.measure(label) for label in MEASURES}
    grids = {label: results.null(kind, label) for label in specs}
    members = grids["cka"].members
    orders = permutations(len(results.rows[kind]), N_PERMUTATIONS, 3)
    prepared = {
        e: [
            prepare(results.x(r, kind), specs, clip={"prh": results.clip(r, kind)[1]})
            for r in results.encoders[e].representations
        ]
        for e in members
    }
    checked = 0
    for x, i in members.items():
        for y, j in members.items():
            a, b = results.encoders[x], results.encoders[y]
            wanted = (
                x != y
                and results.kind(a, b) == kind
                and ((a.final and b.final) or (a.initial and b.initial))
            )
            assert {int(g.state()[i, j]) for g in grids.values()} == {int(wanted)}, (x, y)
            if not wanted or i > j:
                continue
            # whatever their slots, it is the second by name whose stimuli are permuted
            names = {f"{e.path}@{e.checkpoint}": name for e, name in ((a, x), (b, y))}
            xs, ys = (prepared[names[name]] for name in sorted(names))
            nulls = permutation_null(xs, ys, [0] * len(xs), [0] * len(ys), specs, orders)
            for label, grid in grids.items():
                null = np.asarray(grid.array("null")[:, i, j])
                for k, how in enumerate(("max", "mean")):
                    np.testing.assert_allclose(null[k], nulls[label][how][0, 0], rtol=0, atol=1e-6)
                np.testing.assert_array_equal(np.asarray(grid.array("null")[:, j, i]), null)
            checked += 1
    assert checked == {"images": 2 * 6, "captions": 2 * 4}[kind]


@pytest.mark.parametrize("label", MEASURES)
def test_alignment__recomputed_from_scores_and_nulls(results: Results, label: str) -> None:
    found = results.store.alignment(label)
    alpha, rank = found.attrs["alpha"], int(np.ceil(0.95 * (N_PERMUTATIONS + 1) - 1e-9))
    assert (alpha, found.attrs["n_permutations"]) == (0.05, N_PERMUTATIONS)
    scores = results.store.similarity(label)
    tested: dict[tuple[str, str], float] = {}
    for x in found["encoder_x"].values.tolist():
        for y in found["encoder_y"].values.tolist():
            a, b = results.encoders[x], results.encoders[y]
            cell = found.sel(encoder_x=x, encoder_y=y)
            if not results.wanted(a, b):
                assert np.isnan(cell["score"])
                assert (cell["layer_x"], cell["layer_y"], cell["n_stimuli"]) == (-1, -1, 0)
                continue
            block = scores.sel(
                representation_x=a.representations, representation_y=b.representations
            ).values.astype(float)
            kind = results.kind(a, b)
            assert float(cell["score"]) == block.max()
            assert block[int(cell["layer_x"]), int(cell["layer_y"])] == block.max()
            assert float(cell["mean"]) == pytest.approx(block.mean(), abs=1e-12)
            assert int(cell["n_stimuli"]) == len(results.rows[kind])
            assert bool(cell["related"]) == (a.model == b.model)
            calibrated = x != y and ((a.final and b.final) or (a.initial and b.initial))
            assert np.isfinite(cell["p"]) == calibrated, (x, y)
            if not calibrated:
                continue
            grid = results.null(kind, label)
            at = (grid.members[x], grid.members[y])
            for k, (name, how) in enumerate((("score", "calibrated"), ("mean", "calibrated_mean"))):
                null = np.asarray(grid.array("null")[(k, *at)], dtype=float)
                score = float(cell[name])
                threshold = np.sort([*null, score])[rank - 1]
                expected = np.clip((score - threshold) / (1 - threshold), 0, 1)
                assert float(cell[how]) == pytest.approx(expected, abs=1e-12)
                if name == "score":
                    p = (1 + (null >= score).sum()) / (N_PERMUTATIONS + 1)
                    assert float(cell["threshold"]) == threshold
                    assert float(cell["p"]) == pytest.approx(p)
                    tested[min((x, y), (y, x))] = float(p)
    ordered = sorted(tested.values())
    assert len(ordered) == 2 * 6 + 2 * 4
    for (x, y), p in tested.items():
        later = [(i, v) for i, v in enumerate(ordered, 1) if v >= p]
        q = min(v * len(ordered) / i for i, v in later)
        assert float(found["q"].sel(encoder_x=x, encoder_y=y)) == pytest.approx(min(q, 1.0))


def test_competence__of_every_encoder(results: Results) -> None:
    found = results.store.competence()
    assert sorted(found["encoder"].values.tolist()) == sorted(results.encoders)
    assert ((found["knn_accuracy"] >= 0) & (found["knn_accuracy"] <= 1)).all()
    assert np.isnan(found["probe_accuracy"]).all()  # of 64 rows, one class has fewer than 5


@pytest.mark.parametrize("name", ["alignment", "convergence", "competence"])
def test_dataset__variables_are_in_one_order(results: Results, name: str) -> None:
    """Zarr lists arrays in the order in which their metadata happens to be read."""
    label = None if name == "competence" else results.store.labels()[0]
    dataset = results.store.dataset(name, label)
    assert list(dataset.data_vars) == sorted(dataset.data_vars)
    assert list(dataset.coords) == sorted(dataset.coords)


def test_report__is_written_beside_the_store(zoo: Zoo) -> None:
    assert (zoo.folder / "store.report" / "index.html").stat().st_size > 10_000
