"""The read side of a store. Opening one imports neither torch nor dask.distributed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from pipeline.encoder import Encoder
from pipeline.errors import StoreError
from pipeline.schema import (
    NULL_GROUP,
    SCORE_GROUP,
    STIMULUS_GROUP,
    TOWER_GROUP,
    GroupKind,
    id_column,
)
from pipeline.scoring import score_layers, select_layers
from pipeline.store import paths
from pipeline.store.activations import TowerGroup
from pipeline.store.catalog import StoredCheckpoint, checkpoints, encoders, tower_encoders
from pipeline.store.choices import (
    choose_encoders,
    choose_representation,
    default_modality,
    resolve_one,
)
from pipeline.store.datasets import MARK, NEW, is_current, read_dataset, read_dataset_at
from pipeline.store.final_datasets import read_final_dataset
from pipeline.store.grid import Grid
from pipeline.store.io.chunks import array_of, read_whole, remedy
from pipeline.store.io.location import Folder, Location, locate
from pipeline.store.labelled import (
    activations_array,
    catalog_table,
    diagnostics_dataset,
    layer_scores,
    similarity_array,
)
from pipeline.store.layout import child_groups, find_group, has_parts, open_root, subset_rows
from pipeline.store.subsets import Subsets, recorded_measure
from pipeline.types import Float32, Float64, Modality

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pipeline.measures import MeasureSpec
    from pipeline.stimuli import StimulusTable
    from pipeline.store.stimuli import StoredRows


def open_store(path: str | Path) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path
        The folder that `consilience run` wrote.

    Raises
    ------
    InputError
        Where there is no store.
    StoreError
        Where it was written by a newer format version, or its root is damaged.

    Examples
    --------
    >>> import pipeline
    >>> store = pipeline.open_store("store/quickstart.zarr")
    >>> store.catalog().index.name
    'representation'
    >>> store.similarity("cka").dims
    ('representation_x', 'representation_y')
    """
    return Store(path)


class Store:
    """A store, read-only. Results are labelled; only `score` computes anything."""

    def __init__(self, path: str | Path | Location) -> None:
        self.location = locate(path)
        self.root = open_root(self.location, "r")

    @property
    def path(self) -> Path | str:
        """The folder, or the URL."""
        return self.location.path if isinstance(self.location, Folder) else str(self.location)

    def __repr__(self) -> str:
        return f"<consilience store {self.path}: sets {', '.join(self.sets) or 'none'}>"

    @property
    def sets(self) -> list[str]:
        """Keys of the stimulus sets."""
        return list(child_groups(self.root, paths.STIMULI))

    def _set(self, key: str | None) -> str:
        return resolve_one(key, self.sets, "set", "set")

    def _list_subsets(self) -> Subsets:
        """List the subsets as they are now: each public method does so at most once."""
        return Subsets(self.root, str(self.path))

    @cached_property
    def _encoders(self) -> dict[str, list[Encoder]]:
        return {key: encoders(self.root, key) for key in self.sets}

    def encoders(self, set: str | None = None) -> list[Encoder]:
        """Return every complete encoder on a set, by model, tower and training order."""
        return self._encoders[self._set(set)]

    def catalog(self, set: str | None = None) -> pd.DataFrame:
        """Return one row per representation.

        Returns
        -------
        pandas.DataFrame
            Indexed by representation id: model, checkpoint, tower, layer, layer_index,
            n_features, step, initial, final, family, n_parameters, flops, samples_seen and the
            entry's metadata.
        """
        return catalog_table(self.encoders(set))

    def stimuli(self, set: str | None = None) -> xr.Dataset:
        """Return ids, captions, labels, other columns and, if stored, the images of a set."""
        path = paths.stimuli(self._set(set))
        return read_dataset_at(self.root, path, STIMULUS_GROUP.mark, str(self.path))

    def activations(
        self,
        model: str,
        *,
        layer: str | None = None,
        checkpoint: str | None = None,
        tower: str | None = None,
        set: str | None = None,
    ) -> xr.DataArray:
        """Return one representation, lazily.

        Parameters
        ----------
        model
            A model id, or a complete representation id (`timm/x@final#image/blocks.3`).
        layer, checkpoint, tower
            May be left out where there is only one.

        Returns
        -------
        xarray.DataArray
            `(stimulus, feature)` float32, Dask-backed, with the stimuli's ids.

        Raises
        ------
        InputError
            Where no representation, or more than one, matches; it lists the choices.
        StoreError
            On computing, where data are damaged or lost.
        """
        encoder, layer = choose_representation(
            self.encoders(set),
            model,
            layer=layer,
            checkpoint=checkpoint,
            tower=tower,
            place=str(self.path),
        )
        return activations_array(self.tower_at(encoder.path), encoder, layer)

    @property
    def subsets(self) -> list[str]:
        """Keys of the subsets on which encoders were compared."""
        return self._list_subsets().keys

    def labels(self, subset: str | None = None) -> list[str]:
        """Return the labels of the measures that were computed on a subset."""
        subsets = self._list_subsets()
        return subsets.labels(subsets.resolve(subset))

    def subset(self, key: str | None = None) -> str:
        """Return the key given, or that of the only subset; ambiguity raises and lists all."""
        return self._list_subsets().resolve(key)

    def similarity(self, label: str, subset: str | None = None) -> xr.DataArray:
        """Return the raw similarity of every pair of representations that was compared.

        Parameters
        ----------
        label
            The workflow's name for a measure with its parameters.

        Returns
        -------
        xarray.DataArray
            `(representation_x, representation_y)` float32; NaN where a pair was not compared or
            the measure is undefined. Coordinate `n_stimuli` tells on how many rows each pair was
            compared: pairs with a text tower are compared on distinct captions.
        """
        subsets = self._list_subsets()
        grids = subsets.scores(subsets.resolve(subset), label)
        found = similarity_array(grids.values(), label)
        return found.assign_attrs(recorded_measure(grids, label).conventions())

    def measure(self, label: str, subset: str | None = None) -> MeasureSpec:
        """Return the measure and parameters that a label stands for.

        Raises
        ------
        InputError
            Where its scores were computed by an earlier version of the measure.
        """
        subsets = self._list_subsets()
        return subsets.measure(subsets.resolve(subset), label)

    def dataset(self, name: str, label: str | None = None, subset: str | None = None) -> xr.Dataset:
        """Return a final dataset: of a subset, or of one measure on it.

        Parameters
        ----------
        name
            Of an analysis: `competence`, `alignment`, `convergence`.
        label
            Of the measure, for an analysis of which there is a dataset for each; may be left out
            where there is only one.

        Raises
        ------
        InputError
            Where the name or the label is unknown, or the label is left out and ambiguous; or the
            scores were computed by an earlier version of the measure.
        StoreError
            Where the dataset is missing or damaged, or it or one that it was made from cannot be
            used by this version.
        """
        subsets = self._list_subsets()
        return read_final_dataset(self.root, str(self.path), subsets, name, label, subset)

    def alignment(self, label: str, subset: str | None = None) -> xr.Dataset:
        """Return the alignment of every pair of encoders that was compared.

        Returns
        -------
        xarray.Dataset
            `(encoder_x, encoder_y)`: score of the best layer pair, its layers, calibrated score,
            threshold, p, q, mean and matched-depth scores; and the encoders' metadata as
            coordinates along both dimensions.

        Raises
        ------
        InputError, StoreError
            As `dataset`.
        """
        return self.dataset("alignment", label, subset)

    def convergence(self, label: str, subset: str | None = None) -> xr.Dataset:
        """Return how alignment changes with scale, competence and training.

        Raises
        ------
        InputError, StoreError
            As `dataset`.
        """
        return self.dataset("convergence", label, subset)

    def competence(self, subset: str | None = None) -> xr.Dataset:
        """Return the measured competence of each encoder: `knn_accuracy`, `probe_accuracy`.

        Raises
        ------
        InputError, StoreError
            As `dataset`.
        """
        return self.dataset("competence", subset=subset)

    def dataset_inputs(self, name: str, subset: str, label: str) -> str | None:
        """Return the identity of what the dataset of a measure was computed from, or None."""
        group = find_group(self.root, paths.dataset(name, subset, label), MARK)
        return None if group is None else str(group.attrs[MARK])

    def is_current(self, name: str, subset: str, label: str | None, inputs: str) -> bool:
        """Whether a final dataset exists and was computed from these inputs (`inputs_digest`)."""
        return is_current(self.root, paths.dataset(name, subset, label), inputs)

    def column_datasets(self, name: str, subset: str) -> list[xr.Dataset]:
        """Return a dataset and then, where `replace_dataset` was interrupted, its successor."""
        path = paths.dataset(name, subset)
        groups = (find_group(self.root, where, MARK) for where in (path, path + NEW))
        return [read_dataset(group) for group in groups if group is not None]

    def is_committed(self, name: str, subset: str) -> bool:
        """Whether no `replace_dataset` was interrupted."""
        return find_group(self.root, paths.dataset(name, subset) + NEW) is None

    def tower(self, set_key: str, model: str, tower: str) -> TowerGroup | None:
        """Return the activations of one tower, complete or not; None where there are none."""
        path = paths.tower(set_key, model, tower)
        group = find_group(self.root, path, TOWER_GROUP.mark)
        return None if group is None else TowerGroup(group)

    def tower_at(self, path: str) -> TowerGroup:
        """Return the activations at `Encoder.path`.

        Raises
        ------
        StoreError
            Where they are missing.
        """
        return TowerGroup(self.group(path))

    def tower_encoders(self, set_key: str, model: str, tower: str) -> list[Encoder]:
        """Return the complete encoders of one tower, in the order of training."""
        group = self.tower(set_key, model, tower)
        return [] if group is None else tower_encoders(model, tower, group, set_key)

    def scores(self, subset: str, label: str) -> Grid | None:
        """Return the layer scores of one measure on a subset; None where there are none."""
        return self._grid(paths.scores(subset, label), SCORE_GROUP)

    def null(self, subset: str, label: str, key: str) -> Grid | None:
        """Return one null of a measure on a subset; None where there is none.

        Parameters
        ----------
        key
            Of its method, number of values and seed.
        """
        return self._grid(paths.null(subset, label, key), NULL_GROUP)

    def _grid(self, path: str, kind: GroupKind) -> Grid | None:
        group = find_group(self.root, path, kind.mark)
        return None if group is None else Grid(group, kind)

    def stimulus_column(self, set_key: str, name: str) -> NDArray[Any]:
        """Return one variable of a stimulus set, such as `label`, without reading the others.

        Raises
        ------
        StoreError
            Where it is missing, damaged or lost.
        """
        return read_whole(array_of(self.group(paths.stimuli(set_key)), name))

    def find_table(self, source: Mapping[str, Any]) -> StimulusTable | None:
        """Return the table of a stored set that was made from this source, or None."""
        from pipeline.store.stimuli import read_table

        for key, group in child_groups(self.root, paths.STIMULI, mark=STIMULUS_GROUP.mark).items():
            if group.attrs.get("source") == source:
                return read_table(self.root, key)
        return None

    def stimulus_rows(self, set_key: str) -> StoredRows:
        """Return the rows of a set, to be read a few at a time.

        Raises
        ------
        StoreError
            Where the set is missing.
        """
        from pipeline.store.stimuli import StoredRows

        return StoredRows(self.group(paths.stimuli(set_key)), set_key)

    def rows(self, subset: str) -> NDArray[np.int64]:
        """Return the rows of the base set that form a subset."""
        return subset_rows(self.root, subset)

    def score(
        self,
        layers: Mapping[str, ArrayLike],
        stimulus: Sequence[str] | NDArray[Any],
        measure: str,
        *,
        encoders: str | Iterable[str] = "final",
        modality: Modality | None = None,
        subset: str | None = None,
    ) -> xr.Dataset:
        """Compare your own model with the encoders of the store.

        Parameters
        ----------
        layers
            Layer name → activations `(n, features)` of your model, from input to output.
        stimulus
            The n ids of what the rows were computed from, as `stimuli()` returns them: `stimulus`
            for images, `caption_id` for captions. Those of captions, and of images that the set
            has twice, may repeat. Rows may be in any order, and may include more than the subset
            needs.
        measure
            A label of this store.
        encoders
            `final` (the last checkpoint of every tower), `all`, or encoder ids.
        modality
            With the towers of which modality; default: image, where there are any.

        Returns
        -------
        xarray.Dataset
            `score (layer, representation)` raw similarities; `alignment (encoder)` that of the
            best layer pair, with `own_layer` and `best_layer` naming them. Not calibrated.

        Raises
        ------
        InputError
            Where ids are missing or repeated, or arrays do not fit them.
        """
        subsets = self._list_subsets()
        key = subsets.resolve(subset)
        spec = subsets.measure(key, measure)
        set_key = str(subsets.attributes(key)["set"])
        known = self.encoders(set_key)
        modality = modality or default_modality(known)
        chosen = choose_encoders(known, encoders, modality, str(self.path))
        rows = self.rows(subsets.compared_rows(key, modality))
        column = id_column(self.set_metadata(set_key), modality)
        compared = [str(s) for s in self.stimulus_column(set_key, column)[rows]]
        given = [str(s) for s in stimulus]
        repeats = modality == "text" or len({*compared}) < len(compared)
        own = select_layers(layers, given, compared, may_repeat=repeats)

        def stored_layers() -> Iterator[tuple[Encoder, list[Float32]]]:
            for encoder in chosen:
                tower = self.tower_at(encoder.path)
                if [str(i) for i in tower.column("stimulus")[rows]] != compared:
                    raise StoreError(
                        f"{encoder.id}: its activations are of other {modality} stimuli than the "
                        f"set {set_key} has now",
                        f"Extract them again: run the workflow with --replace {encoder.model}.",
                    )
                yield encoder, [tower.read(encoder.checkpoint, n, rows) for n in encoder.layers]

        return score_layers(own, stored_layers(), measure, spec)

    def select_encoders(
        self, chosen: str | Iterable[str], modality: Modality, set: str | None = None
    ) -> list[Encoder]:
        """Return encoders of a modality: `final`, `all`, or by their ids.

        Raises
        ------
        InputError
            Where there is no such encoder, with the nearest.
        """
        return choose_encoders(self.encoders(set), chosen, modality, str(self.path))

    def group(self, path: str) -> zarr.Group:
        """Return one of the store's Zarr groups."""
        group = find_group(self.root, path)
        if group is None:
            raise StoreError(f"{self.path}: {path} is missing", remedy(self.root.store))
        return group

    @property
    def has_parts(self) -> bool:
        """Whether anything has been written to the store but its root."""
        return has_parts(self.location)

    @property
    def format_version(self) -> int:
        """Version of the store's format."""
        version: Any = self.root.attrs["format_version"]
        return int(version)

    def set_metadata(self, set: str | None = None) -> dict[str, Any]:
        """Return what is recorded about a stimulus set: its source and its fingerprint."""
        return dict(self.group(paths.stimuli(self._set(set))).attrs)

    def subset_metadata(self, subset: str | None = None) -> dict[str, Any]:
        """Return what is recorded about a subset: kind, base, set, fingerprint, n_stimuli."""
        subsets = self._list_subsets()
        return subsets.attributes(subsets.resolve_any(subset))

    def captions_subset(self, subset: str | None = None) -> str | None:
        """Return the key of a subset's distinct captions; None where none were compared."""
        subsets = self._list_subsets()
        return next(iter(subsets.captions(subsets.resolve(subset))), None)

    def dataset_labels(self, name: str, subset: str | None = None) -> list[str]:
        """Return the labels for which a final dataset, such as `alignment`, is stored."""
        return list(child_groups(self.root, name, self.subset(subset), mark=MARK))

    def dataset_metadata(self, name: str, label: str, subset: str | None = None) -> dict[str, Any]:
        """Return the attributes of a final dataset, without reading its variables."""
        return dict(self.group(paths.dataset(name, self.subset(subset), label)).attrs)

    def checkpoints(self, set: str | None = None) -> dict[tuple[str, str], list[StoredCheckpoint]]:
        """Return (model, modality) → checkpoints in training order, incomplete ones included."""
        return checkpoints(self.root, self._set(set))

    def diagnostics(self, label: str, subset: str | None = None) -> list[xr.Dataset]:
        """Return per-representation diagnostics: on the subset, then on its distinct captions.

        Returns
        -------
        list of xarray.Dataset
            `(representation)`: `n_ties`, the stimuli whose neighbours tie (-1 without neighbours).
            Attributes: `kind` of the subset, and `n_stimuli`.
        """
        subsets = self._list_subsets()
        grids = subsets.scores(subsets.resolve(subset), label)
        return [diagnostics_dataset(grid, subsets.attributes(key)) for key, grid in grids.items()]

    def layer_scores(
        self, label: str, x: Encoder, y: Encoder, subset: str | None = None
    ) -> Float64 | None:
        """Return the scores of all pairs of layers of two encoders.

        Returns
        -------
        numpy.ndarray or None
            `(layers of x, layers of y)`, NaN where the measure is undefined; None where the pair
            was not compared. Only the chunks that hold the pair are read.
        """
        subsets = self._list_subsets()
        return layer_scores(subsets.scores(subsets.resolve(subset), label).values(), x, y)


__all__ = ["Store", "open_store"]
