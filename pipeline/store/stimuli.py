"""Store the stimuli, so that users can run them through a model of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import zarr

from pipeline.schema import STIMULI, STIMULUS_GROUP
from pipeline.stimuli import StimulusSet
from pipeline.store import paths
from pipeline.store.layout import create_group, find_group


def write_stimuli(root: zarr.Group, stimuli: StimulusSet) -> None:
    """Write ids, captions, labels and, if all have one size, images. Driver only."""
    path = paths.stimuli(stimuli.key)
    if find_group(root, path, STIMULUS_GROUP.mark) is not None:
        return
    columns: dict[str, Any] = {"stimulus": stimuli.stimulus_ids}
    if stimuli.captions is not None:
        columns |= {"caption_id": stimuli.caption_ids, "caption": stimuli.captions}
    if stimuli.labels is not None:
        columns["label"] = stimuli.labels
        if stimuli.label_names:
            columns["label_name"] = [stimuli.label_names[i] for i in stimuli.labels]
    sizes = {"stimulus": len(stimuli)}
    if len({image.shape for image in stimuli.images}) == 1:
        columns["image"] = np.stack([np.atleast_3d(image) for image in stimuli.images])
        sizes |= zip(("height", "width", "channel"), columns["image"].shape[1:], strict=True)
    # a set declares only the variables that it has values for
    present = {name: variable for name, variable in STIMULI.items() if name in columns}
    create_group(
        root,
        path,
        replace(STIMULUS_GROUP, variables=present),
        sizes,
        {
            "source": dict(stimuli.source),
            "name": stimuli.name,
            "caption_fingerprint": (
                None if stimuli.captions is None else stimuli.fingerprint_of("text")
            ),
            "variables": sorted(columns),
            "fingerprint": stimuli.fingerprint,
        },
        values=columns,
    )
