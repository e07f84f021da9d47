"""The report, on a store whose alignments are made up."""

from __future__ import annotations

import base64
import html
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pipeline.analysis import ANALYSES, ComparisonResults
from pipeline.analysis.alignment import alignment_dataset
from pipeline.analysis.convergence import convergence_dataset
from pipeline.calibration import VERSION
from pipeline.errors import InputError, StoreError
from pipeline.measures import measure_spec
from pipeline.report import findings, is_current, notes, write, write_report
from pipeline.report.absences import left_out, phrase, sentences
from pipeline.report.modality import convergence_of
from pipeline.report.results import Results, load_results
from pipeline.report.section import Section, SectionMaker
from pipeline.report.style import count, number, p_value, upper_limit
from pipeline.report.write import COLUMNS
from pipeline.schema import SCORE_GROUP, State
from pipeline.store import Store, open_store, paths
from pipeline.store.activations import TowerGroup
from pipeline.store.catalog import encoders as stored_encoders
from pipeline.store.datasets import write_dataset
from pipeline.store.grid import Grid
from pipeline.store.layout import open_root
from pipeline.types import Weights

SET, SUBSET = "made-up-00000000", "made-up-n64-00000000"
VERSIONS = {analysis.name: {"version": analysis.version} for analysis in ANALYSES}
SPECS = {"knn10": measure_spec("mutual_knn", k=10), "cka_debiased": measure_spec("cka_debiased")}


@dataclass(frozen=True)
class Made:
    """What a made-up store holds."""

    families: tuple[str, ...] = ("conv", "vit", "xcit")
    widths: tuple[int, ...] = (8, 32, 96)
    seeds: int = 1
    steps: tuple[int, ...] = (0, 10, 100, 240)
    text: tuple[str, ...] = ("conv", "vit")
    """Families with a text tower."""
    image: bool = True
    """Whether all families have an image tower."""
    calibrated: bool = True
    labelled: tuple[str, ...] = ("image", "text")
    """Modalities whose accuracy is known."""
    labels: tuple[str, ...] = ("knn10", "cka_debiased")
    n_layers: int = 4
    n_stimuli: int = 64
    subset: str = SUBSET
    failed: tuple[str, ...] = ()
    """Checkpoints, `MODEL@step-STEP`, that could not be extracted."""
    undefined: tuple[str, ...] = ()
    """Models for which the measures are not defined."""


def make_store(path: Path, made: Made) -> Store:
    rng = np.random.default_rng(0)
    root = open_root(path, "a")
    if f"stimuli/{SET}" not in root:
        root.create_group(
            f"stimuli/{SET}", attributes={"source": {"source": "made-up"}, "fingerprint": "f" * 64}
        )
        _write_activations(root, made)
    encoders = stored_encoders(root, SET)
    root.create_group(
        f"measures/{made.subset}",
        attributes={"kind": "images" if made.image else "captions", "base": made.subset,
                    "set": SET, "fingerprint": "e" * 64, "n_stimuli": made.n_stimuli},
    )  # fmt: skip
    competence = {
        e.id: {"probe_accuracy": 0.3 + 0.6 * _trained(e), "knn_accuracy": 0.2 + 0.6 * _trained(e)}
        for e in encoders if e.tower in made.labelled
    }  # fmt: skip
    for label in made.labels:
        scores = {
            (a.id, b.id): _block(a, b, made, rng) for i, a in enumerate(encoders)
            for b in encoders[i + 1 :] if _meet(a, b)
        }  # fmt: skip
        nulls = {
            pair: rng.normal(0.12, 0.03, (2, 99)) for pair in scores
            if made.calibrated and _kind(pair, encoders)
        }  # fmt: skip
        scores |= {(b, a): block.T for (a, b), block in scores.items()}
        nulls |= {(b, a): null for (a, b), null in nulls.items()}
        _write_scores(root, made, label, encoders, scores)
        alignment = alignment_dataset(
            encoders, [ComparisonResults(made.n_stimuli, scores, nulls)], alpha=0.05, maximum=1.0,
            columns=competence,
            attributes={"label": label, **({"alpha": 0.05, "method": "permutation",
                        "n_permutations": 99, "permutation_seed": 0} if nulls else {})},
        )  # fmt: skip
        alignment.attrs |= VERSIONS["alignment"]
        write_dataset(root, f"alignment/{made.subset}/{label}", alignment, "")
        convergence = convergence_dataset(alignment, n_bootstrap=120)
        convergence.attrs |= VERSIONS["convergence"]
        write_dataset(root, f"convergence/{made.subset}/{label}", convergence, "")
    return open_store(path)


def _write_activations(root: Any, made: Made) -> None:
    ids = [f"{i:016x}" for i in range(made.n_stimuli)]
    layers = {f"blocks.{i}": 2 for i in range(made.n_layers)}
    for family in made.families:
        towers = ["image"] * made.image + ["text"] * (family in made.text)
        for width in made.widths:
            for seed in range(made.seeds):
                for tower in towers:
                    model = f"timm/{re.sub('[^a-z&]', '', family)}-w{width}-s{seed}"
                    group = TowerGroup.create(
                        root, paths.tower(SET, model, tower), stimulus_ids=ids, layers=layers,
                        attributes={
                            "recipe_digest": model, "stimuli_fingerprint": "f" * 64,
                            "family": family, "n_parameters": float(70 * width**2),
                            "versions": {"torch": "2.0"}, "widths": [2] * made.n_layers,
                        },
                    )  # fmt: skip
                    group.add_checkpoints(
                        {f"step-{s}": (s, Weights(f"{model}{s}")) for s in made.steps}
                    )
                    for step in made.steps:
                        if f"{model}@step-{step}" in made.failed:
                            continue
                        values = np.zeros((made.n_stimuli, 2), np.float32)
                        group.write_block(
                            f"step-{step}", (0, made.n_stimuli), dict.fromkeys(layers, values)
                        )


def _trained(encoder: Any) -> float:
    size = np.log10(encoder.attributes["n_parameters"])
    return float(np.log1p(max(0, encoder.step)) / np.log1p(240) * (0.4 + 0.1 * size))


def _meet(a: Any, b: Any) -> bool:
    final = a.final and b.final
    same = a.tower == b.tower
    return final or (same and (a.step == b.step or a.model == b.model))


def _kind(pair: tuple[str, str], encoders: list[Any]) -> bool:
    a, b = (next(e for e in encoders if e.id == p) for p in pair)
    return (a.final and b.final) or (a.initial and b.initial)


def _block(a: Any, b: Any, made: Made, rng: np.random.Generator) -> Any:
    if {a.model, b.model} & set(made.undefined):
        return np.full((made.n_layers, made.n_layers), np.nan)
    level = 0.15 + 0.5 * _trained(a) * _trained(b) * (1.1 if a.tower == b.tower else 0.6)
    depth = np.linspace(0, 1, made.n_layers)
    near = 1 - 0.5 * np.abs(depth[:, None] - depth)
    return np.clip(level * near + rng.normal(0, 0.02, near.shape), -1, 1)


def _write_scores(root: Any, made: Made, label: str, encoders: Any, scores: Any) -> None:
    spec = SPECS[label]
    grid = Grid.create(
        root, f"measures/{made.subset}/{label}", SCORE_GROUP,
        attributes={
            "measure": spec.identity(),
            "n_stimuli": made.n_stimuli,
        },
    )  # fmt: skip
    grid.admit({r: e.digest for e in encoders for r in e.representations})
    rows = {e.id: [grid.members[r] for r in e.representations] for e in encoders}
    held = np.asarray(grid.array("score")[...])
    state = np.asarray(grid.array("state")[...])
    for (a, b), block in scores.items():
        held[np.ix_(rows[a], rows[b])] = block
        state[np.ix_(rows[a], rows[b])] = State.DONE
    grid.array("score")[...] = held
    grid.array("state")[...] = state
    if label == "knn10":
        ties = np.asarray(grid.array("n_ties")[...])
        ties[list(grid.members.values())] = 1
        grid.array("n_ties")[...] = ties


@pytest.fixture(autouse=True, scope="module")
def _coarse() -> Any:
    """Draw coarse pictures, which are the same but for their pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.report.style.DPI", 100)
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = make_store(tmp_path_factory.mktemp("report") / "made.zarr", Made())
    report = write_report(store)
    return SimpleNamespace(store=store, report=report, text=report.html.read_text("utf-8"))


def pixels(png: bytes) -> Any:
    from matplotlib.image import imread

    return imread(io.BytesIO(png), format="png")[..., :3]


def words_of(text: str) -> str:
    """Return what a page says, without its tags and pictures."""
    body = re.sub(r"<style>.*?</style>|<[^>]*>", " ", text, flags=re.S)
    return html.unescape(re.sub(r"\s+", " ", body))


SMALL = Made(families=("conv", "vit"), widths=(8, 32), seeds=1, steps=(0, 10), text=(),
             labels=("knn10",), n_layers=2)  # fmt: skip


def small(tmp_path: Path, **changed: Any) -> Any:
    store = make_store(tmp_path / "small.zarr", replace(SMALL, **changed))
    report = write_report(store)
    return SimpleNamespace(store=store, report=report, text=report.html.read_text("utf-8"))


def test_write_report__writes_all_files_beside_the_store(written: Any) -> None:
    folder = written.store.path.with_name("made.report")
    assert written.report.html == folder / "index.html"
    names = ["map-cka_debiased", "map-knn10", "scale-cka_debiased-image", "scale-knn10-image",
             "scale-cka_debiased-text", "scale-knn10-text", "training-image", "training-text",
             "layers-image", "layers-text"]  # fmt: skip
    assert [f.name for f in written.report.figures] == [f"{n}.png" for n in names]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["index.html", *(f"{n}.png" for n in names)]
    )


def test_write_report__figures_are_not_blank(written: Any) -> None:
    for figure in written.report.figures:
        image = pixels(figure.read_bytes())
        assert image.shape[1] > 300, figure.name
        assert image.std() > 0.05, figure.name
        colours = (image * 255).astype(np.int64) @ [65536, 256, 1]
        assert len(np.unique(colours)) > 50, figure.name


def test_write_report__nothing_of_a_figure_is_cut_off(written: Any) -> None:
    for figure in written.report.figures:
        image = pixels(figure.read_bytes())
        for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
            assert (edge == 1).all(), figure.name


def test_write_report__page_needs_no_other_file(written: Any) -> None:
    sources = re.findall(r'src="([^"]*)"', written.text)
    embedded = [base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources]
    assert embedded == [f.read_bytes() for f in written.report.figures]
    assert "http" not in re.sub(r"base64,[^\"]*", "", written.text)


def test_write_report__writes_into_a_given_folder(written: Any, tmp_path: Path) -> None:
    report = write_report(written.store, tmp_path / "a" / "b")
    assert report.html == tmp_path / "a" / "b" / "index.html"
    assert report.html.read_text("utf-8") == written.text  # the same store, the same report


def test_write_report__page_has_the_numbers_of_the_datasets(written: Any) -> None:
    page = words_of(written.text)
    for label, modality in product(written.store.labels(), ("image", "text")):
        convergence = written.store.convergence(label).sel(modality=modality)
        for value in ("raw", "calibrated"):
            trend = convergence.sel(condition="final", value=value, predictor="n_parameters")
            slope, low, high = (
                number(float(trend[n]), sign=True) for n in ("slope", "slope_low", "slope_high")
            )
            assert f"{slope} [{low}, {high}] p {p_value(float(trend['p_qap']))}" in page
            end = convergence.sel(stage="end", value=value)
            assert number(float(end["mean"])) in page


def test_write_report__summary_counts(written: Any) -> None:
    page = words_of(written.text)
    assert "9 models of 3 families, as 60 encoders (36 image towers and 24 text towers)" in page
    assert "with 240 representations, were compared on 64 stimuli, by 2 measures" in page
    assert (
        "Scores were calibrated by 99 permutations of the stimuli, at α = 0.05; the smallest "
        in (page)
    )
    assert "p that these can give is 1/100." in page
    # of final image and text towers, and at initialisation
    n_pairs = 15 * 14 // 2 + 9 * 8 // 2 + 6 * 5 // 2
    assert f"null of cka_debiased, knn10 99 permutations, seed 0; {n_pairs} pairs" in page
    assert "240 of 15,360 (240 representations of 64 stimuli)" in page  # ties


ANALYTIC = {"alpha": 0.01, "method": "analytic", "n_permutations": 999, "permutation_seed": 4,
            "null_version": VERSION}  # fmt: skip


def remake(store: Store, label: str, attributes: dict[str, Any], **changed: Any) -> Store:
    """Write an alignment anew with other attributes, and values of variables."""
    alignment = store.alignment(label)
    for name, values in changed.items():
        alignment[name] = (alignment[name].dims, values)
    inputs = alignment.attrs.pop("inputs")
    alignment.attrs.pop("variables")
    alignment.attrs |= attributes
    root = open_root(store.path, "r+")
    write_dataset(root, f"alignment/{SUBSET}/{label}", alignment, inputs + "x")
    return open_store(store.path)


def test_write_report__each_label_tells_of_its_own_null(tmp_path: Path) -> None:
    """Whatever the last run, or the label before, was calibrated by."""
    labels = ("cka_debiased", "knn10")
    store = make_store(tmp_path / "small.zarr", replace(SMALL, labels=labels))
    tested = np.isfinite(store.alignment("knn10")["p"].values)
    for flagged in (0, 2):
        permuted = np.zeros_like(tested)
        for i, j in np.argwhere(np.triu(tested, 1))[:flagged]:
            permuted[i, j] = permuted[j, i] = True
        page = words_of(
            write_report(
                remake(store, "knn10", ANALYTIC, permuted=permuted)
            ).html.read_text("utf-8")
        )  # fmt: skip
        assert "cka_debiased: scores were calibrated by 99 permutations of the stimuli" in page
        assert (
            "knn10: scores were calibrated against 999 draws from nulls with exact moments, at α = "
            "0.01; a p below 1/1,000 is an upper bound from the moments"
        ) in page
        but = ". 2 of 12 pairs have nulls that their moments do not determine: these were "
        assert (f"{but}calibrated by 999 permutations of the stimuli." in page) == bool(flagged)
        assert "null of cka_debiased 99 permutations, seed 0; 12 pairs" in page
        assert (
            f"null of knn10 999 draws from exact moments, seed 4; {flagged} of 12 pairs by as many "
            "permutations instead"
        ) in page


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({**ANALYTIC, "null_version": VERSION - 1},
         "it was calibrated against an older model of the null"),
        ({"alpha": 0.001}, "it was calibrated at a level that no p reaches (With "
         "n_permutations=99 the smallest possible p is 1/100, above alpha=0.001: no score could be "
         "significant. Use at least 999 permutations)"),
    ],
)  # fmt: skip
def test_write_report__calibrations_that_are_wrong_today(
    tmp_path: Path, attributes: dict[str, Any], why: str
) -> None:
    labels = ("cka_debiased", "knn10")
    store = make_store(tmp_path / "small.zarr", replace(SMALL, labels=labels))
    store = remake(store, "knn10", attributes)
    with pytest.raises(StoreError, match=r"alignment/.*/knn10 cannot be used: .*run WORKFLOW") as e:
        store.alignment("knn10")
    assert why in str(e.value)
    with pytest.raises(StoreError, match=r"alignment/.*/knn10 cannot be used: "):
        store.convergence("knn10")
    page = words_of(write_report(store).html.read_text("utf-8"))
    assert f"Left out: knn10, because {why}. Run a workflow that compares by it to rec" in page
    assert [row["measure"] for row in findings(store)] == ["cka_debiased"]
    store = remake(store, "cka_debiased", attributes)
    with pytest.raises(InputError, match=r"no alignment on subset .* can be used: cka_deb"):
        write_report(store)


def test_write_report__scores_of_an_earlier_version_are_left_out(tmp_path: Path) -> None:
    """And those of the other measures are reported all the same."""
    labels = ("cka_debiased", "knn10")
    store = make_store(tmp_path / "small.zarr", replace(SMALL, labels=labels))
    group = open_root(store.path, "r+")[f"measures/{SUBSET}/knn10"]
    identity: Any = group.attrs["measure"]
    group.attrs["measure"] = {**identity, "version": identity["version"] - 1}
    store = open_store(store.path)
    (said,) = notes(store)
    assert said.startswith("Left out: measure 'knn10': its scores in this store are of version ")
    assert said.endswith("consilience run WORKFLOW --replace knn10.")
    assert [row["measure"] for row in findings(store)] == ["cka_debiased"]


def test_write_report__says_how_many_captions(tmp_path: Path) -> None:
    store = make_store(tmp_path / "small.zarr", SMALL)
    open_root(store.path, "r+").create_group(  # its name comes before the subset's
        "measures/a-captions",
        attributes={"kind": "captions", "base": SUBSET, "set": SET, "n_stimuli": 17},
    )
    page = words_of(write_report(open_store(store.path)).html.read_text("utf-8"))
    assert "on 64 stimuli (pairs with a text tower on 17 distinct captions)" in page


def test_write_report__names_models_that_are_absent(tmp_path: Path) -> None:
    store = make_store(tmp_path / "small.zarr", SMALL)
    TowerGroup.create(
        open_root(store.path, "r+"), paths.tower(SET, "timm/half", "image"),
        stimulus_ids=["0"], layers={"blocks.0": 2}, attributes={"recipe_digest": "0"},
    )  # fmt: skip
    page = words_of(write_report(open_store(store.path)).html.read_text("utf-8"))
    assert "Not compared at all, because no checkpoint was fully extracted: timm/half." in page


def test_write_report__another_workflow_s_models_are_told_from_those(tmp_path: Path) -> None:
    store = make_store(tmp_path / "small.zarr", SMALL)
    group = TowerGroup.create(
        open_root(store.path, "r+"), paths.tower(SET, "timm/other", "image"),
        stimulus_ids=["0"], layers={"blocks.0": 2},
        attributes={"recipe_digest": "0", "stimuli_fingerprint": "f" * 64},
    )  # fmt: skip
    group.add_checkpoints({"end": (5, Weights("other"))})
    group.write_block("end", (0, 1), {"blocks.0": np.zeros((1, 2), np.float32)})
    page = words_of(write_report(open_store(store.path)).html.read_text("utf-8"))
    assert (
        "In the store but not in these comparisons, which belong to another workflow: timm/other."
        in page
    )


FAILED = "timm/vit-w32-s0@step-10"
LOST = f"1 of 4 models left out: {FAILED} (last checkpoint not fully extracted)."


def test_write_report__checkpoint_that_failed_is_missed_everywhere(tmp_path: Path) -> None:
    """4 models above, 3 below: said at the top, and beside every figure without it."""
    made = small(tmp_path, failed=(FAILED,))
    said = notes(made.store)
    assert said == [
        f"Not fully extracted, so in no comparison: {FAILED}. `consilience store log` shows "
        "what went wrong; the next run tries again.",
        f"Final models: {LOST}",
    ]
    page = words_of(made.text)
    assert "4 models of 2 families" in page
    for sentence in said:
        assert sentence in page
    captions = captions_of(made.text)
    assert f"No row for a image tower: {LOST}" not in captions["map-knn10"]
    assert f"No row for an image tower: {LOST}" in captions["map-knn10"]
    assert f"Final models: {LOST}" in captions["scale-knn10"]
    assert "Models at initialisation" not in captions["scale-knn10"]  # all are there
    assert f"At end: {LOST}" in captions["training"]
    assert "At step 0" not in captions["training"]
    assert "is not a stage" not in captions["training"]  # step 10 is the end
    assert re.search(r"timm/vit-w32-s0 vit 71.7k – – 1; not extracted: step-10", page)
    assert findings(made.store)[0]["n_models"] == 3


def test_write_report__nothing_left_out_is_nothing_said(written: Any) -> None:
    assert notes(written.store) == []
    assert "left out" not in words_of(written.text)
    assert "not a stage" not in words_of(written.text)


def test_write_report__measure_that_is_undefined_for_a_model(tmp_path: Path) -> None:
    made = small(tmp_path, undefined=("timm/conv-w8-s0",))
    said = "1 of 4 models left out: timm/conv-w8-s0 (the measure is undefined for it)."
    assert notes(made.store) == [f"Final models: {said}"]
    assert f"Models at initialisation: {said}" in words_of(made.text)


def test_write_report__initial_checkpoint_that_failed(tmp_path: Path) -> None:
    made = small(tmp_path, failed=("timm/vit-w32-s0@step-0",))
    page = words_of(made.text)
    why = "timm/vit-w32-s0@step-0 (checkpoint {} not fully extracted)"
    at_init = why.format("at initialisation")
    assert f"Models at initialisation: 1 of 4 models left out: {at_init}." in page
    lost = f"1 of 4 models left out: {why.format('at this step')}."
    assert f"Step 0 is not a stage, because not all models have it: {lost}" in page
    assert "Final models" not in page


def test_left_out__every_reason(tmp_path: Path) -> None:
    """Models without a value, one for each reason there is."""
    store = make_store(tmp_path / "made.zarr", Made(families=("conv", "vit"), steps=(240,),
                                                   text=(), labels=("knn10",)))  # fmt: skip
    found = store.alignment("knn10")
    models = [str(m) for m in found["model_x"].values]
    n = len(models)
    related, calibrated = found["related"].values.copy(), found["calibrated"].values.copy()
    score, compared = found["score"].values.copy(), found["n_stimuli"].values.copy()
    accuracy = found["probe_accuracy_x"].values.copy()
    related[0], related[:, 0] = True, True
    calibrated[1], calibrated[:, 1] = np.nan, np.nan
    for i in (2, 3):
        score[i], score[:, i], calibrated[i], calibrated[:, i] = (np.nan,) * 4
    compared[2], compared[:, 2] = 0, 0
    accuracy[4] = np.nan
    found = remake(
        store, "knn10", {}, related=related, calibrated=calibrated, score=score,
        n_stimuli=compared, probe_accuracy_x=accuracy,
    )  # fmt: skip
    results = load_results(found)
    raw = (
        f"Final models: 3 of {n} models left out: {models[0]} (related to all others); "
        f"{models[2]} (not compared, or the comparison failed); {models[3]} (the measure is "
        "undefined for it)."
    )
    assert sentences(results, "knn10", "final", "image", ["n_parameters", "probe_accuracy"]) == [
        raw,
        f"Final models, trend over accuracy: 1 of {n} models left out: {models[4]} (accuracy not "
        "known).",
        f"Final models, calibrated: 1 of {n} models left out: {models[1]} (not calibrated).",
    ]
    assert left_out(results)[0] == raw


def test_left_out__measures_that_disagree(tmp_path: Path) -> None:
    labels = ("cka_debiased", "knn10")
    store = make_store(tmp_path / "small.zarr", replace(SMALL, labels=labels))
    score = store.alignment("knn10")["score"].values.copy()
    score[0], score[:, 0] = np.nan, np.nan
    model = str(store.alignment("knn10")["model_x"].values[0])
    final = store.alignment("knn10")["final_x"].values
    score[final] = np.where(final, np.nan, score[final])
    said = left_out(load_results(remake(store, "knn10", {}, score=score)))
    assert len(said) == 1
    assert said[0].startswith("knn10: Final models: 4 of 4 models left out: ")
    assert model in said[0]


def test_phrase__names_few_and_counts_many() -> None:
    assert phrase({}, 9) == ""
    many = [f"m{i}" for i in range(8)]
    assert phrase({"why": many[:6]}, 9) == ("6 of 9 models left out: m0, m1, m2, m3, m4, m5 (why)")
    assert phrase({"why": many, "else": ["n"]}, 9) == (
        "9 of 9 models left out: m0, m1, m2, m3, m4 and 3 more (why); n (else)"
    )


def test_is_current__not_where_a_checkpoint_failed_since(tmp_path: Path) -> None:
    """The datasets are as they were, and what is left out is not."""
    made = small(tmp_path)
    folder = made.report.html.parent
    assert is_current(made.store, folder, SUBSET)
    path = paths.tower(SET, "timm/late", "image")
    TowerGroup.create(
        open_root(made.store.path, "r+"), path, stimulus_ids=["0"], layers={"blocks.0": 2},
        attributes={"recipe_digest": "0"},
    ).add_checkpoints({"end": (5, Weights("late"))})  # fmt: skip
    assert not is_current(open_store(made.store.path), folder, SUBSET)


def test_findings__agree_with_naive_means(written: Any) -> None:
    rows = findings(written.store)
    labels = ["cka_debiased", "knn10"]
    assert [(r["modality"], r["measure"]) for r in rows] == list(product(("image", "text"), labels))
    for row in rows:
        assert tuple(row) == COLUMNS
        alignment = written.store.alignment(row["measure"])
        v = {str(name): alignment[name].values for name in alignment.variables}
        mine = [str(t) == row["modality"] for t in v["tower_x"]]
        raw, calibrated, q = [], [], []
        for i in range(len(mine)):
            for j in range(i + 1, len(mine)):
                final = v["final_x"][i] and v["final_y"][j]
                if final and mine[i] and mine[j] and not v["related"][i, j]:
                    raw.append(v["score"][i, j])
                    calibrated.append(v["calibrated"][i, j])
                    q.append(v["q"][i, j])
        assert row["raw_final"] == pytest.approx(np.mean(raw))
        assert row["calibrated_final"] == pytest.approx(np.mean(calibrated))
        assert row["significant"] == pytest.approx(np.mean(np.array(q) <= 0.05))
        n_models = {"image": 9, "text": 6}[row["modality"]]
        assert (row["n_models"], row["n_pairs"]) == (n_models, len(raw))
        convergence = written.store.convergence(row["measure"])
        end = convergence.sel(modality=row["modality"], stage="end", value="raw")
        assert row["raw_final"] == pytest.approx(float(end["mean"]))


def captions_of(page: str) -> dict[str, str]:
    """Return the words of each figure by its name."""
    found = dict(re.findall(r'<figure id="([^"]*)">(.*?)</figure>', page, re.DOTALL))
    return {name: words_of(text) for name, text in found.items()}


def test_write_report__one_more_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a maker, and a line in SECTIONS: a figure beside a table."""

    def make(results: Results) -> Iterator[Section]:
        (label,) = results.labels
        yield Section(
            f"new-{label}", "A new one", "As drawn.", b"picture", "<p id='x'>a &amp; b</p>"
        )

    maker = SectionMaker("Figures", ("alignment",), make)
    monkeypatch.setattr(write, "SECTIONS", (*write.SECTIONS[:2], maker, *write.SECTIONS[2:]))
    made = small(tmp_path)
    assert (made.report.html.parent / "new-knn10.png").read_bytes() == b"picture"
    (figure,) = re.findall('<figure id="new-knn10">(.*?)</figure>', made.text, re.DOTALL)
    assert words_of(figure).split() == ["A", "new", "one", "a", "&", "b", "As", "drawn."]
    assert "<p id='x'>a &amp; b</p>" in made.text
    assert words_of(made.text).count(" Figures ") == 1


def test_write_report__text_towers_alone(tmp_path: Path) -> None:
    """The page of image towers, in other words: nothing depends on there being any."""
    images = replace(SMALL, families=("conv", "vit", "xcit"))
    texts = replace(images, image=False, text=images.families)
    made = [
        make_store(tmp_path / n / "made.zarr", m)
        for n, m in zip("ab", (images, texts), strict=True)
    ]
    reports = [write_report(store) for store in made]
    of_image, of_text = (words_of(r.html.read_text("utf-8")) for r in reports)
    assert "image" not in of_text.lower()
    expected = of_image.replace("image", "text").replace("an text", "a text")
    expected = expected.replace(str(made[0].path), str(made[1].path))
    expected = expected.replace("on 64 stimuli", "on 64 distinct captions")
    expected = expected.replace("of 64 stimuli", "of 64 distinct captions")
    assert of_text == expected
    names = [[figure.name for figure in report.figures] for report in reports]
    assert (
        names[0] == names[1] == ["map-knn10.png", "scale-knn10.png", "training.png", "layers.png"]
    )
    rows = [findings(store) for store in made]
    assert rows[1] == [{**row, "modality": "text"} for row in rows[0]]


def test_write_report__each_modality_apart(written: Any) -> None:
    captions = captions_of(written.text)
    for name in ("scale-knn10", "training", "layers"):
        for modality, other in (("image", "text"), ("text", "image")):
            caption = captions[f"{name}-{modality}"]
            assert f", {modality} towers " in caption
            assert other not in caption
    page = words_of(written.text)
    for modality in ("image", "text"):
        assert f"Mean alignment over pairs of {modality} towers of unrelated models" in page
    assert "last layer of the final image or text tower" in page
    assert re.search(
        r"timm/conv-w8-s0 conv 4.48k image \+ 4.48k text 0.\d+ image, 0.\d+ text", page
    )


def test_write_report__pairs_across_modalities(written: Any) -> None:
    page = words_of(written.text)
    caption = (
        "Image with text: mean alignment over pairs of a final image tower and a final text tower "
        "of unrelated models, on distinct captions. measure raw alignment calibrated alignment "
        "pairs"
    )
    for label in ("cka_debiased", "knn10"):
        alignment = written.store.alignment(label)
        final, tower = (alignment[f"{n}_x"].values for n in ("final", "tower"))
        across = np.outer(final & (tower == "image"), final & (tower == "text"))
        across &= ~alignment["related"].values
        mean = number(float(alignment["score"].values[across].mean()))
        calibrated = number(float(alignment["calibrated"].values[across].mean()))
        caption += f" {label} {mean} {calibrated} {across.sum()}"
    assert caption in page


def test_write_report__modality_of_one_model(tmp_path: Path) -> None:
    """It is told apart, and said to have nothing to compare with."""
    made = small(tmp_path, text=("conv",), widths=(8,), labelled=("image",))
    alone = "1 of 1 models left out: timm/conv-w8-s0 (no other model to compare with)."
    assert f"Final models with a text tower: {alone}" in notes(made.store)
    captions = captions_of(made.text)
    assert "No pair of unrelated final text towers has both" in captions["scale-knn10-text"]
    assert "No two final text towers of unrelated" in captions["layers-text"]


def test_write_report__accuracy_of_one_modality_only(tmp_path: Path) -> None:
    made = small(tmp_path, text=("conv", "vit"), labelled=("image",))
    captions = captions_of(made.text)
    for figure in ("training-text", "scale-knn10-text"):
        assert "No probe accuracy of text towers is in the store, so" in captions[figure]
    assert "No probe accuracy" not in captions["training-image"]
    assert "last layer of the final image tower" in words_of(made.text)
    assert "No probe accuracy is in the store" not in words_of(made.text)


def test_convergence_of__leaves_out_stages_of_other_modalities() -> None:
    stage = ["step 0", "step 10", "end"]
    convergence = xr.Dataset(
        {"step": (("modality", "stage"), [[0, -1, -1], [0, 10, 10]])},
        {"stage": stage, "modality": ["image", "text"]},
    )
    results: Any = SimpleNamespace(convergence={"knn10": convergence})
    assert convergence_of(results, "knn10", "image").stage.values.tolist() == ["step 0", "end"]
    assert convergence_of(results, "knn10", "text").stage.values.tolist() == stage


def test_notes__modality_without_a_control(tmp_path: Path) -> None:
    store = make_store(tmp_path / "made.zarr", replace(SMALL, text=("conv", "vit")))
    lacking = remake(
        store, "knn10", {},
        initial_x=store.alignment("knn10").initial_x.values
        & (store.alignment("knn10").modality_x.values != "text"),
    )  # fmt: skip
    assert (
        "No text tower at initialisation was compared, so there is no random-init control of text "
        "towers."
    ) in notes(lacking)


def test_write_report__without_calibration_says_so(tmp_path: Path) -> None:
    made = small(tmp_path, calibrated=False)
    page = words_of(made.text)
    assert "Not calibrated: knn10." in page
    assert "No pair was calibrated, so there is no second panel." in page
    assert np.isnan(findings(made.store)[0]["calibrated_final"])
    assert len(made.report.figures) == 4


def test_write_report__without_accuracy_says_so(tmp_path: Path) -> None:
    made = small(tmp_path, labelled=())
    page = words_of(made.text)
    needed = "needs labels, and at least 5 stimuli of each class"
    assert f"No probe accuracy is in the store: it {needed}." in page
    assert f"No probe accuracy is in the store (it {needed}), so there is no panel" in page
    assert "so there is no panel of alignment against accuracy" in page
    assert len(made.report.figures) == 4


def test_write_report__one_checkpoint_says_so(tmp_path: Path) -> None:
    made = small(tmp_path, steps=(240,))
    page = words_of(made.text)
    assert "No encoder at initialisation was compared, so there is no random-init control." in page
    assert "Fewer than two stages of training were compared" in page
    assert "training.png" not in {f.name for f in made.report.figures}
    assert np.isnan(findings(made.store)[0]["raw_init"])


def test_write_report__unknown_steps_are_no_stages(tmp_path: Path) -> None:
    made = small(tmp_path, steps=(-1,))
    assert "Fewer than two stages of training were compared" in words_of(made.text)


def test_write_report__too_few_models_for_a_trend(tmp_path: Path) -> None:
    made = small(tmp_path, families=("conv",), widths=(8, 32))
    assert np.isnan(findings(made.store)[0]["slope_raw"])
    assert "of different families were compared" in words_of(made.text)


def test_write_report__one_model(tmp_path: Path) -> None:
    made = small(tmp_path, families=("conv",), widths=(8,))
    page = words_of(made.text)
    assert "1 model of 1 family, as 2 encoders" in page
    assert "fewer than two final encoders, so no map is drawn" in page
    assert findings(made.store)[0]["n_pairs"] == 0


def test_write_report__escapes_names(tmp_path: Path) -> None:
    made = small(tmp_path, families=("<b>r&d $x_{1}$</b>", "vit"))
    assert "<b>r" not in made.text
    assert "&lt;b&gt;r&amp;d $x_{1}$&lt;/b&gt;" in made.text
    assert "timm/br&amp;dxb-w8-s0" in made.text
    assert len(made.report.figures) == 4


def test_write_report__deep_encoders(tmp_path: Path) -> None:
    made = small(tmp_path, n_layers=14)
    assert "layers.png" in {f.name for f in made.report.figures}


def test_write_report__unfinished_measures_are_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "small.zarr", replace(SMALL, labels=tuple(SPECS)))
    del open_root(store.path, "r+")[f"convergence/{SUBSET}/knn10"]
    page = words_of(write_report(open_store(store.path)).html.read_text("utf-8"))
    assert "Compared but not yet aggregated, so left out: knn10." in page


def test_write_report__unknown_subset_is_refused(written: Any) -> None:
    with pytest.raises(InputError, match=r"there is no subset 'nope'.*made-up-n64-00000000"):
        write_report(written.store, subset="nope")
    with pytest.raises(InputError, match="there is no subset 'nope'"):
        findings(written.store, subset="nope")


def test_write_report__several_subsets(tmp_path: Path) -> None:
    make_store(tmp_path / "small.zarr", SMALL)
    store = make_store(tmp_path / "small.zarr", replace(SMALL, subset="other-n9-1"))
    with pytest.raises(InputError, match="which subset is meant"):
        write_report(store)
    report = write_report(store, subset="other-n9-1")
    assert report.html == tmp_path / "small.report" / "other-n9-1" / "index.html"


def test_write_report__nothing_aggregated_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "small.zarr", SMALL)
    del open_root(store.path, "r+")["alignment"]
    with pytest.raises(InputError, match=f"nothing has been aggregated on subset {SUBSET} yet"):
        write_report(open_store(store.path))


def test_write_report__folder_that_is_a_file_is_refused(written: Any, tmp_path: Path) -> None:
    (tmp_path / "report").write_text("")
    with pytest.raises(InputError, match="is a file, but a report is a folder"):
        write_report(written.store, tmp_path / "report")


def test_import__is_light() -> None:
    code = (
        "import sys, pipeline.report; "
        "print([m for m in ('torch', 'distributed', 'dask.distributed', 'matplotlib', 'jinja2') "
        "if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_number__signs_and_gaps() -> None:
    assert number(-0.1234) == "−0.123"
    assert number(0.5, sign=True) == "+0.500"
    assert number(-0.0001, sign=True) == number(0.0001) == "0.000"
    assert number(float("nan")) == "–"


def test_count__has_three_digits() -> None:
    assert [count(n) for n in (320, 5_543_000, 999_900, 1.2e9, float("nan"))] == [
        "320", "5.54M", "1M", "1.2B", "–",
    ]  # fmt: skip


def test_upper_limit__is_the_next_tenth() -> None:
    assert upper_limit([0.31, np.nan]) == pytest.approx(0.4)
    assert upper_limit([0.3]) == pytest.approx(0.3)
    assert upper_limit([-0.2]) == pytest.approx(0.1)
    assert upper_limit([np.nan]) == 1.0
