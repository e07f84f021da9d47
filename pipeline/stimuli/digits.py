"""The built-in default: scikit-learn's 1,797 handwritten digits, with captions.

8 × 8 grey images (UCI "Optical Recognition of Handwritten Digits", test part). 1,200 of them
train the reference models; 597 are held out. Captions name the digit and, by terciles over the
whole set, its stroke weight, slant and width: 207 distinct captions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.stimuli.memory import PixelReader, table_of
from pipeline.stimuli.source import Progress, SourceSpec
from pipeline.stimuli.table import StimulusRows, StimulusTable
from pipeline.types import Float64, Int64

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
N_TRAIN = 1200
SPLIT_SEED = 0

_WEIGHT = ("thin", "regular", "bold")
_SLANT = ("backward", "upright", "forward")
_WIDTH = ("narrow", "medium", "wide")


class DigitsSpec(SourceSpec):
    """scikit-learn's handwritten digits, with captions."""

    source: Literal["digits"] = "digits"
    """The built-in digits."""
    part: Literal["train", "test", "all"] = "test"
    """Which part of them; models trained here never see `test`."""

    def recorded(self) -> dict[str, object]:
        """Return source and part."""
        return self.model_dump(mode="json")


class DigitsSource:
    """The digits, which are in memory."""

    spec = DigitsSpec

    def index(
        self,
        spec: DigitsSpec,
        known: StimulusTable | None = None,
        progress: Progress | None = None,
    ) -> StimulusTable:
        """Return the `train` (1,200), `test` (597) or `all` (1,797) part, rows in file order."""
        return load_digits(spec.part)

    def open(self, spec: DigitsSpec, table: StimulusRows) -> PixelReader:
        """Open the pixels."""
        return PixelReader(table, lambda: pixels(spec.part))


@lru_cache(maxsize=4)
def load_digits(part: str = "test") -> StimulusTable:
    """Return the table of the `train`, `test` or `all` part."""
    ink, labels, rows = _part(part)
    captions = np.array(_captions(ink, labels), dtype=object)
    return table_of(
        f"digits-{part}",
        {"source": "digits", "part": part},
        images=pixels(part),
        captions=list(captions[rows]),
        labels=labels[rows],
        label_names=NAMES,
    )


@lru_cache(maxsize=4)
def pixels(part: str) -> list[NDArray[np.uint8]]:
    """Return the images of a part, uint8 (8, 8) each, rows in file order."""
    ink, _, rows = _part(part)
    return list(np.round(ink * (255 / 16)).astype(np.uint8)[rows])


def _part(part: str) -> tuple[Float64, Int64, Int64]:
    """Return ink (0 to 16) and classes of all digits, and the rows of a part."""
    from sklearn.datasets import load_digits as fetch
    from sklearn.model_selection import train_test_split

    bunch = fetch()
    labels = np.asarray(bunch.target, dtype=np.int64)
    rows = np.arange(len(labels))
    if part != "all":
        train, test = train_test_split(
            rows, train_size=N_TRAIN, random_state=SPLIT_SEED, stratify=labels
        )
        rows = np.sort(train if part == "train" else test)
    return bunch.images, labels, rows


def class_captions() -> list[str]:
    """Return one plain caption per class, in the order of the labels."""
    return [f"a handwritten {name}" for name in NAMES]


def _captions(ink: Float64, labels: NDArray[np.int64]) -> list[str]:
    weight = ink.sum((1, 2))
    ys, xs = np.mgrid[:8, :8].astype(float)
    cx = (ink * xs).sum((1, 2)) / weight
    cy = (ink * ys).sum((1, 2)) / weight
    dx, dy = xs - cx[:, None, None], ys - cy[:, None, None]
    slant = -(ink * dx * dy).sum((1, 2)) / (ink * dy**2).sum((1, 2))
    width = np.sqrt((ink * (dx + slant[:, None, None] * dy) ** 2).sum((1, 2)) / weight)
    words = zip(
        _tercile(weight, _WEIGHT),
        _tercile(slant, _SLANT),
        _tercile(width, _WIDTH),
        labels,
        strict=True,
    )
    return [f"a {w}, {s}, {b} handwritten {NAMES[c]}" for w, s, b, c in words]


def _tercile(values: Float64, words: tuple[str, str, str]) -> list[str]:
    return [words[i] for i in np.digitize(values, np.quantile(values, [1 / 3, 2 / 3]))]


SOURCE = DigitsSource()
