"""Workflows of text towers alone, of image towers alone, and of both: what each says of its own."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import xarray as xr
from zoo import WORKFLOW, Zoo, clip_entry, write_yaml

from pipeline.errors import InputError
from pipeline.store import Store, open_store

MEASURES = {"knn": {"measure": "mutual_knn", "k": 5}, "cka": {}}
SEEDS = range(5)


@pytest.fixture(scope="module")
def clips(zoo: Zoo, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Five CLIPs of the same architecture, from other seeds."""
    made = zoo.copy(tmp_path_factory.mktemp("clips") / "zoo", cluster)
    shutil.rmtree(made.path)
    models = [
        {
            **clip_entry(),
            "id": f"open_clip/c{seed}",
            "checkpoints": {"init": {"init": {"seed": seed}}},
        }
        for seed in SEEDS
    ]
    for modality in ("text", "image"):
        entries = [{**model, "towers": [modality]} for model in models]
        write_yaml(made.folder / f"{modality}.yaml", {"models": entries})
    write_yaml(made.folder / "both.yaml", {"models": models})
    workflow = {**WORKFLOW, "compare": {"measures": MEASURES, "pairs": ["final", "init"]}}
    write_yaml(made.folder / "workflow.yaml", workflow)
    return made


def run(clips: Zoo, which: str) -> tuple[Store, str]:
    """Run one workflow; return its store and the text of its report."""
    report = clips.run(f"registry={which}.yaml", f"store={which}.zarr")
    assert report.failures == {}
    assert report.report is not None
    return (
        open_store(clips.folder / f"{which}.zarr"),
        (clips.folder / report.report).read_text("utf-8"),
    )


@pytest.fixture(scope="module")
def text(clips: Zoo) -> tuple[Store, str]:
    return run(clips, "text")


@pytest.fixture(scope="module")
def image(clips: Zoo) -> tuple[Store, str]:
    return run(clips, "image")


@pytest.fixture(scope="module")
def both(clips: Zoo) -> tuple[Store, str]:
    return run(clips, "both")


def test_run__text_towers_alone(text: tuple[Store, str]) -> None:
    store, page = text
    (subset,) = store.subsets
    assert "captions" in subset
    assert set(store.catalog().tower) == {"text"}
    for label in MEASURES:
        alignment = store.alignment(label)
        assert np.isfinite(alignment.score.values).sum() == len(SEEDS) * (len(SEEDS) - 1)
        assert np.isfinite(alignment.p.values).any()
        convergence = store.convergence(label)
        assert convergence.modality.values.tolist() == ["text"]
        found = convergence["n_pairs"].sel(modality="text", predictor="n_parameters")
        assert (found.values == len(SEEDS) * (len(SEEDS) - 1) // 2).all()
    assert len(store.competence().encoder) == len(SEEDS)
    assert np.isfinite(store.competence().knn_accuracy).all()
    assert "text towers" in page
    assert "image" not in page.lower().replace("data:image/png", "").replace("<img", "")


def test_run__text_towers_alone_finds_nothing_to_do_again(
    clips: Zoo, text: tuple[Store, str]
) -> None:
    assert clips.plan("registry=text.yaml", "store=text.zarr").is_done


@pytest.mark.parametrize("modality", ["text", "image"])
def test_run__results_do_not_depend_on_other_modalities(
    modality: str, both: tuple[Store, str], request: pytest.FixtureRequest
) -> None:
    alone, _ = request.getfixturevalue(modality)
    mixed, _ = both
    for label in MEASURES:
        mine = alone.alignment(label)
        same = mixed.alignment(label).sel(encoder_x=mine.encoder_x, encoder_y=mine.encoder_y)
        # q is adjusted over all pairs of a dataset
        xr.testing.assert_equal(same.drop_vars("q"), mine.drop_vars("q"))
        convergence = alone.convergence(label)
        xr.testing.assert_equal(
            mixed.convergence(label).sel(modality=[modality], stage=convergence.stage), convergence
        )
        scores = alone.similarity(label)
        names = scores.representation_x.values
        xr.testing.assert_equal(
            mixed.similarity(label).sel(representation_x=names, representation_y=names), scores
        )
    measured = alone.competence()
    xr.testing.assert_equal(mixed.competence().sel(encoder=measured.encoder), measured)


def test_score__of_text_towers(text: tuple[Store, str], both: tuple[Store, str]) -> None:
    """One's own layers are compared with encoders of the modality, on its distinct stimuli."""
    store, _ = text
    own = store.activations("open_clip/c0", checkpoint="init", layer="blocks.1").compute()
    best = [
        each.score({"mine": own.values}, own.stimulus.values, "cka", modality=modality)
        for each, modality in ((store, None), (both[0], "text"))
    ]
    xr.testing.assert_equal(*best)
    assert best[0].encoder.values.tolist() == [f"open_clip/c{seed}@init#text" for seed in SEEDS]
    assert float(best[0].alignment.sel(encoder="open_clip/c0@init#text")) == pytest.approx(1.0)


TINY = ("compare.measures={cka: {}}", "calibrate.n_permutations=19")


@pytest.mark.parametrize("first", ["text", "both"])
def test_run__one_modality_and_then_several_in_one_store(clips: Zoo, first: str) -> None:
    """Each workflow finds its own results; scores of captions belong to the rows drawn."""
    second = {"text": "both", "both": "text"}[first]
    settings = {
        which: (*TINY, f"registry={which}.yaml", f"store=after-{first}.zarr")
        for which in ("text", "both")
    }
    assert clips.run(*settings[first]).failures == {}
    assert clips.run(*settings[second]).failures == {}
    assert all(clips.plan(*settings[which]).is_done for which in settings)
    store = open_store(clips.folder / f"after-{first}.zarr")
    images, captions = sorted(store.subsets, key=lambda key: "captions" in key)
    assert store.captions_subset(images) == captions
    assert len(store.similarity("cka", images).representation_x) == 4 * len(SEEDS)
    assert set(store.alignment("cka", images).modality_x.values) == {"image", "text"}
    assert set(store.alignment("cka", captions).modality_x.values) == {"text"}
    own = store.activations("open_clip/c0", checkpoint="init", tower="text", layer="blocks.1")
    scored = [
        store.score(
            {"mine": own.values}, own.stimulus.values, "cka", modality="text", subset=subset
        )
        for subset in (images, captions)
    ]
    xr.testing.assert_equal(*scored)
    assert scored[0].attrs["n_stimuli"] == store.subset_metadata(captions)["n_stimuli"]


def test_score__of_text_towers_where_none_were_compared(image: tuple[Store, str]) -> None:
    store, _ = image
    with pytest.raises(InputError, match="no text towers were compared on subset"):
        store.score({"mine": np.zeros((2, 2))}, ["a", "b"], "cka", modality="text")
