"""The embedded stimuli: what they are never changes, or every stored result is orphaned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits as bunch

from pipeline.config.yaml import load_yaml, validate
from pipeline.errors import InputError
from pipeline.stimuli import SubsetSpec, content_id, draw, index_stimuli
from pipeline.stimuli.digits import NAMES, DigitsSpec, class_captions, load_digits, pixels
from pipeline.stimuli.ids import hex_ids

GOLDEN = {
    "train": (1200, "da76d5078996df2aca02f723fd6a8d7b4a34409dbee44ec5adeedb0cafabd009",
              "a89960723987167e0213300b8deda2d9e184310fe97be268703ba7bf15069cda"),
    "test": (597, "50462c65e68b85e20494e087355bcf1ca120d754f79cfb5add9bb6309e59dec2",
             "4b1e0c5b4c014ab3f3f7a549e4604c87b232bab49e6068ba859ea8ea264b11a8"),
    "all": (1797, "566091cbdd6a9a9af445b87d5e78a304dcc4d07c27e2a27da868a727aee33739",
            "e4154f67d0981a50b563954e8a7a845d918e2f271d7aeebbd3bb88a988a21409"),
}  # fmt: skip


def image_ids(part: str) -> list[str]:
    return list(hex_ids(load_digits(part).ids("image")))


def captions(part: str) -> list[str]:
    return [str(c) for c in load_digits(part).columns["caption"]]


@pytest.mark.parametrize("part", GOLDEN)
def test_load_digits__golden(part: str) -> None:
    size, images, captions = GOLDEN[part]
    digits = load_digits(part)
    assert len(digits) == size
    assert digits.fingerprint == images
    assert digits.fingerprint_of("text") == captions
    assert digits.key == f"digits-{part}-{images[:8]}"
    assert digits.source == {"source": "digits", "part": part}


def test_load_digits__first_ids() -> None:
    assert image_ids("all")[0] == "75b41e1649c892df"
    assert image_ids("test")[0] == "e55c0efb671c1567"
    assert hex_ids(load_digits("all").ids("text"))[0] == "1880282384241042"
    first = np.round(bunch().images[0] * 255 / 16).astype(np.uint8)
    assert content_id(b"(8, 8)", first.tobytes()) == "75b41e1649c892df"


def test_load_digits__subset_of_the_quickstart() -> None:
    assert draw(load_digits("test"), SubsetSpec(n=512, seed=0)).key == "digits-test-n512-8f615389"


def test_load_digits__parts_are_disjoint_and_make_the_whole() -> None:
    train, test, whole = (set(image_ids(p)) for p in ("train", "test", "all"))
    assert len(train) == 1200
    assert len(test) == 597
    assert not train & test
    assert train | test == whole
    assert len(whole) == 1797  # no two images are the same


@pytest.mark.parametrize("part", ["train", "test"])
def test_load_digits__rows_in_file_order(part: str) -> None:
    place = {i: k for k, i in enumerate(image_ids("all"))}
    assert np.all(np.diff([place[i] for i in image_ids(part)]) > 0)


@pytest.mark.parametrize("part", ["train", "test"])
def test_load_digits__classes_are_balanced(part: str) -> None:
    def shares(p: str) -> np.ndarray:
        labels = load_digits(p).labels
        assert labels is not None
        return np.bincount(labels, minlength=10) / len(labels)

    np.testing.assert_allclose(shares(part), shares("all"), atol=0.002)


def test_load_digits__pixels_and_labels_are_the_files() -> None:
    digits = load_digits("all")
    assert digits.labels is not None
    np.testing.assert_array_equal(digits.labels, bunch().target)
    np.testing.assert_allclose(np.stack(pixels("all")) / 255 * 16, bunch().images, atol=0.04)
    assert {i.shape for i in pixels("all")} == {(8, 8)}
    assert {i.dtype for i in pixels("all")} == {np.dtype(np.uint8)}
    names = digits.columns["label_name"]
    assert [str(n) for n in names] == [NAMES[i] for i in digits.labels]


def test_captions__agree_with_label_and_row() -> None:
    for part in GOLDEN:
        digits = load_digits(part)
        assert digits.labels is not None
        for caption, label in zip(captions(part), digits.labels, strict=True):
            assert caption.endswith(f" handwritten {NAMES[label]}")
    by_id = dict(zip(image_ids("all"), captions("all"), strict=True))
    assert [by_id[i] for i in image_ids("test")] == captions("test")


def test_captions__distinct() -> None:
    counts = {p: len(set(captions(p))) for p in GOLDEN}
    assert counts == {"train": 193, "test": 166, "all": 207}
    assert len(draw(load_digits("test"), SubsetSpec(n=512, seed=0)).distinct_captions()) == 159


def words(position: int) -> np.ndarray:
    split = [c.replace("a ", "", 1).replace(",", "").split() for c in captions("all")]
    return np.array([s[position] for s in split])


def test_captions__terciles() -> None:
    for position, expected in enumerate(
        ({"thin", "regular", "bold"}, {"backward", "upright", "forward"},
         {"narrow", "medium", "wide"})
    ):  # fmt: skip
        names, counts = np.unique(words(position), return_counts=True)
        assert set(names) == expected
        assert counts.min() >= 590
        assert counts.max() <= 608


def test_captions__weight_is_the_ink() -> None:
    ink, weight = bunch().images.sum((1, 2)), words(0)
    assert ink[weight == "thin"].max() < ink[weight == "regular"].min()
    assert ink[weight == "regular"].max() < ink[weight == "bold"].min()


def moments(image: np.ndarray) -> tuple[float, float]:
    """Return slant (x per y, upwards) and width across the slant, pixel by pixel."""
    total = image.sum()
    cx = sum(image[y, x] * x for y in range(8) for x in range(8)) / total
    cy = sum(image[y, x] * y for y in range(8) for x in range(8)) / total
    xy = sum(image[y, x] * (x - cx) * (y - cy) for y in range(8) for x in range(8))
    yy = sum(image[y, x] * (y - cy) ** 2 for y in range(8) for x in range(8))
    slant = -xy / yy
    across = sum(image[y, x] * (x - cx + slant * (y - cy)) ** 2 for y in range(8) for x in range(8))
    return slant, float(np.sqrt(across / total))


def test_captions__slant_and_width_by_hand() -> None:
    slants, widths = np.array([moments(i) for i in bunch().images[::7]]).T
    slant, width = words(1)[::7], words(2)[::7]
    assert slants[slant == "backward"].max() < slants[slant == "upright"].min()
    assert slants[slant == "upright"].max() < slants[slant == "forward"].min()
    assert widths[width == "narrow"].max() < widths[width == "medium"].min()
    assert widths[width == "medium"].max() < widths[width == "wide"].min()


def test_captions__forward_leans_to_the_right_at_the_top() -> None:
    upper_right = np.eye(8)[::-1] * 16  # a stroke like /
    assert moments(upper_right)[0] > 0


def test_class_captions__by_label() -> None:
    assert class_captions()[3] == "a handwritten three"
    assert len(class_captions()) == 10


# spec


def test_index_stimuli__default_is_the_test_part() -> None:
    assert index_stimuli(DigitsSpec()).key == load_digits("test").key
    assert index_stimuli(DigitsSpec(part="all")).name == "digits-all"


def test_stimuli_spec__fault(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("stimuli:\n  source: digits\n  prat: all\n")
    parsed = load_yaml(tmp_path / "w.yaml")
    with pytest.raises(
        InputError, match=r"w.yaml, line 3: unknown key 'prat'. Did you mean 'part'"
    ):
        validate(DigitsSpec, parsed.data["stimuli"], parsed, ("stimuli",))
    with pytest.raises(ValidationError, match="'train', 'test' or 'all'"):
        DigitsSpec(part="half")  # type: ignore[arg-type]
