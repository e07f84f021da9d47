"""The identity of weights: files by content, seeds, published ones by name and revision."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.model import Checkpoint, Init, ModelSpec
from pipeline.extraction.weights import weights_identity
from pipeline.types import Weights

SPEC = ModelSpec(source="timm", name="resnet18.a1_in1k")
CLIP = ModelSpec(source="open_clip", name="RN50", pretrained="cc12m")


@pytest.mark.parametrize(
    ("spec", "checkpoint", "digest"),
    [
        (SPEC, Checkpoint(init=Init(seed=3)), f"init:seed=3@{SPEC.initial_seed(3):016x}"),
        (SPEC, Checkpoint(), "timm:resnet18.a1_in1k@published"),
        (SPEC, Checkpoint(revision="abc"), "timm:resnet18.a1_in1k@abc"),
        (CLIP, Checkpoint(), "open_clip:RN50.cc12m@published"),
        (CLIP, Checkpoint(pretrained="yfcc15m"), "open_clip:RN50.yfcc15m@published"),
    ],
)
def test_weights_identity__without_a_file(
    spec: ModelSpec, checkpoint: Checkpoint, digest: str
) -> None:
    assert weights_identity(spec, checkpoint) == Weights(digest, -1, -1)
    assert weights_identity(spec, checkpoint, Weights("other", 3, 4)) == Weights(digest, -1, -1)


def test_weights_identity__of_initialisations() -> None:
    """One seed of two architectures, and what was once drawn from the bare seed, are apart."""
    first, second = (weights_identity(s, Checkpoint(init=Init(seed=0))) for s in (SPEC, CLIP))
    assert first.digest != second.digest
    assert "init:seed=0" not in (first.digest, second.digest)
    # a refusal shows the beginning of both
    assert first.digest[:23] != "init:seed=0"


def test_weights_identity__of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"weights")
    os.utime(file, ns=(5, 7_000_000_001))
    found = weights_identity(SPEC, Checkpoint(file=str(file)))
    assert found == Weights(f"sha256:{hashlib.sha256(b'weights').hexdigest()}", 7, 7_000_000_001)


def test_weights_identity__hashed_only_where_size_or_time_differ(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"weights")
    os.utime(file, ns=(0, 1000))
    checkpoint = Checkpoint(file=str(file))
    digest = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    known = Weights("believed", 7, 1000)
    assert weights_identity(SPEC, checkpoint, known) == known
    assert weights_identity(SPEC, checkpoint, Weights("believed", 8, 1000)).digest == digest
    assert weights_identity(SPEC, checkpoint, Weights("believed", 7, 1001)).digest == digest
    file.write_bytes(b"another")  # of the same size, at another time
    os.utime(file, ns=(0, 2000))
    changed = weights_identity(SPEC, checkpoint, known)
    assert changed.digest == f"sha256:{hashlib.sha256(b'another').hexdigest()}"


def test_weights_identity__of_a_choice_within_a_file(tmp_path: Path) -> None:
    """The same file with another key, prefix or list of ignored names is other weights."""
    file = tmp_path / "w.pt"
    file.write_bytes(b"weights")
    plain = weights_identity(SPEC, Checkpoint(file=str(file)))
    choices: list[dict[str, Any]] = [
        {"key": "ema"}, {"key": "ema", "prefix": "a"}, {"key": ""}, {"prefix": "ema"},
        {"ignore": "fc.*"}, {"ignore": ["fc.weight"]},
        {"ignore": ["b", "a"]},
    ]  # fmt: skip
    found = [weights_identity(SPEC, Checkpoint(file=str(file), **c)) for c in choices]
    assert len({plain.digest, *(f.digest for f in found)}) == 1 + len(choices)
    assert found[1].digest == f'{plain.digest} {{"key": "ema", "prefix": "a."}}'
    initial = f"{SPEC.initial_seed(0):016x}"  # another architecture has other initial values
    assert found[4].digest == f'{plain.digest} {{"ignore": ["fc.*"], "initial": "{initial}"}}'
    swapped = weights_identity(SPEC, Checkpoint(file=str(file), ignore=("a", "b")))
    assert swapped == found[-1]
    for choice, identity in zip(choices, found, strict=True):
        checkpoint = Checkpoint(file=str(file), **choice)
        assert weights_identity(SPEC, checkpoint, identity) == identity
        assert weights_identity(SPEC, checkpoint, plain) == identity
        assert weights_identity(SPEC, Checkpoint(file=str(file)), identity) == plain


def test_weights_identity__touched_file_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"weights")
    before = weights_identity(SPEC, Checkpoint(file=str(file)))
    os.utime(file, ns=(0, 1000))
    after = weights_identity(SPEC, Checkpoint(file=str(file)), before)
    assert after.digest == before.digest
    assert after.mtime_ns == 1000


def test_weights_identity__of_a_folder(tmp_path: Path) -> None:
    spec = ModelSpec(source="open_clip", name=f"local-dir:{tmp_path}", id="open_clip/mine")
    for name, content in (("open_clip_config.json", b"{}"), ("open_clip_model.safetensors", b"w")):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, ns=(0, 1000))
    known = weights_identity(spec, Checkpoint())
    assert (known.size, known.mtime_ns) == (3, 1000)
    assert weights_identity(spec, Checkpoint(), known) == known
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"v")
    assert weights_identity(spec, Checkpoint(), known).digest != known.digest
