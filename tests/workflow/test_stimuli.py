"""Workflows on a person's own stimuli: from YAML to results, and again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pictures import encoded, photo
from PIL import Image
from safetensors.torch import load_file
from zoo import TIMM, WORKFLOW, Zoo, tree, write_yaml

from pipeline.errors import InputError, StoreError
from pipeline.extraction import extract
from pipeline.lru import LruCache
from pipeline.stimuli import images

N = 40
CLASSES = ("ant", "bee")


@pytest.fixture(scope="module")
def whole(zoo: Zoo, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """The zoo's networks on a folder of pictures of two classes, with captions beside it."""
    made = zoo.copy(tmp_path_factory.mktemp("pictures") / "zoo", cluster)
    shutil.rmtree(made.path)
    lines = ["image,caption,label"]
    for i in range(N):
        name = f"pets/{CLASSES[i % 2]}/{i}.png"
        (made.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (made.folder / name).write_bytes(encoded(photo(i, 20, 30)))
        lines.append(f"{name},a {('small', 'large', 'wide')[i % 3]} picture {i},{CLASSES[i % 2]}")
    (made.folder / "pets.csv").write_text("\n".join(lines))
    workflow = {
        **WORKFLOW,
        "stimuli": {"source": "images", "root": "pets", "labels": "folders"},
        "subset": {"n": 32, "seed": 0, "stratify": "label"},
        "compare": {"measures": {"knn": {"measure": "mutual_knn", "k": 5}}, "pairs": ["final"]},
        "calibrate": {"n_permutations": 19, "pairs": ["final"]},
        "models": {"ids": ["timm/*"]},
    }
    write_yaml(made.folder / "workflow.yaml", workflow)
    report = made.run()
    assert report.failures == {}
    return made


@pytest.fixture
def pets(whole: Zoo, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    monkeypatch.setattr("pipeline.workflow.run._Run.write_report", lambda *_: None)
    return whole.copy(tmp_path / "zoo", cluster)


def test_run__activations_are_those_of_plain_code(whole: Zoo) -> None:
    store = whole.store()
    stimuli = store.stimuli()
    architecture, arguments = TIMM["timm/vit-b"]
    network: Any = timm.create_model(architecture, **arguments).eval()
    network.load_state_dict(load_file(whole.folder / "run/vit-b/step-10.safetensors"))
    inputs = []
    for path in stimuli["path"].values:
        picture = Image.open(whole.folder / "pets" / path).convert("RGB")
        # scaled so that the shorter side is 16 pixels, then cropped in the middle
        picture = picture.resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
        inputs.append(np.asarray(picture, np.float32) / 127.5 - 1)
    batch = torch.from_numpy(np.stack(inputs)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        blocks = network.forward_intermediates(
            batch, intermediates_only=True, return_prefix_tokens=True
        )
    found = store.activations("timm/vit-b", checkpoint="step10", layer="blocks.1")
    np.testing.assert_allclose(found.values, blocks[-1][1][:, 0].numpy(), rtol=1e-4, atol=1e-5)
    assert list(found["stimulus"].values) == list(stimuli["stimulus"].values)


def test_run__again_has_nothing_to_do_and_reads_no_image(
    pets: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(pets.run().tasks.values()) == {0}  # copies have been changed later, so are read
    monkeypatch.setattr(images, "decode", lambda _: pytest.fail("a file was read again"))
    monkeypatch.setattr("pipeline.workflow.plan._indexed.values", {})
    assert pets.plan().is_done
    before = tree(pets.path)
    assert set(pets.run().tasks.values()) == {0}
    assert tree(pets.path) == before


def test_run__labels_by_folder_are_measured(whole: Zoo) -> None:
    store = whole.store()
    assert sorted(set(store.stimuli()["label_name"].values)) == list(CLASSES)
    accuracy = store.competence()["knn_accuracy"].values
    assert np.isfinite(accuracy).all()
    rows = store.rows(store.subset())
    labels = store.stimuli()["label"].values[rows]
    assert np.bincount(labels).tolist() == [16, 16]


def test_run__renamed_files_are_the_same_set(pets: Zoo) -> None:
    """Order and ids are those of the contents; only where files lie is written anew."""
    for k, file in enumerate(sorted((pets.folder / "pets").rglob("*.png"))):
        file.rename(file.with_name(f"renamed-{97 * k % 101}.png"))
    assert pets.plan().is_done
    assert set(pets.run().tasks.values()) == {0}
    assert all("renamed" in p for p in pets.store().stimuli()["path"].values)
    assert len(pets.store().sets) == 1
    # and a model that is added reads them where they lie now
    settings = ("models={ids: [timm/*]}", "extract.batch_size=7")
    assert pets.run(*settings, replace=("timm/conv",)).failures == {}


def test_run__other_labels_are_measured_anew(pets: Zoo) -> None:
    """Classes change what is measured, and neither activations nor their comparison."""
    setting = "subset={n: 30, seed: 1}"
    assert pets.run(setting).tasks["competence"] == 1
    assert pets.plan(setting).is_done
    (pets.folder / "pets/cat").mkdir()
    for file in sorted((pets.folder / "pets/ant").glob("1*.png")):
        file.rename(pets.folder / "pets/cat" / file.name)
    report = pets.run(setting)
    assert {stage for stage, n in report.tasks.items() if n} == {"competence"}
    assert len(set(pets.store().stimuli()["label_name"].values)) == 3
    assert pets.plan(setting).is_done


def test_run__a_file_that_changes_during_the_run_fails_its_models(
    pets: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_inputs", LruCache(2**20, size=lambda batch: batch.nbytes))
    plan = pets.plan(replace=("timm/conv",))
    victim = str(plan.context.stimuli.columns["path"][3])
    (pets.folder / "pets" / victim).write_bytes(encoded(photo(777)))
    monkeypatch.setattr("pipeline.workflow.run.plan_workflow", lambda *a, **k: plan)
    report = pets.run(replace=("timm/conv",))
    assert report.exit_code == 1
    why = report.failures["timm/conv@end"]
    assert f"images: {victim} is not the image that the set has" in why
    assert "run again" in why


def test_run__a_text_tower_on_captions_of_a_manifest(pets: Zoo) -> None:
    manifest = "stimuli={source: images, manifest: pets.csv}"
    report = pets.run(manifest, "models={ids: [open_clip/clip, timm/vit-b]}")
    assert report.failures == {}
    store = pets.store()
    (key,) = (s for s in store.sets if "caption" in store.stimuli(s))
    assert {(e.model, e.tower) for e in store.encoders(key)} == {
        ("open_clip/clip", "image"), ("open_clip/clip", "text"), ("timm/vit-b", "image"),
    }  # fmt: skip
    assert store.stimuli(key)["caption"].values[0] == "a small picture 0"
    assert [str(p) for p in store.stimuli(key)["path"].values] == [
        f"pets/{CLASSES[i % 2]}/{i}.png" for i in range(N)
    ]


def test_score__activations_of_other_captions_are_refused(pets: Zoo) -> None:
    """The key of a set is that of its images: when captions change, old activations stay."""
    manifest = "stimuli={source: images, manifest: pets.csv}"
    assert pets.run(manifest, "models={ids: [open_clip/clip]}").failures == {}
    file = pets.folder / "pets.csv"
    file.write_text(file.read_text().replace("picture 3,", "photograph 3,"))
    assert pets.run(manifest, "models={ids: [timm/vit-b]}").failures == {}
    store = pets.store()
    (key,) = (s for s in store.sets if "caption" in store.stimuli(s))
    (subset,) = (s for s in store.subsets if store.subset_metadata(s)["set"] == key)
    ids, x = store.stimuli(key)["caption_id"].values, np.random.default_rng(0).normal(size=(N, 3))
    with pytest.raises(StoreError, match=r"open_clip/clip@step10#text: its activations are of other"
                       r" text stimuli .* --replace open_clip/clip"):  # fmt: skip
        store.score({"x": x}, ids, "knn", modality="text", subset=subset)


REFUSED = {
    "a text tower without captions": (
        "models={ids: [open_clip/clip]}",
        "registry.yaml, line [0-9]+: stimuli 'pets': they have no captions, which text towers need",
    ),
    "an image tower without images": (
        "stimuli={source: text, path: pets.csv, text: caption}",
        "stimuli 'pets': they have no images, which image towers need",
    ),
    "a column that is not there": (
        "subset={n: 8, stratify: lable}",
        r"subset: stimuli 'pets' have no column 'lable'\. Did you mean 'label'",
    ),
    "an unknown source": (
        "stimuli={source: image}",
        r"--set stimuli=.*: stimuli: there is no source 'image'\. Did you mean 'images'",
    ),
    "no source at all": (
        "stimuli=digits", r"--set stimuli=digits: 'stimuli': expected \{source: …\}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_plan__refuses(pets: Zoo, what: str) -> None:
    setting, message = REFUSED[what]
    before = tree(pets.path)
    with pytest.raises(InputError, match=message):
        pets.plan(setting)
    assert tree(pets.path) == before


def test_plan__bad_files_are_all_named_and_nothing_is_written(pets: Zoo) -> None:
    bad = [pets.folder / "pets/ant/0.png", pets.folder / "pets/bee/1.png"]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:60])
    before = tree(pets.path)
    with pytest.raises(InputError, match=r"2 of 40 cannot be used:\n  ant/0.png: .*\n  bee/1.png:"):
        pets.run()
    assert tree(pets.path) == before
    keys = "source: images, root: pets, labels: folders, on_bad_stimulus: drop"
    report = pets.run(f"stimuli={{{keys}}}")
    assert report.failures == {}
    assert sorted(pets.store().stimuli(s).sizes["stimulus"] for s in pets.store().sets) == [38, 40]
