"""The read side of a store. Opening one imports neither torch nor dask.distributed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from pipeline import schema
from pipeline.encoder import Encoder, in_training_order
from pipeline.errors import InputError, StoreError
from pipeline.modality import MODALITIES, modality_of
from pipeline.schema import NULL_GROUP, SCORE_GROUP, STIMULUS_GROUP, TOWER_GROUP, GroupKind, State
from pipeline.scoring import score_layers, select_layers
from pipeline.store import paths
from pipeline.store.activations import StoredLayer, TowerGroup
from pipeline.store.catalog import encoders, tower_encoders, tower_groups
from pipeline.store.choices import resolve_one, unique
from pipeline.store.datasets import MARK, NEW, is_current, read_dataset
from pipeline.store.grid import Grid
from pipeline.store.io.chunks import array_of, read_whole, remedy
from pipeline.store.io.location import Folder, Location, locate
from pipeline.store.layout import child_groups, find_group, has_parts, open_root, subset_rows
from pipeline.suggest import did_you_mean
from pipeline.types import Float32, Float64, Modality

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pipeline.measures import MeasureSpec


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


@dataclass(frozen=True)
class StoredCheckpoint:
    """One checkpoint of a tower."""

    label: str
    step: int
    is_complete: bool
    """Whether all of its activations were extracted."""


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
        import pandas as pd

        rows = []
        for encoder in self.encoders(set):
            attributes = encoder.attributes
            about = {
                "model": encoder.model,
                "checkpoint": encoder.checkpoint,
                "tower": encoder.tower,
                "step": encoder.step,
                "initial": encoder.initial,
                "final": encoder.final,
                "family": attributes.get("family"),
                "n_parameters": attributes.get("n_parameters"),
                "flops": attributes.get("flops"),
                "samples_seen": encoder.samples_seen,
                "pooling": attributes.get("pooling"),
            }
            metadata = {k: v for k, v in attributes.get("metadata", {}).items() if k not in about}
            layers = zip(encoder.layers, attributes["widths"], strict=True)
            for index, (layer, width) in enumerate(layers):
                rows.append(
                    {
                        "representation": f"{encoder.id}/{layer}",
                        **about,
                        "layer": layer,
                        "layer_index": index,
                        "n_features": width,
                        **metadata,
                    }
                )
        return pd.DataFrame(rows).set_index("representation") if rows else pd.DataFrame()

    def stimuli(self, set: str | None = None) -> xr.Dataset:
        """Return ids, captions, labels and, if stored, the images of a set."""
        return self._dataset(paths.stimuli(self._set(set)), STIMULUS_GROUP.mark)

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
        import dask.array
        import xarray as xr

        if "@" in model:
            model, _, rest = model.partition("@")
            checkpoint, _, rest = rest.partition("#")
            tower, _, of_layer = rest.partition("/")
            layer = of_layer or layer
        found = [e for e in self.encoders(set) if e.model == model]
        if not found:
            known = sorted({e.model for e in self.encoders(set)})
            raise InputError(
                f"there is no model {model!r} in {self.path}."
                f"{did_you_mean(model, known)} store.catalog() lists them."
            )
        tower = resolve_one(tower, unique(e.tower for e in found), "tower", f"tower of {model}")
        found = [e for e in found if e.tower == tower]
        checkpoint = resolve_one(
            checkpoint, [e.checkpoint for e in found], "checkpoint", f"checkpoint of {model}"
        )
        encoder = next(e for e in found if e.checkpoint == checkpoint)
        layer = resolve_one(layer, list(encoder.layers), "layer", f"layer of {encoder.id}")
        group = TowerGroup(self.group(encoder.path))
        stored = StoredLayer(group, checkpoint, layer)
        return xr.DataArray(
            # not through xarray, which reads a lost chunk as NaN
            dask.array.from_array(stored, chunks=stored.chunks, name=False),
            dims=("stimulus", "feature"),
            coords={"stimulus": group.stimulus_ids},
            name="activations",
            attrs={
                **dict(group.array(layer).attrs),
                "representation": f"{encoder.id}/{layer}",
                **{k: encoder.attributes.get(k) for k in ("pooling", "recipe_digest")},
            },
        )

    @property
    def subsets(self) -> list[str]:
        """Keys of the subsets on which encoders were compared."""
        known = self._compared
        return [
            key
            for key, about in known.items()
            # distinct captions count where nothing else was compared, or results are theirs
            if about.get("base") == key or about.get("base") not in known or self._has_results(key)
        ]

    def _has_results(self, key: str) -> bool:
        from pipeline.analysis import ANALYSES

        return any(find_group(self.root, paths.dataset(a.name, key)) is not None for a in ANALYSES)

    @property
    def _compared(self) -> dict[str, dict[str, Any]]:
        """Key → attributes of all subsets, those of distinct captions included."""
        return {
            key: dict(self.group(paths.subset(key)).attrs)
            for key in child_groups(self.root, paths.SCORES)
        }

    def labels(self, subset: str | None = None) -> list[str]:
        """Return the labels of the measures that were computed on a subset."""
        key = self.subset(subset)
        return [
            label
            for label in child_groups(self.root, paths.SCORES, key)
            if self.scores(key, label) is not None
        ]

    def subset(self, key: str | None = None) -> str:
        """Return the key given, or that of the only subset; ambiguity raises and lists all."""
        return resolve_one(key, self.subsets, "subset", "subset")

    def _grids(self, subset: str | None, label: str) -> dict[str, Grid]:
        """Return subset key → scores of a measure: the subset's, then its distinct captions'."""
        key = self.subset(subset)
        label = resolve_one(label, self.labels(key), "label", "measure")
        captions = [k for k, about in self._compared.items() if about.get("base") == key != k]
        grids = {k: self.scores(k, label) for k in (key, *captions)}
        return {k: grid for k, grid in grids.items() if grid is not None}

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
        import xarray as xr

        parts = [_read_grid(grid) for grid in self._grids(subset, label).values()]
        names = unique(n for part in parts for n in part[0])
        index = {n: i for i, n in enumerate(names)}
        score = np.full((len(names), len(names)), np.nan, np.float32)
        n_stimuli = np.zeros(score.shape, np.int64)
        for members, scores, state, n in parts:
            at = np.ix_([index[m] for m in members], [index[m] for m in members])
            done = state != State.MISSING
            score[at] = np.where(done, scores, score[at])
            n_stimuli[at] = np.where(done, n, n_stimuli[at])
        dims = ("representation_x", "representation_y")
        return xr.DataArray(
            score,
            dims=dims,
            name=label,
            coords={dims[0]: names, dims[1]: names, "n_stimuli": (dims, n_stimuli)},
            attrs=self.measure(label, subset).conventions(),
        )

    def measure(self, label: str, subset: str | None = None) -> MeasureSpec:
        """Return the measure and parameters that a label stands for.

        Raises
        ------
        InputError
            Where its scores were computed by an earlier version of the measure.
        """
        from pipeline.measures import check_version, recorded_spec

        named = next(iter(self._grids(subset, label).values())).attrs["measure"]
        check_version(named, label)
        return recorded_spec(named["name"], named["parameters"])

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
        from pipeline.analysis import ANALYSES

        known = {analysis.name: analysis for analysis in ANALYSES}
        analysis = known[resolve_one(name, list(known), "name", "final dataset")]
        key = self.subset(subset)
        remedy = "`consilience run WORKFLOW` makes it anew."
        if analysis.scope == "measure":
            labels = list(child_groups(self.root, name, key))
            label = resolve_one(label, labels, "label", name)
            self.measure(label, key)
            remedy = (
                f"`consilience run WORKFLOW`, with a workflow that compares by {label}, makes it "
                "anew."
            )
        for each in (*(known[n] for n in analysis.needs if n in known), analysis):
            if each.scope == analysis.scope:
                path = paths.dataset(each.name, key, label)
                group = find_group(self.root, path, MARK)
                if group is not None and (why := each.fault(dict(group.attrs))):
                    raise StoreError(f"{self.path}: {path} cannot be used: {why}", remedy)
        dataset = self._dataset(paths.dataset(name, key, label), MARK)
        schema.validate(dataset, dict(analysis.variables), analysis.variables)
        return dataset

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
        """Return the identity of what the dataset of a measure was made from; None without one."""
        group = find_group(self.root, paths.dataset(name, subset, label), MARK)
        return None if group is None else str(group.attrs[MARK])

    def is_current(self, name: str, subset: str, label: str | None, inputs: str) -> bool:
        """Whether a final dataset is there and was made from these inputs (`inputs_digest`)."""
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
            for images, `caption_id` for captions, which may repeat. Rows may be in any order, and
            may include more than the subset needs.
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
        spec = self.measure(measure, subset)
        key = self.subset(subset)
        set_key = str(self.group(paths.subset(key)).attrs["set"])
        present = {e.modality for e in self.encoders(set_key)}
        default = next((m for m in MODALITIES if m in present), MODALITIES[0])
        chosen = self.select_encoders(encoders, modality or default, set_key)
        of_text = (modality or default) == "text"
        rows = self.rows(self._captions_of(key) if of_text else key)
        column = "caption_id" if of_text else "stimulus"
        compared = [str(s) for s in self.stimulus_column(set_key, column)[rows]]
        given = [str(s) for s in stimulus]
        own = select_layers(layers, given, compared, may_repeat=of_text)

        def stored_layers() -> Iterator[tuple[Encoder, list[Float32]]]:
            for encoder in chosen:
                tower = self.tower_at(encoder.path)
                yield encoder, [tower.read(encoder.checkpoint, n, rows) for n in encoder.layers]

        return score_layers(own, stored_layers(), measure, spec)

    def _captions_of(self, key: str) -> str:
        """Return the subset of distinct captions on which text towers were compared."""
        if self._compared[key].get("kind") == "captions":
            return key
        found = self.captions_subset(key)
        if found is None:
            raise InputError(f"no text towers were compared on subset {key} of {self.path}.")
        return found

    def select_encoders(
        self, chosen: str | Iterable[str], modality: Modality, set: str | None = None
    ) -> list[Encoder]:
        """Return encoders of a modality: `final`, `all`, or by their ids.

        Raises
        ------
        InputError
            Where there is no such encoder, with the nearest.
        """
        known = [e for e in self.encoders(set) if e.modality == modality]
        if chosen == "all":
            return known
        if chosen == "final":
            return [e for e in known if e.final]
        by_id = {e.id: e for e in known}
        ids = [chosen] if isinstance(chosen, str) else list(chosen)
        for i in ids:
            if i not in by_id:
                raise InputError(
                    f"there is no {modality} encoder {i!r} in {self.path}.{did_you_mean(i, by_id)}"
                )
        return [by_id[i] for i in ids]

    def group(self, path: str) -> zarr.Group:
        """Return one of the store's Zarr groups."""
        group = find_group(self.root, path)
        if group is None:
            raise StoreError(f"{self.path}: {path} is not there", remedy(self.root.store))
        return group

    def _dataset(self, path: str, mark: str) -> xr.Dataset:
        """Read a small dataset whole."""
        group = find_group(self.root, path, mark)
        if group is None:
            raise StoreError(
                f"{self.path} has no {path}: that stage has not been run",
                "`consilience run WORKFLOW` does what is missing.",
            )
        return read_dataset(group)

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
        return dict(self.group(paths.subset(self._subset_or_captions(subset))).attrs)

    def captions_subset(self, subset: str | None = None) -> str | None:
        """Return the key of a subset's distinct captions; None where none were compared."""
        key = self.subset(subset)
        found = [k for k, about in self._compared.items() if about.get("base") == key != k]
        return found[0] if found else None

    def dataset_labels(self, name: str, subset: str | None = None) -> list[str]:
        """Return the labels for which a final dataset, such as `alignment`, is stored."""
        key = self.subset(subset)
        return [
            label
            for label in child_groups(self.root, name, key)
            if find_group(self.root, paths.dataset(name, key, label), MARK) is not None
        ]

    def dataset_metadata(self, name: str, label: str, subset: str | None = None) -> dict[str, Any]:
        """Return the attributes of a final dataset, without reading its variables."""
        return dict(self.group(paths.dataset(name, self.subset(subset), label)).attrs)

    def checkpoints(self, set: str | None = None) -> dict[tuple[str, str], list[StoredCheckpoint]]:
        """Return (model, modality) → checkpoints in training order, incomplete ones included."""
        found: dict[tuple[str, str], list[StoredCheckpoint]] = {}
        for model, tower, group in tower_groups(self.root, self._set(set)):
            steps = group.training_steps
            found[model, modality_of(tower)] = [
                StoredCheckpoint(label, steps[label], group.is_complete(label))
                for label in in_training_order(steps.items())
            ]
        return found

    def diagnostics(self, label: str, subset: str | None = None) -> list[xr.Dataset]:
        """Return per-representation diagnostics: on the subset, then on its distinct captions.

        Returns
        -------
        list of xarray.Dataset
            `(representation)`: `n_ties`, the stimuli whose neighbours tie (-1 without neighbours).
            Attributes: `kind` of the subset, and `n_stimuli`.
        """
        import xarray as xr

        found = []
        for key, grid in self._grids(subset, label).items():
            ties = grid.column("n_ties")[list(grid.members.values())]
            found.append(
                xr.Dataset(
                    {"n_ties": ("representation", ties)},
                    coords={"representation": list(grid.members)},
                    attrs={
                        "kind": self._compared[key].get("kind"),
                        "n_stimuli": grid.attrs["n_stimuli"],
                    },
                )
            )
        return found

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
        for grid in self._grids(subset, label).values():
            members = grid.members
            if not all(r in members for r in (*x.representations, *y.representations)):
                continue
            rows, columns = ([members[r] for r in e.representations] for e in (x, y))
            scores, _ = grid.scores_among(rows, columns)
            if np.isfinite(scores).any():
                return scores.astype(np.float64)
        return None

    def _subset_or_captions(self, key: str | None) -> str:
        return key if key in self._compared else self.subset(key)


def _read_grid(
    grid: Grid,
) -> tuple[list[str], Float32, NDArray[np.uint8], int]:
    slots = list(grid.members.values())
    at = np.ix_(slots, slots)
    scores = grid.values("score")[at]
    return list(grid.members), scores, grid.state()[at], int(grid.attrs["n_stimuli"])


__all__ = ["Store", "open_store"]
