"""A workflow whose files have been read: the shared state of all stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.config.registry import Registry
from pipeline.encoder import Encoder
from pipeline.measures import MeasureSpec
from pipeline.stimuli import StimulusTable, Subset
from pipeline.store import Store
from pipeline.store.writer import StoreWriter
from pipeline.training import TrainingRecipe
from pipeline.workflow.comparisons import Comparison, comparisons_of
from pipeline.workflow.models import ModelPlan
from pipeline.workflow.spec import Workflow


@dataclass
class Context:
    """A workflow with its models, stimuli and store.

    Attributes
    ----------
    store
        The store; None if it does not exist yet. Writable in the driver of a run.
    untrained
        Recipes to train before the first stage.
    models
        What each model has in the store, and what is missing.
    replaced
        Labels of measures whose stored results are ignored.
    encoders
        Before extraction: all that will be in the store. After it: those that are.
    changing
        Labels of measures whose results change with the pending work of earlier stages. A plan
        counts what depends on these as missing.
    """

    workflow: Workflow
    store: Store | None
    registry: Registry
    stimuli: StimulusTable
    subset: Subset
    untrained: Sequence[TrainingRecipe]
    models: Sequence[ModelPlan]
    replaced: frozenset[str] = frozenset()
    encoders: Sequence[Encoder] = ()
    changing: set[str] = field(default_factory=set)
    _comparisons: list[Comparison] = field(default_factory=list, repr=False)

    def set_encoders(self, encoders: Sequence[Encoder]) -> None:
        """Set the encoders, and work out which of them are compared on which rows.

        Raises
        ------
        InputError
            As `comparisons_of`.
        """
        self.encoders = encoders
        self._comparisons = comparisons_of(self.workflow, self.subset, encoders)

    @property
    def comparisons(self) -> Sequence[Comparison]:
        """Pairs of encoders to compare, by subset."""
        return self._comparisons

    @property
    def key(self) -> str:
        """Key of the subset under which the results of all comparisons are stored."""
        return self.comparisons[0].subset.key

    @property
    def specs(self) -> Mapping[str, MeasureSpec]:
        """Label → measure with all its parameters."""
        return self.workflow.compare.specs

    @property
    def writer(self) -> StoreWriter:
        """The store, writable; only in the driver of a run."""
        assert isinstance(self.store, StoreWriter)
        return self.store

    def store_of(self, label: str) -> Store | None:
        """Return the store in which to look for a measure's results, or None to ignore them."""
        return None if label in self.replaced else self.store
