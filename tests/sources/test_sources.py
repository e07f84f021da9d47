"""What sources declare without being imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.config.model import Checkpoint, ModelSpec
from pipeline.modality import MODALITY
from pipeline.sources import SOURCES, packages


def test_packages__of_all_sources_once() -> None:
    assert packages() == ("torch", "torchvision", "pillow", "timm", "open-clip-torch")


@pytest.mark.parametrize("name", SOURCES)
def test_source__towers_have_a_modality(name: str) -> None:
    assert set(SOURCES[name].towers) <= set(MODALITY)


def test_source__files_of_an_entry() -> None:
    plain = ModelSpec(source="open_clip", name="RN50", pretrained="cc12m")
    folder = ModelSpec(source="open_clip", name="local-dir:some/where")
    other = ModelSpec(source="timm", name="local-dir:some")
    assert plain.folder is plain.vocabulary is other.folder is None
    assert str(folder.folder) == "some/where"
    assert SOURCES["open_clip"].folder_name("some/where") == folder.name


@pytest.mark.parametrize(
    ("spec", "checkpoint", "name"),
    [
        (ModelSpec(source="timm", name="vit.a"), Checkpoint(), "vit.a"),
        (ModelSpec(source="timm", name="vit.a"), Checkpoint(pretrained="b"), "vit.b"),
        (ModelSpec(source="timm", name="vit"), Checkpoint(), "vit"),
        (ModelSpec(source="open_clip", name="a.b"), Checkpoint(), "a.b"),
        (ModelSpec(source="open_clip", name="a.b"), Checkpoint(pretrained="c"), "a.b.c"),
    ],
)
def test_published_name__cases(spec: ModelSpec, checkpoint: Checkpoint, name: str) -> None:
    assert SOURCES[spec.source].published_name(spec, checkpoint.pretrained) == name


def test_import__loads_no_library() -> None:
    code = (
        "import sys; import pipeline.extraction.weights, pipeline.config.registry\n"
        "print([m for m in ('torch', 'timm', 'open_clip') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "[]"
