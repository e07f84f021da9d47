"""Reference models as a stage of a workflow: trained once, read as any run is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from zoo import PIXELS, WORKFLOW, Zoo, tree, write_yaml

from pipeline.errors import InputError

RESNET = {
    "source": "timm",
    "name": "resnet18",
    "sets": ["tiny"],
    "preprocessing": {**PIXELS, "input_size": 8},
    "arguments": {"num_classes": 10, "layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4]},
}
CLIP = {
    "source": "open_clip",
    "name": "tiny-trained-clip",
    "sets": ["tiny"],
    "config": "clip.json",
    "preprocessing": {k: v for k, v in PIXELS.items() if k != "crop_pct"},
}


@pytest.fixture
def trained(tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    monkeypatch.setattr("pipeline.workflow.run._Run.write_report", lambda *_: None)
    reference = Path(__file__).parents[2] / "workflows/open_clip/digits-clip-w16.json"
    config = json.loads(reference.read_text())
    config["text_cfg"]["tokenizer_kwargs"]["bpe_path"] = "made/bpe.txt.gz"
    (tmp_path / "clip.json").write_text(json.dumps(config))
    models = [
        {**entry, "id": f"{entry['source']}/s{seed}", "training": {"seed": seed},
         "checkpoints": f"made/{entry['source']}-s{seed}/step-{{step}}.safetensors"}
        for entry, seed in ((RESNET, 0), (RESNET, 1), (CLIP, 0))
    ]  # fmt: skip
    training = {
        "steps": 4,
        "checkpoint_steps": [0, 2],
        "stimuli": {"source": "digits", "part": "train"},
        "held_out": {"source": "digits", "part": "test"},
    }
    write_yaml(tmp_path / "registry.yaml", {"training": training, "models": models})
    write_yaml(tmp_path / "workflow.yaml", {**WORKFLOW, "train": "registry.yaml"})
    return Zoo(tmp_path, cluster)


def test_train__once_and_again_where_it_is_gone(trained: Zoo) -> None:
    plan = trained.plan()
    assert plan.n_tasks["train"] == 3
    assert [c.subset.kind for c in plan.context.comparisons] == ["images", "captions"]
    first = trained.run()
    assert (first.failures, first.tasks["train"], first.tasks["extract"]) == ({}, 3, 3)
    assert trained.plan().is_done
    assert not any(trained.run().tasks.values())

    store, files = tree(trained.path), tree(trained.folder / "made")
    shutil.rmtree(trained.folder / "made")
    left = trained.plan()
    assert left.n_tasks["train"] == 3
    assert not left.is_done
    again = trained.run()
    assert again.tasks["train"] == 3
    assert sum(again.tasks.values()) == 3  # the same weights: nothing else to do
    assert {f: d for f, d in tree(trained.folder / "made").items() if f.endswith("tensors")} == {
        f: d for f, d in files.items() if f.endswith("tensors")
    }
    assert tree(trained.path) == store


def test_plan__trained_by_older_seeds(trained: Zoo) -> None:
    trained.run()
    for record in (trained.folder / "made").rglob("training.json"):
        old = json.loads(record.read_text())
        record.write_text(json.dumps({**old, "recipe_digest": "of an older rule"}))
    files = tree(trained.folder / "made")
    with pytest.raises(InputError, match=r"(?s)3 reference models .* older rule; .*--replace "):
        trained.run()
    assert tree(trained.folder / "made") == files  # refused before anything is trained
