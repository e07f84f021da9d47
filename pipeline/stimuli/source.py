"""What a source of stimuli provides: a table, made once by the driver, and a lazy reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, Self, TypeVar

from pydantic import Field

from pipeline.config.yaml import Spec
from pipeline.stimuli.table import StimulusRows, StimulusTable
from pipeline.types import Modality


class SourceSpec(Spec):
    """What the `stimuli:` of every source may say."""

    source: str
    """Where the stimuli come from."""

    def absolute(self) -> Self:
        """Return the spec with absolute paths, for a process that runs in another folder."""
        return self

    def recorded(self) -> dict[str, Any]:
        """Return what the store keeps of the spec: what it says, defaults left out."""
        return {"source": self.source, **self.model_dump(mode="json", exclude_defaults=True)}


class FileSpec(SourceSpec):
    """What the `stimuli:` of sources of one's own files may say."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)
    """Name of the set in the store; default: from its folder or file."""
    on_bad_stimulus: Literal["error", "drop"] = "error"
    """Files that cannot be decoded: an error that names all of them, or dropped for all models."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Exact duplicates, which are each other's neighbours: reported, or dropped but the first."""


class StimulusReader(Protocol):
    """Reads items by rows; holds none of them.

    Attributes
    ----------
    table
        The rows.
    """

    table: StimulusRows

    def read(self, modality: Modality, rows: slice) -> Sequence[Any]:
        """Return the items of some rows, checked against their ids.

        Parameters
        ----------
        modality
            `image` gives 8-bit RGB images of Pillow, `text` strings, `array` arrays of NumPy.

        Raises
        ------
        InputError
            Where an item is gone, cannot be decoded, or is another than the table says.
        """


Progress = Callable[[int, int], None]
"""Called with how much is done, of how much."""
SpecT = TypeVar("SpecT", bound=SourceSpec)


class StimulusSource(Protocol[SpecT]):
    """One kind of source.

    Attributes
    ----------
    spec
        Its keys under `stimuli:`; `source` is a literal, which tells it apart.
    """

    spec: type[SpecT]

    def index(
        self,
        spec: SpecT,
        known: StimulusTable | None = None,
        progress: Progress | None = None,
    ) -> StimulusTable:
        """Make the table: find, order and identify every stimulus, and check that it decodes.

        Parameters
        ----------
        known
            A table of the same spec that was made before: what has not changed since then is
            taken from it.
        progress
            Called with how many stimuli are checked, of how many.

        Raises
        ------
        InputError
            Naming every stimulus that is bad, or what the source lacks.
        """

    def open(self, spec: SpecT, table: StimulusRows) -> StimulusReader:
        """Open the source for reading the rows of its table."""
