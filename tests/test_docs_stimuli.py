"""The how-tos on stimuli are run as they are printed, on files made for them."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from pictures import encoded, photo, write_tar
from zoo import Zoo, inside, read_yaml, write_yaml

from pipeline.stimuli import SOURCES
from pipeline.stimuli.decode import RULES
from pipeline.store import open_store
from pipeline.workflow import load_workflow, run_workflow

PAGE = (Path(__file__).parent.parent / "docs" / "stimuli.md").read_text(encoding="utf-8")
WORKFLOWS = re.findall(r"```yaml\n(# workflow\.yaml\n.*?)```", PAGE, re.DOTALL)
N = 36


def write_files(folder: Path) -> None:
    """Write what the page's workflows name."""
    rows = ["image,description,label,artist"]
    for i in range(N):
        name = f"{('cat', 'dog')[i % 2]}/{i}.png"
        path = folder / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(i, 16, 16)))
        rows.append(f"pets/{name},a picture {i},{path.parent.name},somebody")
    (folder / "pets.csv").write_text("\n".join(rows))
    (folder / "captions.txt").write_text("".join(f"a bold thing {i}\n" for i in range(N)))
    rng = np.random.default_rng(0)
    np.save(folder / "pixels.npy", rng.integers(0, 256, (N, 8, 8), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(N) % 3)
    (folder / "ids.txt").write_text("".join(f"pic {i}\n" for i in range(N)))
    birds = [encoded(photo(100 + i, 16, 16)) for i in range(N)]
    features = {"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))}
    columns = {
        "image": [{"bytes": bird, "path": None} for bird in birds],
        "text": [[f"bird {i}", f"a bird {i}"] for i in range(N)],
    }
    (folder / "birds").mkdir()
    split = datasets.Dataset.from_dict(columns, datasets.Features(features))
    split.to_parquet(folder / "birds" / "test.parquet")
    for shard in range(2):
        members = {}
        for i in range(shard, N, 2):
            members |= {f"{i}.png": birds[i], f"{i}.txt": b"a bird", f"{i}.cls": b"%d" % (i % 3)}
        write_tar(folder / "shards" / f"{shard:03d}.tar", list(members.items()))
    registry = read_yaml(folder / "registry.yaml")
    models = {model["id"]: model for model in registry["models"]}
    clip = {**models["open_clip/clip"], "towers": ["text"], "sets": ["text"]}
    init = {"checkpoints": {"init": {"init": {"seed": 1}}}}
    images = [{**models[name], "sets": ["all"], **init} for name in ("timm/vit-a", "timm/vit-b")]
    write_yaml(
        folder / "registry.yaml", {"models": [*images, clip, {**clip, **init, "id": "open_clip/b"}]}
    )


@pytest.mark.parametrize("number", range(len(WORKFLOWS)))
def test_workflow__runs_as_it_is_printed(
    zoo: Zoo, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("pipeline.workflow.run._Run.write_report", lambda *_: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = zoo.copy(tmp_path / "zoo", cluster)
    write_files(made.folder)
    (made.folder / "workflow.yaml").write_text(WORKFLOWS[number])
    with inside(made.folder):
        workflow, _ = load_workflow("workflow.yaml")
        report = run_workflow(workflow, cluster=cluster)
        assert report.failures == {}
        store = open_store(workflow.store)
        assert len(store.encoders()) >= 1
        for label in workflow.compare.specs:
            assert np.isfinite(store.similarity(label).values).any()


def test_readme__stimuli_are_valid(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    (block,) = (b for b in blocks if b.startswith("stimuli:"))
    rest = "store: s.zarr\nregistry: r.yaml\nmodels: {ids: [a]}\ncompare: {measures: {cka: {}}}\n"
    (tmp_path / "w.yaml").write_text(rest + block)
    workflow, _ = load_workflow(tmp_path / "w.yaml")
    assert (workflow.stimuli.source, workflow.subset.stratify) == ("images", "label")


def test_page__has_every_source_and_rule() -> None:
    for source in SOURCES:
        assert f"| `{source}` |" in PAGE
    for rule in RULES:
        assert rule in PAGE
    assert len(WORKFLOWS) == PAGE.count("```yaml")
