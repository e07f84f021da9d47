"""Measures of how the directions of two feature spaces correspond.

With centred features X = U S Vᵀ, Procrustes, canonical correlations and GULP need only the
product U_xᵀ U_y of a pair and the singular values: they share `prepare_subspace`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from pipeline.measures.measure import EUCLIDEAN, Parameter
from pipeline.measures.numerics import EPS
from pipeline.measures.pairwise.centring import CENTRING, Centred, centred
from pipeline.measures.pairwise.measure import PairwiseMeasure
from pipeline.measures.presets import HUH
from pipeline.types import Float64


@dataclass(frozen=True, eq=False)
class Subspace:
    """Thin singular value decomposition of centred features.

    `left` is `(n_stimuli, rank)` with orthonormal columns, `singular` `(rank,)`, descending, all
    above rounding. `loadings` are the features in this basis, S Vᵀ, `(rank, n_features)`, where
    they were asked for. `defined` is false for constant features, whose rank is 0.
    """

    left: Float64
    singular: Float64
    loadings: Float64 | None
    defined: bool


def decomposed(features: Centred) -> tuple[Float64, Float64, Float64]:
    """Give U, s and Vᵀ without directions that are only rounding errors."""
    u, s, vt = linalg.svd(features.features, full_matrices=False)
    own = EPS * max(features.features.shape) * s[0]
    # Centred rows sum to zero, so that there are n − 1 directions at most.
    rank = min(int(np.count_nonzero(s > max(features.noise, own))), len(u) - 1)
    return u[:, :rank], s[:rank], vt[:rank]


def prepare_subspace(values: Float64, *, loadings: bool = False, eps: float = EPS) -> Subspace:
    """Decompose centred features.

    Parameters
    ----------
    values
        Features `(n_stimuli, n_features)`, real and finite.
    loadings
        Keep S Vᵀ too, which only `compare_pwcca` needs.
    eps
        Machine epsilon of the dtype that the features were stored in. It decides the rank:
        singular values below the rounding error of the stored features, or of the decomposition
        itself, are left out.

    Returns
    -------
    Subspace
        Not defined for constant features.

    Notes
    -----
    The decomposition is of the features, not of their covariance, which would square their
    condition number. O(n d min(n, d)).
    """
    features = centred(values, eps)
    if features is not None:
        u, s, vt = decomposed(features)
        if len(s) > 0:
            kept = s[:, None] * vt if loadings else None
            return Subspace(np.ascontiguousarray(u), s, kept, True)
    nothing = np.zeros((0, values.shape[1])) if loadings else None
    return Subspace(np.zeros((len(values), 0)), np.zeros(0), nothing, False)


def prepare_pwcca(values: Float64, *, eps: float = EPS) -> Subspace:
    """Decompose centred features and keep the features in the basis; see `prepare_subspace`."""
    return prepare_subspace(values, loadings=True, eps=eps)


def compare_procrustes(x: Subspace, y: Subspace, *, form: str = "angular") -> float:
    """Compute how well one representation can be rotated onto the other.

    Parameters
    ----------
    form
        ``"nuclear"``: c = ‖XᵀY‖_* / (‖X‖_F ‖Y‖_F) of centred X and Y, the cosine after the best
        rotation (normalised Bures similarity). ``"angular"``: 1 − (2/π) arccos c, whose complement
        is the angular shape metric as a share of its largest value.

    Returns
    -------
    float
        From 0 to 1, 1 for representations that are equal up to translation, rotation, reflection
        and scale.

    Notes
    -----
    The squared Procrustes distance of representations of unit norm is 2 − 2c. Features of
    different numbers are compared as if the fewer were filled up with zeros. Where c is close to
    1, the angle is computed from the distance and not from c, whose last digits it would amplify.

    References
    ----------
    Williams et al. 2021, Generalized Shape Metrics on Neural Representations, NeurIPS, section 2
    (angular distance, orthogonal group). Harvey, Larsen & Williams 2024, Duality of Bures and
    Shape Distances (nuclear norm form).
    """
    if not (x.defined and y.defined):
        return float("nan")
    scaled_x = x.singular / np.linalg.norm(x.singular)
    scaled_y = y.singular / np.linalg.norm(y.singular)
    product = scaled_x[:, None] * (x.left.T @ y.left) * scaled_y
    cosine = min(1.0, float(linalg.svdvals(product).sum()))
    if form == "nuclear":
        return cosine
    angle = math.acos(cosine)
    if cosine > 0.999:
        angle = 2.0 * math.asin(min(1.0, _distance(x.left * scaled_x, y.left * scaled_y) / 2.0))
    return 1.0 - 2.0 / math.pi * angle


def _distance(x: Float64, y: Float64) -> float:
    """Frobenius distance of x and y after the best rotation."""
    p, _, qt = linalg.svd(x.T @ y, full_matrices=True)
    difference = np.zeros((len(x), max(x.shape[1], y.shape[1])))
    difference[:, : x.shape[1]] += x @ p
    difference[:, : y.shape[1]] -= y @ qt.T
    return float(np.linalg.norm(difference))


PROCRUSTES = PairwiseMeasure(
    name="procrustes",
    kind="subspace",
    prepare=prepare_subspace,
    compare=compare_procrustes,
    symmetric=True,
    range=(0.0, 1.0),
    invariances=EUCLIDEAN,
    parameters=(
        Parameter(
            "form",
            "angular",
            "the cosine after the best rotation, or its angle",
            choices=("angular", "nuclear"),
        ),
    ),
    conventions=(*CENTRING, ("normalisation", "Frobenius")),
    minimum_stimuli=3,
    reference="Williams et al. 2021, NeurIPS; Harvey et al. 2024 (normalised Bures similarity)",
    prose=(
        "The cosine of two representations after the best rotation, the nuclear norm "
        "‖XᵀY‖ over ‖X‖‖Y‖ (`nuclear`), or 1 − (2/π) of its angle (`angular`)."
    ),
)


def _trivial(rank: int, n: int, remedy: str) -> str:
    """Say that the rank makes all canonical correlations 1; empty if it does not."""
    if rank < n - 1:
        return ""
    return (
        f"has rank {rank} over {n} stimuli, with which it can predict anything about them: its "
        f"canonical correlations are all 1, whatever the other representation. {remedy}"
    )


def cca_undefined_reason(x: Subspace, *, tolerance: float, **_: object) -> str:
    """Say why a state has no canonical correlations; empty if it has."""
    remedy = (
        "Use more stimuli, fewer features, or a measure that is defined for as many, such as "
        "cka_debiased. What svcca gives is near 1 for anything, noise included, where it keeps "
        "nearly as many components as there are stimuli; only calibration (pipeline.calibrate, or "
        "calibrate: in a workflow) tells it from chance."
    )
    return _trivial(_above(x, tolerance), len(x.left), remedy)


def svcca_undefined_reason(x: Subspace, *, variance: float, dimension: int) -> str:
    """Say why the kept components have no canonical correlations; empty if they have."""
    remedy = (
        "Use more stimuli, a smaller variance, or a dimension, to keep far fewer components than "
        "stimuli: with nearly as many the score is near 1 for anything, noise included, and only "
        "calibration (pipeline.calibrate, or calibrate: in a workflow) tells it from chance."
    )
    return _trivial(_kept(x, variance, dimension), len(x.left), remedy)


def _above(x: Subspace, tolerance: float) -> int:
    """Count singular values above a share of the largest."""
    return int(np.count_nonzero(x.singular > tolerance * x.singular[0]))


def _correlations(x: Float64, y: Float64) -> Float64:
    """Canonical correlations of two orthonormal bases, descending."""
    return np.minimum(np.asarray(linalg.svdvals(x.T @ y), dtype=np.float64), 1.0)


def compare_cca(
    x: Subspace, y: Subspace, *, statistic: str = "mean", tolerance: float = 1e-6
) -> float:
    """Compute the mean canonical correlation, or the mean squared one.

    Parameters
    ----------
    statistic
        ``"mean"`` for the mean ρ̄ of the canonical correlations, ``"mean_squared"`` for R²_CCA.
    tolerance
        Directions whose singular value is at most this share of the largest are left out.

    Returns
    -------
    float
        From 0 to 1.

    Notes
    -----
    There are min(rank x, rank y) correlations, and the mean is over these. If the ranks add up to
    more than n − 1, the excess of them is 1 whatever the representations: the score is inflated,
    though not meaningless.

    References
    ----------
    Raghu et al. 2017, SVCCA, NeurIPS (mean correlation). Kornblith et al. 2019, Similarity of
    Neural Network Representations Revisited, table 1 (R²_CCA and mean CCA).
    """
    if not (x.defined and y.defined):
        return float("nan")
    of_x, of_y = _above(x, tolerance), _above(y, tolerance)
    correlations = _correlations(x.left[:, :of_x], y.left[:, :of_y])
    return float((correlations if statistic == "mean" else correlations**2).mean())


_TOLERANCE = Parameter(
    "tolerance",
    1e-6,
    "singular values at most this share of the largest are left out",
    minimum=0.0,
    maximum=0.5,
)

CCA = PairwiseMeasure(
    name="cca",
    kind="subspace",
    prepare=prepare_subspace,
    compare=compare_cca,
    undefined_reason=cca_undefined_reason,
    symmetric=True,
    range=(0.0, 1.0),
    invariances=(*EUCLIDEAN, "invertible linear transformation"),
    parameters=(
        Parameter(
            "statistic",
            "mean",
            "mean of the canonical correlations, or of their squares",
            choices=("mean", "mean_squared"),
        ),
        _TOLERANCE,
    ),
    conventions=(*CENTRING, ("number", "smaller rank")),
    minimum_stimuli=3,
    reference="Raghu et al. 2017, NeurIPS; Kornblith et al. 2019, table 1",
    prose=(
        "Mean of the canonical correlations, or of their squares. Inflated when the ranks "
        "together exceed the stimuli, undefined where one alone makes it 1."
    ),
)


def compare_svcca(x: Subspace, y: Subspace, *, variance: float = 0.99, dimension: int = 0) -> float:
    """Compute the mean canonical correlation of the largest principal components.

    Parameters
    ----------
    variance
        The share of variance that is kept: by as few components as reach it.
    dimension
        If not 0, the number of components that is kept, in place of `variance`. Of a representation
        of lower rank, all are.

    Returns
    -------
    float
        From 0 to 1.

    Notes
    -----
    Where the components that are kept are nearly as many as the stimuli, the score is near 1
    whatever the representations are. Features are not scaled: those of large variance decide which
    components are kept.

    References
    ----------
    Raghu et al. 2017, SVCCA: Singular Vector Canonical Correlation Analysis for Deep Learning
    Dynamics and Interpretability, NeurIPS, section 2.
    """
    if not (x.defined and y.defined):
        return float("nan")
    of_x, of_y = _kept(x, variance, dimension), _kept(y, variance, dimension)
    return float(_correlations(x.left[:, :of_x], y.left[:, :of_y]).mean())


def _kept(x: Subspace, variance: float, dimension: int) -> int:
    """Count the components that are kept."""
    if dimension > 0:
        return min(dimension, len(x.singular))
    shares = np.cumsum(x.singular**2)
    # Slightly less, so that one of two equal components reaches 0.5.
    enough = np.searchsorted(shares, variance * shares[-1] * (1 - 64 * EPS))
    return min(int(enough) + 1, len(x.singular))


SVCCA = PairwiseMeasure(
    name="svcca",
    kind="subspace",
    prepare=prepare_subspace,
    compare=compare_svcca,
    undefined_reason=svcca_undefined_reason,
    symmetric=True,
    range=(0.0, 1.0),
    invariances=EUCLIDEAN,
    parameters=(
        Parameter("variance", 0.99, "share of variance kept", minimum=0.01, maximum=1.0),
        Parameter("dimension", 0, "number of components kept, in place of variance", minimum=0),
    ),
    has_preset=False,
    conventions=(
        *CENTRING,
        ("scale", "features as they are, not z-scored"),
        ("decomposition", "exact"),
    ),
    minimum_stimuli=3,
    reference="Raghu et al. 2017, NeurIPS",
    prose=(
        "Mean canonical correlation of the leading principal components. Near 1 for anything, "
        "noise included, where the components are nearly as many as the stimuli: compare "
        "calibrated scores, or set a dimension far below."
    ),
    elsewhere=(
        (
            HUH,
            "features are z-scored, and 10 components kept of a randomised decomposition, so "
            "that the score changes with the seed",
        ),
    ),
)


def compare_pwcca(x: Subspace, y: Subspace, *, tolerance: float = 1e-6) -> float:
    """Compute the mean canonical correlation, weighted by how much of x each explains.

    Parameters
    ----------
    tolerance
        Directions whose singular value is at most this share of the largest are left out.

    Returns
    -------
    float
        Σ α_i ρ_i / Σ α_i, from 0 to 1.

    Notes
    -----
    α_i = Σ_j |⟨h_i, x_j⟩| with h_i the canonical variates of x, of unit norm, and x_j the centred
    features of x. Not symmetric: the weights are of the first argument. A sum of absolute values
    depends on the axes: unlike other canonical correlations, this changes with a rotation of x,
    though not with one of y. Where several correlations coincide, their variates, and so their
    weights, are not determined; what comes out is one of the possible scores.

    The authors' code gives other numbers. It weights the representation with fewer features, by
    features with their means, and in place of the variates it has an orthonormal basis, made in
    order, of centred features that were rotated by the singular vectors of the whitened
    covariance, without being whitened, and had their means added again.

    References
    ----------
    Morcos, Raghu & Bengio 2018, Insights on Representational Similarity in Neural Networks with
    Canonical Correlation, NeurIPS, section 3.
    """
    if not (x.defined and y.defined) or x.loadings is None:
        return float("nan")
    of_x, of_y = _above(x, tolerance), _above(y, tolerance)
    p, correlations, _ = linalg.svd(x.left[:, :of_x].T @ y.left[:, :of_y], full_matrices=False)
    weights = np.abs(p.T @ x.loadings[:of_x]).sum(axis=1)
    return float(np.minimum(correlations, 1.0) @ weights / weights.sum())


PWCCA = PairwiseMeasure(
    name="pwcca",
    kind="subspace",
    prepare=prepare_pwcca,
    compare=compare_pwcca,
    undefined_reason=cca_undefined_reason,
    symmetric=False,
    range=(0.0, 1.0),
    invariances=("translation", "isotropic scaling", "permutation of features"),
    parameters=(_TOLERANCE,),
    conventions=(
        *CENTRING,
        ("weights", "of x"),
        ("variates", "whitened: uncorrelated, of mean 0 and equal norm"),
    ),
    minimum_stimuli=3,
    reference="Morcos et al. 2018, NeurIPS",
    prose=(
        "Canonical correlations weighted by how much of x each direction accounts for. Also "
        "invariant to invertible linear transformations of y."
    ),
    elsewhere=(
        (
            "Morcos et al. 2018, code",
            "the directions that are weighted are not whitened, so that they are no canonical "
            "variates: features are rotated by the singular vectors of the whitened "
            "covariance, their means added again, and the result made orthogonal in order; the "
            "weights are sums over features with their means, of the representation that has "
            "fewer features",
        ),
    ),
)


def compare_gulp(x: Subspace, y: Subspace, *, ridge: float = 0.01) -> float:
    """Compute how similar ridge predictions from x and from y are, over all targets.

    Parameters
    ----------
    ridge
        λ, for features scaled to a total variance of 1.

    Returns
    -------
    float
        From 0 to 1, 1 for equal arguments.

    Notes
    -----
    With Σ the covariances (over n) of centred features scaled to tr Σ = 1, as in the authors' code,
    and Σ^{-λ} = (Σ + λI)⁻¹, the squared GULP distance is t_xx + t_yy − 2 t_xy, where
    t_xy = tr(Σ_x^{-λ} Σ_xy Σ_y^{-λ} Σ_yx). This is its inner product, normalised:
    t_xy / sqrt(t_xx t_yy). With shrinkage D = s²/(s² + nλ), t_xy = Σ_ij D_i D'_j (U_xᵀ U_y)²_ij,
    so that this is the cosine between the hat matrices of the two ridge regressions: for λ → 0
    between projections, and for λ → ∞ linear CKA.

    References
    ----------
    Boix-Adserà et al. 2022, GULP: a prediction-based metric between representations, NeurIPS,
    the definition and its closed form, and ``predictor_dist`` of the authors' code.
    """
    if not (x.defined and y.defined):
        return float("nan")
    shrunk_x, shrunk_y = _shrinkage(x, ridge), _shrinkage(y, ridge)
    cross = float(shrunk_x @ (x.left.T @ y.left) ** 2 @ shrunk_y)
    return min(1.0, cross / float(np.linalg.norm(shrunk_x) * np.linalg.norm(shrunk_y)))


def _shrinkage(x: Subspace, ridge: float) -> Float64:
    """Give the shrinkage of each direction by ridge regression, for a total variance of 1."""
    variances = x.singular**2 / float(x.singular @ x.singular)
    return np.asarray(variances / (variances + ridge))


GULP = PairwiseMeasure(
    name="gulp",
    kind="subspace",
    prepare=prepare_subspace,
    compare=compare_gulp,
    symmetric=True,
    range=(0.0, 1.0),
    invariances=EUCLIDEAN,
    parameters=(
        Parameter(
            "ridge",
            0.01,
            "ridge penalty λ, for features scaled to a total variance of 1",
            minimum=1e-8,
        ),
    ),
    conventions=(*CENTRING, ("scale", "total variance 1"), ("form", "inner product")),
    minimum_stimuli=3,
    reference="Boix-Adserà et al. 2022, NeurIPS (GULP)",
    prose=(
        "How alike ridge predictions from two representations are over all tasks: GULP's inner "
        "product over its norms. Tends to CKA for a large penalty, to CCA for a small one."
    ),
)
