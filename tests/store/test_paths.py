"""The folders' names are the store's format: they may not change unnoticed."""

from __future__ import annotations

from pipeline.store import paths


def test_paths__are_those_of_format_2() -> None:
    assert paths.array(paths.stimuli("s"), "label") == "stimuli/s/label"
    assert paths.tower("s", "timm/x", "image") == "activations/s/timm/x/image"
    assert paths.scores("u", "cka") == "measures/u/cka"
    assert paths.null("u", "cka", "analytic-v2-99-seed0") == (
        "calibration/u/cka/analytic-v2-99-seed0"
    )
    assert paths.dataset("competence", "u") == "competence/u"
    assert paths.dataset("alignment", "u", "cka") == "alignment/u/cka"
    assert paths.run_log("one") == "runs/log/one.jsonl"
    assert paths.metadata("measures") == "measures/zarr.json"


def test_tower_parts__inverts_tower() -> None:
    parts = ("s", "open_clip/x", "text")
    assert paths.tower_parts(paths.tower(*parts)) == parts
