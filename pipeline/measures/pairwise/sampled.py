"""Minibatch CKA: an estimate from batches of stimuli.

Unbiased HSIC of one batch is the inner product of two U-centred Gram matrices (Székely & Rizzo
2014, eq. 2.4) over b(b−3). So minibatch CKA is the cosine between two vectors, which are prepared:
the weighted entries above the diagonal of all batches' U-centred Gram matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError
from pipeline.measures.measure import EUCLIDEAN, Parameter
from pipeline.measures.numerics import EPS
from pipeline.measures.pairwise.centring import CENTRING, centred
from pipeline.measures.pairwise.measure import PairwiseMeasure
from pipeline.types import Float64, Index

MIN_BATCH = 4
"""Unbiased HSIC divides by n − 3."""


@dataclass(frozen=True, eq=False)
class BatchGrams:
    """U-centred Gram matrices of all batches, above the diagonal, one after the other.

    Scaled so that the inner product of two representations' `entries` is the sum of the batches'
    unbiased HSIC, up to a factor of each representation's own; `norm` is their length. `defined`
    is false for a representation without any variation within batches that HSIC could see.
    """

    entries: Float64
    norm: float
    defined: bool


def batches(n: int, batch_size: int, n_passes: int, seed: int) -> list[Index]:
    """Divide stimuli into random batches, differently in every pass.

    Parameters
    ----------
    n
        Number of stimuli.
    batch_size
        Stimuli in a batch; a pass's last batch holds what is left over, and is dropped if these
        are fewer than 4.
    n_passes
        How many times to go through all stimuli, each time in another order.
    seed
        Of the orders.

    Returns
    -------
    list of numpy.ndarray
        Row numbers of each batch.

    Raises
    ------
    InputError
        If a batch, or all stimuli together, are fewer than 4.
    """
    if min(n, batch_size) < MIN_BATCH:
        raise InputError(
            f"Batches of {batch_size} of {n} stimuli: unbiased HSIC needs at least "
            f"{MIN_BATCH} in a batch. Use larger batches, or more stimuli."
        )
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_passes):
        order = rng.permutation(n)
        pieces = [order[start : start + batch_size] for start in range(0, n, batch_size)]
        found += [piece for piece in pieces if len(piece) >= MIN_BATCH]
    return found


def prepare_cka_minibatch(
    values: Float64,
    *,
    batch_size: int = 256,
    n_passes: int = 10,
    seed: int = 0,
    eps: float = EPS,
) -> BatchGrams:
    """Compute the U-centred Gram matrices of all batches.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, real and finite.
    batch_size, n_passes, seed
        As for `batches`; representations to be compared need the same.
    eps
        Machine epsilon of the dtype that the features were stored in.

    Returns
    -------
    BatchGrams
        About n_passes · n_stimuli · batch_size / 2 numbers.

    Raises
    ------
    InputError
        If batches hold fewer than 4 stimuli.
    """
    drawn = batches(len(values), batch_size, n_passes, seed)
    features = centred(values, eps)
    if features is None:
        return BatchGrams(np.zeros(0), 0.0, False)
    parts, scale = [], 0.0
    for batch in drawn:
        rows = features.features[batch]
        gram, spread = _u_centred(rows - rows.mean(axis=0))
        # Twice for what lies below the diagonal.
        weight = np.sqrt(2.0 / (len(batch) * (len(batch) - 3)))
        parts.append(weight * gram[np.triu_indices(len(batch), 1)])
        scale += spread**2
    entries = np.concatenate(parts)
    norm = float(np.linalg.norm(entries))
    # A Gram matrix in which nothing varies still has the rounding errors of its entries.
    defined = norm > 16 * max(eps, EPS) * np.sqrt(scale)
    return BatchGrams(entries, norm if defined else 0.0, bool(defined))


def _u_centred(rows: Float64) -> tuple[Float64, float]:
    """U-centre the Gram matrix of centred rows off the diagonal; also give the diagonal's mean."""
    n = len(rows)
    gram = rows @ rows.T
    diagonal = np.diag(gram).copy()
    total = float(diagonal.sum())
    # Rows of the Gram matrix of centred features sum to zero, so without the diagonal to −d.
    shift = diagonal / (n - 2) - total / (2 * (n - 1) * (n - 2))
    gram += shift[:, None]
    gram += shift
    return np.asarray(gram), total / n


def compare_cka_minibatch(x: BatchGrams, y: BatchGrams) -> float:
    """Compute linear CKA from batches.

    Returns
    -------
    float
        Mean over batches of HSIC₁(x, y), over the geometric mean of those of HSIC₁(x, x) and of
        HSIC₁(y, y): from −1 to 1.

    Notes
    -----
    Batches count equally, whatever their size; only a pass's last can differ. With one batch of
    all stimuli this is debiased CKA. Means are taken before the ratio and are unbiased for any
    batch size; so the score depends little on it, unlike an average of batches' CKA.

    References
    ----------
    Nguyen, Raghu & Kornblith 2021, Do Wide and Deep Networks Learn the Same Things?, ICLR, eq. 2
    to 4. Song et al. 2012, JMLR 13, eq. 5.
    """
    if not (x.defined and y.defined):
        return float("nan")
    return float(x.entries @ y.entries) / (x.norm * y.norm)


CKA_MINIBATCH = PairwiseMeasure(
    name="cka_minibatch",
    kind="sampled",
    prepare=prepare_cka_minibatch,
    compare=compare_cka_minibatch,
    symmetric=True,
    range=(-1.0, 1.0),
    invariances=EUCLIDEAN,
    parameters=(
        Parameter("batch_size", 256, "stimuli in a batch", minimum=MIN_BATCH),
        Parameter("n_passes", 10, "passes through all stimuli"),
        Parameter("seed", 0, "of the orders in which stimuli are drawn", minimum=0),
    ),
    prepares=("batch_size", "n_passes", "seed"),
    conventions=(
        ("kernel", "linear"),
        ("estimator", "minibatch"),
        *CENTRING,
        ("batches", "of equal weight, a rest of fewer than 4 left out"),
    ),
    minimum_stimuli=4,
    reference="Nguyen et al. 2021, ICLR, eq. 2 to 4",
    prose=(
        "CKA from the unbiased estimate of HSIC averaged over minibatches, the same for both "
        "representations, before the ratio is taken."
    ),
)
