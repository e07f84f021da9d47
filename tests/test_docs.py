from __future__ import annotations

import doctest
import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import open_clip
import pytest
import timm
import torch
from nbclient import NotebookClient
from processes import PATIENCE
from ruamel.yaml import YAML
from zoo import Zoo

import pipeline
from pipeline.cluster import LocalSpec, override
from pipeline.config.model import ModelSpec
from pipeline.config.registry import load_registry
from pipeline.extraction.describe import check_fit, describe
from pipeline.extraction.torch_source import load_checkpoint, torch_source
from pipeline.measures import measure_spec
from pipeline.workflow import load_workflow
from pipeline.workflow.spec import CalibrateSpec, CompareSpec

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    p.relative_to(ROOT).as_posix() for f in (".", "docs") for p in (ROOT / f).glob("*.md")
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))["project"]


def anchors(page: str) -> set[str]:
    """Give the anchors of a page's headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jupyter_client's event loops
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_notebook__runs_on_a_store(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIENCE_STORE", str(zoo.store().path))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    NotebookClient(
        notebook,
        timeout=int(PATIENCE),
        startup_timeout=int(PATIENCE),
        resources={"metadata": {"path": ROOT / "docs"}},
    ).execute()
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in ran)
    assert "Calibration(score=" in ran[-1].outputs[0]["data"]["text/plain"]


def _schemas_script():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("schemas", ROOT / "docs" / "schemas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["models.schema.json", "workflow.schema.json"])
def test_schemas__in_step(name: str) -> None:
    written = json.loads((ROOT / "docs" / name).read_text(encoding="utf-8"))
    assert written == _schemas_script().SCHEMAS[name](), "run `make schemas`"


def _yaml_blocks() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", read("README.md"), re.DOTALL)


def test_readme__measures_are_valid() -> None:
    (block,) = (b for b in _yaml_blocks() if b.startswith("compare:"))
    spec = CompareSpec(**YAML(typ="safe").load(block)["compare"])
    assert spec.specs["knn10-prh"].preset == "prh"
    assert (spec.memory, spec.scratch) == (CompareSpec(measures={"cka": {}}).memory, "16 GiB")


def test_readme__model_entries_are_valid(tmp_path: Path) -> None:
    (block,) = (b for b in _yaml_blocks() if "models:" in b)
    path = tmp_path / "models.yaml"
    path.write_text(block, encoding="utf-8")
    registry = load_registry([path])
    assert len(registry) == len(YAML(typ="safe").load(block)["models"])
    assert {spec.id for spec in registry.select(sets=["mine"])} == set(registry.entries)


def test_clusters__recipes_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "certs").mkdir()
    for part in ("ca", "cert", "key"):
        (tmp_path / "certs" / f"{part}.pem").touch()
    kinds = set()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        (tmp_path / "cluster.yaml").write_text(block, encoding="utf-8")
        kinds.add(override(LocalSpec(), "cluster.yaml").kind)
    assert kinds == {"local", "address", "ssh", "slurm", "kubernetes"}


def full(shapes: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    """Make weights that take no space in a file."""
    return {n: torch.tensor(value, dtype=w.dtype).expand(w.shape) for n, w in shapes.items()}


def prefixed(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": weight for name, weight in weights.items()}


def write_checkpoints() -> None:
    """Write the files that docs/checkpoints.md names, with the step in the weights."""
    with torch.device("meta"):
        r18 = timm.create_model("resnet18", num_classes=100).state_dict()
        vit = timm.create_model("vit_tiny_patch16_224").state_dict()
        trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 2, "width": 12,
                       "head_width": 4},
        "text_cfg": {"context_length": 10, "vocab_size": 30, "width": 12, "heads": 3, "layers": 2},
    }  # fmt: skip
    Path("my-clip.json").write_text(json.dumps(config), encoding="utf-8")
    clip = open_clip.CLIP(**config).state_dict()
    query, momentum = full(r18, 1), full(r18, 2)
    for weights in (query, momentum):
        for name in ("weight", "bias"):
            weights[f"fc.2.{name}"] = weights.pop(f"fc.{name}")
    headless = {k: v for k, v in full(vit, 1).items() if not k.startswith("head.")}
    files: dict[str, Any] = {
        "runs/best.pth": full(vit, 5),
        "runs/last.pth": {"model": full(vit, 9), "optimizer": {}},
        "runs/dino/epoch20.pth": {
            "student": {
                **prefixed("module.backbone.", full(trunk, 1)),
                "module.head.w": query["fc.2.bias"],
            },
            "teacher": prefixed("backbone.", full(trunk, 2)),
        },
        "runs/moco.pth.tar": {
            "state_dict": {
                **prefixed("module.encoder_q.", query),
                **prefixed("module.encoder_k.", momentum),
                "module.queue": torch.zeros(2, 2),
            }
        },
        "runs/pretrained.pth": {
            "model": {**headless, "mask_token": torch.ones(1), "decoder.weight": torch.ones(2)}
        },
    }
    for step in (500, 1000):
        weights = full(r18, step)
        files[f"runs/r18/checkpoint-{step}.pth.tar"] = {"state_dict": weights, "epoch": 1}
        files[f"runs/lightning/epoch={step // 500}-step={step}.ckpt"] = {
            "state_dict": {**prefixed("model.", weights), "loss.weight": torch.ones(2)}
        }
        files[f"runs/ema/checkpoint-{step}.pth.tar"] = {
            "state_dict": full(r18, -1), "state_dict_ema": prefixed("module.", weights),
        }  # fmt: skip
    for epoch in (1, 2):
        files[f"logs/run/checkpoints/epoch_{epoch}.pt"] = {
            "epoch": epoch, "state_dict": prefixed("module.", full(clip, epoch)),
        }  # fmt: skip
    for path, content in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)


VALUES = {
    "timm/some-files": {"best": 5, "last": 9},
    "timm/labelled-files": {"middle": 5, "end": 9},
    "timm/student-and-teacher": {"student-20": 1, "teacher-20": 2},
    "timm/moco": {"moco": 1},
    "timm/without-head": {"pretrained": 1},
    "open_clip/mine": {"epoch1": 1, "epoch2": 2},
}
"""The weights of a checkpoint, where they are not the number in its label."""


def test_checkpoints__examples_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoints()
    seen = []
    for block in re.findall(r"```yaml\n(.*?)```", read("docs/checkpoints.md"), re.DOTALL):
        Path("models.yaml").write_text(block, encoding="utf-8")
        labels = re.findall(r"checkpoints:.*# → (.*)", block)
        for model, shown in zip(load_registry(["models.yaml"]), labels, strict=True):
            seen.append(model.id)
            describe(model)
            checkpoints = model.checkpoint_map()
            assert ", ".join(checkpoints) == shown
            for label, checkpoint in checkpoints.items():
                if checkpoint.file is None:
                    continue
                check_fit(model, checkpoint)
                loaded = load_checkpoint(torch_source(model.source), model, checkpoint)
                value = VALUES.get(model.id, {}).get(label) or int(label.removeprefix("step"))
                ignored = ("head.", "fc.") if checkpoint.ignore else ()
                for name, weight in loaded.state_dict().items():
                    assert name.startswith(ignored) or (weight == value).all(), name
    assert set(seen) >= VALUES.keys()


def test_readme__counts_the_registry() -> None:
    (count,) = re.findall(r"has (\d+) published ones", read("README.md"))
    assert int(count) == len(load_registry([ROOT / "models.yaml"]))


def test_readme__counts_the_measures() -> None:
    (count,) = re.findall(r"(\d+) measures", read("README.md"))
    measures = pipeline.list_measures()
    assert int(count) == len(measures)
    analytic = {
        m.name
        for m in measures
        if CalibrateSpec(method="analytic").null_method(measure_spec(m.name))[0] == "analytic"
    }
    (sentence,) = re.findall(
        r"the nulls of (.*?) come from their moments", read("README.md"), re.DOTALL
    )
    assert set(re.findall(r"`(\w+)`", sentence)) == analytic


def test_readme__names_exist() -> None:
    for name in re.findall(r"\bpipeline\.(\w+)\(", read("README.md")):
        assert hasattr(pipeline, name), name
    for name in re.findall(r"\bstore\.(\w+)\(", read("README.md")):
        assert hasattr(pipeline.Store, name), name


@pytest.mark.parametrize("page", PAGES)
def test_pages__links_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.resolve().relative_to(ROOT).as_posix()), target


@pytest.mark.parametrize("page", PAGES)
def test_pages__files_exist(page: str) -> None:
    folders = "benchmarks|docs|pipeline|tests|workflows"
    for path in re.findall(rf"`(?:python )?((?:{folders})/[\w./-]*)`", read(page)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_pages__make_commands_are_targets(page: str) -> None:
    makefile = read("Makefile")
    for target in re.findall(r"(?:^    |`)make ([\w-]+)", read(page), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_citation__agrees_with_the_package() -> None:
    citation = YAML(typ="safe").load(read("CITATION.cff"))
    assert citation["version"] == project()["version"]
    assert citation["license"] == project()["license"]


def test_changelog__has_the_version() -> None:
    assert "## [Unreleased]" in read("CHANGELOG.md")
    assert project()["version"] in read("CHANGELOG.md")


@pytest.mark.parametrize("name", [n for n in pipeline.__all__ if n not in ("Store", "__version__")])
def test_docstrings__examples_run(
    name: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "quickstart.zarr").symlink_to(zoo.path)
    monkeypatch.chdir(tmp_path)
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(pipeline, name), name, globs={})
    assert test.examples, "a public function shows how it is called"
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


def test_quickstart__is_a_valid_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    workflow, _ = load_workflow("workflows/quickstart.yaml")
    chosen = load_registry(workflow.registry).select(sets=workflow.models.sets)
    assert all(isinstance(spec, ModelSpec) for spec in chosen)
    assert len({spec.family for spec in chosen}) >= 5
