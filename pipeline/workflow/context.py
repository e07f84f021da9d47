"""What a workflow comes to, once its files have been read: what every stage asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.config.registry import Registry
from pipeline.encoder import Encoder
from pipeline.measures import MeasureSpec
from pipeline.stimuli import StimulusSet, Subset
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
        The store; None where there is none yet. The driver of a run can write it.
    untrained
        What is trained before anything else.
    models
        What each model has in the store, and what it lacks.
    replaced
        Labels of measures of which all that is stored counts as not there.
    encoders
        Before extraction: all that will be in the store; after it: those that are.
    changing
        Whether what is pending of an earlier stage changes what later ones are made from: then a
        plan takes these for missing.
    """

    workflow: Workflow
    store: Store | None
    registry: Registry
    stimuli: StimulusSet
    subset: Subset
    untrained: Sequence[TrainingRecipe]
    models: Sequence[ModelPlan]
    replaced: frozenset[str] = frozenset()
    encoders: Sequence[Encoder] = ()
    changing: bool = False
    _comparisons: list[Comparison] = field(default_factory=list, repr=False)

    def meet(self, encoders: Sequence[Encoder]) -> None:
        """Take encoders for those that there are, and work out who meets whom on which rows."""
        self.encoders = encoders
        self._comparisons = comparisons_of(self.workflow, self.subset, encoders)

    @property
    def comparisons(self) -> Sequence[Comparison]:
        """Who meets whom, on which rows."""
        return self._comparisons

    @property
    def key(self) -> str:
        """Key of the subset under which results of all comparisons stand."""
        return self.comparisons[0].subset.key

    @property
    def specs(self) -> Mapping[str, MeasureSpec]:
        """Label → measure with all its parameters."""
        return self.workflow.compare.specs

    @property
    def writer(self) -> StoreWriter:
        """The store of the driver of a run."""
        assert isinstance(self.store, StoreWriter)
        return self.store

    def store_of(self, label: str) -> Store | None:
        """Return the store in which to look for a measure's results."""
        return None if label in self.replaced else self.store
