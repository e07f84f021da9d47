"""Relations of one representation, each formed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.measures.dense import MEASURES
from pipeline.measures.dense.forming import constant_relation
from pipeline.measures.dense.relations import Relation, RelationKey
from pipeline.measures.numerics import is_constant

_FORMS: Mapping[str, Callable[..., Relation]] = {
    measure.relation[0]: measure.form for measure in MEASURES
}
"""By what they form."""


def relate(
    values: NDArray[Any], eps: float, keys: Iterable[RelationKey], dtype: DTypeLike
) -> dict[RelationKey, Relation]:
    """Prepare relations of one representation.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, already checked, float32 or float64.
    eps
        Machine epsilon of the dtype they were stored in.
    keys
        The relations wanted.
    dtype
        Of the blocks to be multiplied.

    Returns
    -------
    dict
        By key.

    Raises
    ------
    InputError
        For Spearman's comparison of more stimuli than a table of ranks can have.
    """
    wanted, kind = set(keys), np.dtype(dtype)
    if not wanted:
        return {}
    if is_constant(values, eps):
        return {key: constant_relation(len(values), kind) for key in wanted}
    return {key: _FORMS[str(key[0])](values, eps, kind, *key[1:]) for key in wanted}
