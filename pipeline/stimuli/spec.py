"""The `stimuli:` section of a workflow: one of several sources, told apart by `source:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag

from pipeline.stimuli import arrays, digits, factory, huggingface, images, text, webdataset
from pipeline.stimuli.source import (
    Progress,
    SourceSpec,
    StimulusReader,
    StimulusSource,
)
from pipeline.stimuli.table import StimulusRows, StimulusTable

SOURCES: Mapping[str, StimulusSource[Any]] = {
    module.__name__.rpartition(".")[2]: module.SOURCE
    for module in (digits, images, text, arrays, huggingface, webdataset, factory)
}
"""Every source, by the name that `source:` has."""


def _source(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("source", "digits")
    return getattr(value, "source", None)


if TYPE_CHECKING:
    StimuliSpec = SourceSpec
else:
    StimuliSpec = Annotated[
        Union[tuple(Annotated[s.spec, Tag(name)] for name, s in SOURCES.items())],  # noqa: UP007
        Discriminator(_source),
    ]
"""What `stimuli:` may say; without `source:` it is `digits`."""


def index_stimuli(
    spec: SourceSpec, known: StimulusTable | None = None, progress: Progress | None = None
) -> StimulusTable:
    """Make the table of the set that a spec names; see `StimulusSource.index`."""
    return SOURCES[spec.source].index(spec, known, progress)


def open_stimuli(spec: SourceSpec, table: StimulusRows) -> StimulusReader:
    """Open the set that a spec names, to read the rows of its table."""
    return SOURCES[spec.source].open(spec, table)
