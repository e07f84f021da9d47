from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from processes import PATIENCE
from ruamel.yaml import YAML
from zoo import Zoo

import pipeline
from pipeline.cluster import LocalSpec, override
from pipeline.config.model import ModelSpec
from pipeline.config.registry import load_registry
from pipeline.workflow import load_workflow
from pipeline.workflow.spec import CompareSpec

ROOT = Path(__file__).parent.parent


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


def _readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def _yaml_blocks() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", _readme(), re.DOTALL)


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


def test_readme__counts_the_registry() -> None:
    (count,) = re.findall(r"has (\d+) published ones", _readme())
    assert int(count) == len(load_registry([ROOT / "models.yaml"]))


def test_readme__names_exist() -> None:
    for name in re.findall(r"\bpipeline\.(\w+)\(", _readme()):
        assert hasattr(pipeline, name), name
    for name in re.findall(r"\bstore\.(\w+)\(", _readme()):
        assert hasattr(pipeline.Store, name), name


def test_readme__commands_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", _readme(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_quickstart__is_a_valid_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    workflow, _ = load_workflow("workflows/quickstart.yaml")
    chosen = load_registry(workflow.registry).select(sets=workflow.models.sets)
    assert all(isinstance(spec, ModelSpec) for spec in chosen)
    assert len({spec.family for spec in chosen}) >= 5
