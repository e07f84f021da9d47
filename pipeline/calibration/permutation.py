"""The null by permutation: the reference for the analytic one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from pipeline.calibration.aggregate import AGGREGATES, aggregate_layers
from pipeline.errors import InputError
from pipeline.measures.catalog import MeasureSpec
from pipeline.measures.pairs import MEMORY
from pipeline.measures.permuted import score_permuted, working_bytes
from pipeline.measures.prepared import Prepared
from pipeline.types import Float64, Index, Mask


def permutations(n: int, n_permutations: int, seed: int) -> Index:
    """Draw permutations of n stimuli.

    Parameters
    ----------
    n
        Number of stimuli, at least 2.
    n_permutations
        How many, at least 1.
    seed
        The same seed gives the same permutations, and more of them begin with the fewer.

    Returns
    -------
    numpy.ndarray
        `(n_permutations, n)`; each row a permutation of ``range(n)``.

    Raises
    ------
    InputError
        If a number is too small.

    Examples
    --------
    >>> permutations(3, 2, seed=0).shape
    (2, 3)
    """
    if n < 2 or n_permutations < 1:
        raise InputError(
            f"{n_permutations} permutations of {n} stimuli were asked for; there must be at least "
            "1 permutation, of at least 2 stimuli."
        )
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) for _ in range(n_permutations)])


def permutation_null(
    xs: Sequence[Prepared],
    ys: Sequence[Prepared],
    x_groups: ArrayLike,
    y_groups: ArrayLike,
    specs: Mapping[str, MeasureSpec],
    orders: ArrayLike,
    *,
    wanted: ArrayLike | None = None,
    memory: int = MEMORY,
) -> dict[str, dict[str, Float64]]:
    """Score encoders under permutations of the stimuli of Y.

    All layers of all Y take the same permutation, which keeps the similarities among them; the
    scores of layers are then aggregated as the observed ones are.

    Parameters
    ----------
    xs, ys
        Prepared representations (layers) of the same stimuli.
    x_groups, y_groups
        The encoder of each representation, integers from 0.
    specs
        Measures by label.
    orders
        Permutations `(K, n_stimuli)`, such as `permutations` gives.
    wanted
        Boolean mask `(Gx, Gy)` of pairs of encoders; others are NaN and not computed.
    memory
        Working memory in bytes. n² numbers are always held (the relation of one layer of Y,
        or an index of pairs of stimuli), and every X's neighbour lists. Results are
        `(Gx, Gy, K)` per measure and aggregate.

    Returns
    -------
    dict of dict of numpy.ndarray
        By label, then by aggregate (``"max"``, ``"mean"``): `(Gx, Gy, K)` in float64.

    Raises
    ------
    InputError
        As `score_pairs`, and if groups or mask do not fit.

    References
    ----------
    Gröger et al. 2026: the null of a search over layers is the null of the maximum.
    """
    gx, gy, mask = checked_encoders(len(xs), len(ys), x_groups, y_groups, wanted)
    orders = np.asarray(orders, dtype=np.intp)
    nulls = {
        label: {how: np.full((*mask.shape, len(orders)), np.nan) for how in AGGREGATES}
        for label in specs
    }
    of_layers = mask[np.ix_(gx, gy)]
    rows = np.flatnonzero(of_layers.any(axis=1))
    columns = np.flatnonzero(of_layers.any(axis=0))
    if not rows.size:
        return nulls
    some = [xs[i] for i in rows.tolist()]
    encoders_x, places_x = np.unique(gx[rows], return_inverse=True)
    # A batch holds all layers of some encoders of Y, in the order of the encoders.
    for encoders_y in _batches(gy[columns], _capacity(len(some), orders.shape, some[0], memory)):
        chosen = columns[np.isin(gy[columns], encoders_y)]
        wanted_here = of_layers[np.ix_(rows, chosen)]
        scores = _score_in_parts(
            some, [ys[j] for j in chosen.tolist()], specs, orders, wanted_here, memory
        )
        places_y = np.searchsorted(encoders_y, gy[chosen])
        for label, values in scores.items():
            for how, each in aggregate_layers(values, places_x, places_y).items():
                nulls[label][how][np.ix_(encoders_x, encoders_y)] = np.moveaxis(each, 0, -1)
    return nulls


def checked_encoders(
    n_xs: int, n_ys: int, x_groups: ArrayLike, y_groups: ArrayLike, wanted: ArrayLike | None
) -> tuple[Index, Index, Mask]:
    """Check encoder numbers and the mask of wanted pairs of encoders, `(Gx, Gy)`."""
    gx, gy = _checked_groups(x_groups, n_xs, "x"), _checked_groups(y_groups, n_ys, "y")
    shape = (int(gx.max()) + 1, int(gy.max()) + 1)
    mask = np.ones(shape, bool) if wanted is None else np.asarray(wanted, bool)
    if mask.shape != shape:
        raise InputError(
            f"The mask of wanted pairs of encoders has shape {mask.shape}; there are {shape[0]} "
            f"and {shape[1]} encoders, so it must be {shape}."
        )
    return gx, gy, mask


def _checked_groups(groups: ArrayLike, count: int, side: str) -> Index:
    index = np.asarray(groups, dtype=np.intp)
    if index.shape != (count,) or count == 0:
        raise InputError(
            f"{side}_groups has shape {index.shape} and there are {count} representations; give "
            "one encoder number for each, and at least one."
        )
    if not np.array_equal(np.unique(index), np.arange(index.max() + 1)):
        raise InputError(
            f"{side}_groups must number the encoders 0, 1, 2, … without gaps; it has "
            f"{np.unique(index).tolist()}."
        )
    return index


def _batches(groups: Index, capacity: int) -> list[Index]:
    """Split encoders into batches of at most `capacity` layers, with at least one encoder each."""
    batches: list[list[int]] = []
    room = 0
    for encoder, layers in zip(*(c.tolist() for c in np.unique_counts(groups)), strict=True):
        if not batches or layers > room:
            batches.append([])
            room = capacity
        batches[-1].append(encoder)
        room -= layers
    return [np.array(batch, dtype=np.intp) for batch in batches]


def _capacity(n_xs: int, orders_shape: tuple[int, ...], example: Prepared, memory: int) -> int:
    """Count the representations of Y that fit into the budget at a time."""
    n_orders, n = orders_shape
    dtype = next((r.dtype for r in example.relations.values()), np.dtype(np.float32))
    return max(1, memory // working_bytes(n, n_orders, n_xs, 1, dtype))


def _score_in_parts(
    xs: list[Prepared],
    ys: list[Prepared],
    specs: Mapping[str, MeasureSpec],
    orders: Index,
    wanted: Mask,
    memory: int,
) -> dict[str, Float64]:
    """Score under permutations; an encoder too large for the budget goes some layers at a time."""
    step = _capacity(len(xs), orders.shape, xs[0], memory)
    cuts = [slice(start, start + step) for start in range(0, len(ys), step)]
    parts = [score_permuted(xs, ys[cut], specs, orders, wanted=wanted[:, cut]) for cut in cuts]
    return {label: np.concatenate([part[label] for part in parts], axis=-1) for label in specs}
