"""An ordered base set of stimuli with content ids, which every source yields; its subsets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.types import Modality

ID_DIGITS = 16  # 64 bits: collisions are negligible below 10^8 items


def content_id(*parts: bytes) -> str:
    """Return a content id: 16 hex digits of the SHA-256 over length-prefixed parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:ID_DIGITS]


def fingerprint(ids: Iterable[str]) -> str:
    """Return the full SHA-256 of an ordered list of ids."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class StimulusSet:
    """An ordered base set of stimuli: images, captions, or images with captions.

    Attributes
    ----------
    name
        Name of the set, with which its key in the store begins.
    source
        What was asked for, as recorded in the store's attributes.
    images
        uint8 pixels, one array of shape (height, width) or (height, width, 3) per stimulus;
        empty where there are none.
    captions
        One caption per stimulus, or None.
    labels
        Integer class of each stimulus, or None.
    label_names
        Name of each class.
    """

    name: str
    source: dict[str, object]
    images: Sequence[NDArray[np.uint8]] = ()
    captions: Sequence[str] | None = None
    labels: NDArray[np.int64] | None = None
    label_names: Sequence[str] = field(default=())

    def __len__(self) -> int:
        return len(self.items(self.modalities[0])) if self.modalities else 0

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the set has for each stimulus; the first names the rows."""
        present: dict[Modality, bool] = {
            "image": len(self.images) > 0,
            "text": self.captions is not None,
        }
        return tuple(modality for modality, there in present.items() if there)

    def items(self, modality: Modality) -> Sequence[Any]:
        """Return what towers of a modality take: images, or captions.

        Raises
        ------
        InputError
            Where the set has none.
        """
        if modality == "image" and len(self.images):
            return self.images
        if modality == "text" and self.captions is not None:
            return self.captions
        lacking, other = ("images", "text") if modality == "image" else ("captions", "image")
        raise InputError(
            f"stimuli {self.name!r}: they have no {lacking}, which {modality} towers need. "
            f"Choose stimuli with {lacking}, or models with towers: [{other}]."
        )

    @cached_property
    def image_ids(self) -> NDArray[np.object_]:
        """Content id of each image: a hash of its shape and pixels."""
        return np.array(
            [
                content_id(repr(i.shape).encode(), np.ascontiguousarray(i).tobytes())
                for i in self.images
            ],
            dtype=object,
        )

    @cached_property
    def caption_ids(self) -> NDArray[np.object_] | None:
        """Content id of each caption: a hash of its UTF-8 text."""
        if self.captions is None:
            return None
        return np.array([content_id(c.encode()) for c in self.captions], dtype=object)

    def ids(self, modality: Modality) -> NDArray[np.object_]:
        """Return the content ids of what towers of a modality take.

        Raises
        ------
        InputError
            Where the set has no such items.
        """
        self.items(modality)  # raises
        found = self.image_ids if modality == "image" else self.caption_ids
        assert found is not None
        return found

    @property
    def stimulus_ids(self) -> NDArray[np.object_]:
        """Names of the rows: the content ids of images or, where there are none, of captions."""
        return self.ids(self.modalities[0])

    def fingerprint_of(self, modality: Modality) -> str:
        """Return the SHA-256 over the ordered content ids of what towers of a modality take.

        The activations of an image tower depend on the images only, not on captions.
        """
        return fingerprint(self.ids(modality))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ordered names of the rows."""
        return fingerprint(self.stimulus_ids)

    @property
    def key(self) -> str:
        """Name in the store: `name-` and 8 hex digits of the fingerprint."""
        return f"{self.name}-{self.fingerprint[:8]}"

    def subset(self, n: int | None = None, seed: int = 0) -> Subset:
        """Draw `n` rows without replacement, and keep their order.

        Sampling is without replacement because duplicates would become each other's nearest
        neighbours.
        """
        if n is None or n == len(self):
            return Subset(self, np.arange(len(self)))
        if not 0 < n <= len(self):
            raise InputError(
                f"subset: n = {n} rows were asked of stimuli {self.name!r}, which have "
                f"{len(self)}. Set subset.n to at most {len(self)}, or leave it out for all."
            )
        rows = np.random.default_rng(seed).permutation(len(self))[:n]
        return Subset(self, np.sort(rows))


@dataclass(frozen=True, eq=False)
class Subset:
    """Rows of a base set on which representations are compared."""

    base: StimulusSet
    rows: NDArray[np.int64]
    kind: str = "images"
    """`images`: every chosen row. `captions`: only the first row of each distinct caption."""
    drawn: Subset | None = None
    """The subset that distinct captions were taken from."""

    def __len__(self) -> int:
        return len(self.rows)

    def distinct_captions(self) -> Subset:
        """Keep the first row of each distinct caption: to text towers, repeats are exact ties."""
        ids = self.base.ids("text")[self.rows]
        _, first = np.unique(ids.astype(str), return_index=True)
        return Subset(self.base, self.rows[np.sort(first)], kind="captions", drawn=self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ordered ids of the stimuli compared."""
        ids = [str(i) for i in self.base.stimulus_ids[self.rows]]
        if self.kind == "captions":
            ids += [str(i) for i in self.base.ids("text")[self.rows]]
        return fingerprint(ids)

    @property
    def key(self) -> str:
        """Name in the store: set name, kind, number of rows and 8 hex digits."""
        kind = "-captions" if self.kind == "captions" else ""
        return f"{self.base.name}{kind}-n{len(self)}-{self.fingerprint[:8]}"

    @property
    def drawn_key(self) -> str:
        """Key of the rows that were drawn, distinct captions or not."""
        return (self.drawn or self).key
