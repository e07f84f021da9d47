"""The stimuli of a store: what was shown, so that a person can show it to a model of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr

from pipeline.schema import STIMULI
from pipeline.stimuli import StimulusSet
from pipeline.store.layout import create_variable, ensure_parents, find_group


def write_stimuli(root: zarr.Group, stimuli: StimulusSet) -> None:
    """Write ids, captions, labels and, where all have one size, images. Driver only."""
    path = f"stimuli/{stimuli.key}"
    if find_group(root, path, "fingerprint") is not None:
        return
    ensure_parents(root, path)
    group = root.create_group(path, overwrite=True)
    n = len(stimuli)
    columns: dict[str, Any] = {"stimulus": stimuli.stimulus_ids}
    if stimuli.captions is not None:
        columns |= {"caption_id": stimuli.caption_ids, "caption": stimuli.captions}
    if stimuli.labels is not None:
        columns["label"] = stimuli.labels
        if stimuli.label_names:
            columns["label_name"] = [stimuli.label_names[i] for i in stimuli.labels]
    for name, values in columns.items():
        create_variable(group, STIMULI[name], (n,), (n,), values=values)
    if len({image.shape for image in stimuli.images}) == 1:
        pixels = np.stack([np.atleast_3d(image) for image in stimuli.images])
        create_variable(
            group, STIMULI["image"], pixels.shape, (min(n, 1024), *pixels.shape[1:]), values=pixels
        )
    group.attrs.update(
        source=dict(stimuli.source),  # type: ignore[arg-type]
        name=stimuli.name,
        caption_fingerprint=None if stimuli.captions is None else stimuli.fingerprint_of("text"),
        variables=sorted(name for name, _ in group.arrays()),
        fingerprint=stimuli.fingerprint,  # written last: what marks the group as whole
    )
