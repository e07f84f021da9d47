"""What a source of models declares, and what is known of a tower before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.types import Modality


@dataclass(frozen=True)
class TowerInfo:
    """What is known of a tower without its weights.

    Attributes
    ----------
    modality
        What the tower takes.
    layers
        Layer names, from input to output.
    widths
        Features of each layer after pooling.
    n_parameters
        Parameters without classifier head and without token embeddings.
    n_embedding_parameters
        Parameters of the token embedding.
    flops
        Floating-point operations of one forward pass for one stimulus (a multiply-add is two).
    pooling
        How each layer is pooled, with `auto` resolved, and separated by commas where in several
        ways; `eot` is the token that a text tower reads out. `none` where there is only an
        embedding.
    preprocessing
        What the source does to an input.
    input_bytes, working_bytes
        Memory of one preprocessed stimulus, and peak memory of its forward pass.
    weight_bytes
        Memory of the whole model.
    """

    modality: Modality
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    n_parameters: int
    n_embedding_parameters: int
    flops: float
    pooling: str
    preprocessing: dict[str, Any]
    input_bytes: int
    working_bytes: int
    weight_bytes: int


class Entry(Protocol):
    """A registry entry, as far as a source looks at it."""

    @property
    def name(self) -> str:
        """The library's name of the model."""

    @property
    def pretrained(self) -> str | None:
        """Tag of published weights."""

    @property
    def config(self) -> str | None:
        """JSON file of an architecture."""

    @property
    def towers(self) -> tuple[str, ...]:
        """Towers that are extracted."""

    @property
    def architecture(self) -> dict[str, Any]:
        """What the JSON file of `config` says."""


class ModelSource(Protocol):
    """A library of models, as far as it is known without being imported.

    Attributes
    ----------
    packages
        Distributions whose versions are recorded with the activations.
    towers
        The towers of an entry that names none.
    objective
        What reference models of this source are trained on.
    size_arguments
        Arguments that most often differ between a training run and the default, for messages.
    torch_module
        The module that imports the library; its `SOURCE` builds and runs the models.
    """

    packages: tuple[str, ...]
    towers: tuple[str, ...]
    objective: Literal["classification", "contrastive"]
    size_arguments: str
    torch_module: str

    def check_entry(self, entry: Entry) -> None:
        """Raise ValueError where an entry has keys or towers that this source does not take."""

    def published_name(self, entry: Entry, tag: str | None) -> str:
        """Return architecture and tag of published weights, as in `resnet50.a1_in1k`.

        Parameters
        ----------
        tag
            Of a checkpoint; default: the entry's.
        """

    def folder(self, entry: Entry) -> Path | None:
        """Return the folder of weights and configuration that an entry's `name:` stands for."""
        return None

    def folder_name(self, folder: str | Path) -> str:
        """Return the `name:` that stands for a folder."""
        return str(folder)

    def vocabulary(self, entry: Entry) -> Path | None:
        """Return the file of the tokenizer's merges, where an entry's `config:` names one."""
        return None

    def vocabulary_size(self, entry: Entry) -> int | None:
        """Return the number of tokens that an entry's `config:` states."""
        return None
