"""The subsets on which encoders were compared, and the measures whose scores each has."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import zarr

from pipeline.errors import InputError
from pipeline.schema import SCORE_GROUP
from pipeline.store import paths
from pipeline.store.choices import resolve_one
from pipeline.store.grid import Grid
from pipeline.store.layout import child_groups, find_group
from pipeline.types import Modality

if TYPE_CHECKING:
    from pipeline.measures import MeasureSpec


class Subsets:
    """The subsets of a store, listed once, with the scores on them.

    A snapshot: make one for each call, and keep none. The driver and its workers add subsets,
    measures and results while others read.

    Parameters
    ----------
    root
        The store's root group.
    place
        Its path or URL, for error messages.
    """

    def __init__(self, root: zarr.Group, place: str) -> None:
        self._root, self._place = root, place
        self._groups = child_groups(root, paths.SCORES)
        self._score_groups: dict[str, dict[str, zarr.Group]] = {}

    @cached_property
    def keys(self) -> list[str]:
        """Keys of the subsets that a caller may name."""
        bases = {key: self.attributes(key).get("base") for key in self._groups}
        return [
            key
            for key, base in bases.items()
            # distinct captions count where nothing else was compared, or results are theirs
            if base == key or base not in bases or self._has_results(key)
        ]

    def _has_results(self, key: str) -> bool:
        from pipeline.analysis import ANALYSES

        return any(find_group(self._root, paths.dataset(a.name, key)) is not None for a in ANALYSES)

    def resolve(self, key: str | None) -> str:
        """Return the key given, or that of the only subset; ambiguity raises and lists all."""
        return resolve_one(key, self.keys, "subset", "subset")

    def resolve_any(self, key: str | None) -> str:
        """Return a key as `resolve`, or one of distinct captions as it was given."""
        return key if key in self._groups else self.resolve(key)

    def attributes(self, key: str) -> dict[str, Any]:
        """Return what is recorded about a subset, or about distinct captions."""
        return dict(self._groups[key].attrs)

    def captions(self, key: str) -> list[str]:
        """Return the keys of a subset's distinct captions."""
        return [k for k in self._groups if self.attributes(k).get("base") == key != k]

    def compared_rows(self, key: str, modality: Modality) -> str:
        """Return the key of the rows on which towers of a modality were compared.

        Raises
        ------
        InputError
            Where no text towers were compared.
        """
        if modality != "text" or self.attributes(key).get("kind") == "captions":
            return key
        captions = self.captions(key)
        if not captions:
            raise InputError(f"no text towers were compared on subset {key} of {self._place}.")
        return captions[0]

    def labels(self, key: str) -> list[str]:
        """Return the labels of the measures with scores on a subset."""
        return list(self._scored(key))

    def scores(self, key: str, label: str) -> dict[str, Grid]:
        """Return subset key → scores of a measure: the subset's, then its distinct captions'."""
        found = {key: self._own_scores(key, label)}
        for captions in self.captions(key):
            group = find_group(self._root, paths.scores(captions, label), SCORE_GROUP.mark)
            if group is not None:
                found[captions] = Grid(group, SCORE_GROUP)
        return found

    def measure(self, key: str, label: str) -> MeasureSpec:
        """Return the measure and parameters of a label.

        Raises
        ------
        InputError
            Where there are no such scores, or an earlier version of the measure computed them.
        StoreError
            Where scores of the label are damaged, on the subset or on its distinct captions.
        """
        return recorded_measure(self.scores(key, label), label)

    def _own_scores(self, key: str, label: str) -> Grid:
        groups = self._scored(key)
        return Grid(groups[resolve_one(label, list(groups), "label", "measure")], SCORE_GROUP)

    def _scored(self, key: str) -> dict[str, zarr.Group]:
        """Return label → group of its scores."""
        if key not in self._score_groups:
            self._score_groups[key] = child_groups(self._groups[key], mark=SCORE_GROUP.mark)
        return self._score_groups[key]


def recorded_measure(grids: Mapping[str, Grid], label: str) -> MeasureSpec:
    """Return the measure and parameters that scores were computed with.

    Parameters
    ----------
    grids
        Subset key → scores of a label, at least one.

    Raises
    ------
    InputError
        Where an earlier version of the measure computed them.
    """
    from pipeline.measures import check_version, recorded_spec

    named = next(iter(grids.values())).attrs["measure"]
    check_version(named, label)
    return recorded_spec(named["name"], named["parameters"])
