"""Read the final datasets, and refuse those that this version cannot use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zarr

from pipeline import schema
from pipeline.errors import StoreError
from pipeline.store import paths
from pipeline.store.choices import resolve_one
from pipeline.store.datasets import MARK, read_dataset_at
from pipeline.store.layout import child_groups, find_group
from pipeline.store.subsets import Subsets

if TYPE_CHECKING:
    import xarray as xr


def read_final_dataset(
    root: zarr.Group,
    place: str,
    subsets: Subsets,
    name: str,
    label: str | None,
    subset: str | None,
) -> xr.Dataset:
    """Return a final dataset, as `Store.dataset` does.

    Parameters
    ----------
    place
        The store's path or URL, for error messages.
    """
    from pipeline.analysis import ANALYSES

    known = {analysis.name: analysis for analysis in ANALYSES}
    analysis = known[resolve_one(name, list(known), "name", "final dataset")]
    key = subsets.resolve(subset)
    remedy = "`consilience run WORKFLOW` computes it again."
    if analysis.scope == "measure":
        label = resolve_one(label, list(child_groups(root, name, key)), "label", name)
        subsets.measure(key, label)  # refuses scores of an earlier version
        remedy = (
            f"`consilience run WORKFLOW`, with a workflow that compares by {label}, computes it "
            "again."
        )
    for each in (*(known[n] for n in analysis.needs if n in known), analysis):
        if each.scope == analysis.scope:
            path = paths.dataset(each.name, key, label)
            group = find_group(root, path, MARK)
            if group is not None and (why := each.fault(dict(group.attrs))):
                raise StoreError(f"{place}: {path} cannot be used: {why}", remedy)
    dataset = read_dataset_at(root, paths.dataset(name, key, label), MARK, place)
    schema.validate(dataset, dict(analysis.variables), analysis.variables)
    return dataset
