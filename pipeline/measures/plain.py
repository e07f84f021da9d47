"""Similarity of plain arrays, without store, labels or cluster."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from pipeline.errors import InputError
from pipeline.measures.catalog import MeasureSpec, measure_spec
from pipeline.measures.checks import checked_array
from pipeline.measures.measure import Value
from pipeline.measures.pairs import score_pairs
from pipeline.measures.prepared import Prepared, clip_thresholds, prepare
from pipeline.types import Float64


def similarity(
    x: ArrayLike, y: ArrayLike, measure: str | MeasureSpec = "cka", **parameters: Value
) -> float:
    """Compute how alike two representations of the same stimuli are.

    For relational measures the score is ``⟨R(x), R(y)⟩ / sqrt(⟨R(x), R(x)⟩ ⟨R(y), R(y)⟩)`` with R
    the n × n relation of the measure: the doubly centred Gram matrix (``cka``), the U-centred one
    (``cka_debiased``), centred kernels, distances or dissimilarities, or the shares that nearest
    neighbours have of k places (``mutual_knn``). `list_measures` and ``consilience measures NAME``
    describe the others.

    Parameters
    ----------
    x, y
        Activations `(n_stimuli, n_features)`; row i of both belongs to the same stimulus, the
        numbers of features may differ.
    measure
        A name that `list_measures` gives, or a `MeasureSpec`.
    **parameters
        The measure's parameters, such as ``k=10``, and ``preset="prh"`` for the conventions of the
        code of Huh et al. 2024, which then treats `x` and `y` as encoders of one layer.

    Returns
    -------
    float
        Higher is more alike; the range is in the measure's record. Of relational measures 1 if `x`
        and `y` are the same, up to rounding.

    Raises
    ------
    InputError
        If an array is not a real, finite matrix, the numbers of stimuli differ or are too small, a
        representation is constant so that no score exists, or the measure or a parameter is wrong.

    Notes
    -----
    Products are in float32 if both arrays are float32 or float16, else in float64; centring, norms
    and sums always in float64; neighbours always exact to float64. Needs no n × n matrix.

    References
    ----------
    Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, section 3.
    Székely & Rizzo 2014, Partial distance correlation, eq. 2.4.
    Huh et al. 2024, The Platonic Representation Hypothesis, eq. 11.

    Examples
    --------
    CKA does not change if features are permuted, scaled together or shifted:

    >>> import numpy as np
    >>> import pipeline
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(pipeline.similarity(x, 3.0 * x[:, ::-1] + 1.0, "cka"), 6)
    1.0
    """
    spec = resolved(measure, parameters)
    names = ["x", "y"]
    prepared = prepare_all([x, y], spec, names, names)
    scores = score_pairs(prepared[:1], prepared[1:], {"": spec})[""]
    check_defined(prepared, spec, names)
    return float(scores.values[0, 0])


def compare(
    xs: Sequence[ArrayLike],
    measure: str | MeasureSpec = "cka",
    *,
    encoders: Sequence[object] | None = None,
    **parameters: Value,
) -> Float64:
    """Compute how alike each of several representations is to each other one.

    Parameters
    ----------
    xs
        M arrays `(n_stimuli, n_features)` with the same stimuli; the numbers of features may
        differ.
    measure
        A name that `list_measures` gives, or a `MeasureSpec`.
    encoders
        The encoder of which each array is a layer: M names. Only a ``preset`` uses it, which clips
        the layers of an encoder at one threshold; by default each array is an encoder of its own.
    **parameters
        The measure's parameters, such as ``k=10``, or ``preset="prh"``.

    Returns
    -------
    numpy.ndarray
        `(M, M)`, float64, rows and columns in the order of `xs`. Each entry is what `similarity`
        gives.

    Raises
    ------
    InputError
        As for `similarity`; the array is named by its place in `xs`.

    Notes
    -----
    All pairs are one matrix product over tiles of pairs of stimuli; see `score_pairs`. Precision
    as in `similarity`, decided by all arrays together.

    References
    ----------
    As for `similarity`.

    Examples
    --------
    Three layers of different widths, every pair of them:

    >>> import numpy as np
    >>> import pipeline
    >>> rng = np.random.default_rng(0)
    >>> layers = [rng.normal(size=(50, width)) for width in (4, 8, 16)]
    >>> pipeline.compare(layers, "mutual_knn", k=5).shape
    (3, 3)
    """
    spec = resolved(measure, parameters)
    if len(xs) == 0:
        raise InputError("There is nothing to compare: the list of representations is empty.")
    names = [f"xs[{i}]" for i in range(len(xs))]
    of = list(range(len(xs))) if encoders is None else list(encoders)
    if len(of) != len(xs):
        raise InputError(
            f"There are {len(xs)} arrays and {len(of)} names of encoders; give one for each array."
        )
    prepared = prepare_all(xs, spec, names, of)
    scores = score_pairs(prepared, prepared, {"": spec})[""]
    check_defined(prepared, spec, names)
    return scores.values


def resolved(measure: str | MeasureSpec, parameters: dict[str, Value]) -> MeasureSpec:
    """Give the spec of a measure given by name or as a spec."""
    if not isinstance(measure, MeasureSpec):
        return measure_spec(measure, **parameters)
    if parameters:
        raise InputError(
            f"The measure {measure} is a spec with its parameters resolved; "
            f"{', '.join(parameters)} cannot be given beside it. Give the measure's name instead."
        )
    return measure


def prepare_all(
    xs: Sequence[ArrayLike], spec: MeasureSpec, names: Sequence[str], encoders: Sequence[object]
) -> list[Prepared]:
    """Prepare arrays that are to be compared, each a layer of one of the encoders."""
    arrays = [checked_array(x, name) for x, name in zip(xs, names, strict=True)]
    for array, name in zip(arrays, names, strict=True):
        if len(array) != len(arrays[0]):
            raise InputError(
                f"{names[0]} has {len(arrays[0])} stimuli (rows) and {name} has {len(array)}; "
                "row i of every representation must belong to the same stimulus."
            )
    single = all(array.dtype.kind == "f" and array.dtype.itemsize <= 4 for array in arrays)
    dtype: DTypeLike = np.float32 if single else np.float64
    clips: dict[object, dict[str, float]] = {}
    for encoder in dict.fromkeys(encoders):
        layers = [a for a, of in zip(arrays, encoders, strict=True) if of == encoder]
        clips[encoder] = clip_thresholds(partial(iter, layers), [spec])
    return [
        prepare(a, [spec], dtype=dtype, name=name, clip=clips.get(of))
        for a, name, of in zip(arrays, names, encoders, strict=True)
    ]


def check_defined(prepared: Sequence[Prepared], spec: MeasureSpec, names: Sequence[str]) -> None:
    """Refuse representations for which the score is undefined. Free once scores are computed."""
    for each, name in zip(prepared, names, strict=True):
        if reason := each.undefined_reason(spec):
            raise InputError(f"{name} {reason}")
