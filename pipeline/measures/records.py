"""The records of all measures, in the order of the documentation."""

from __future__ import annotations

from typing import Any

from pipeline.measures.measure import Measure, Parameter
from pipeline.measures.pairwise_measures import PAIRWISE_MEASURES
from pipeline.measures.relations import MEDIAN_ROWS

HUH = "Huh et al. 2024, code"
"""Whose conventions presets follow."""
_EUCLIDEAN = ("translation", "isotropic scaling", "orthogonal transformation")
_RANKING = Parameter(
    "neighbours",
    "cosine",
    "how nearness is ranked; cosine because the paper's code L2-normalises rows",
    choices=("cosine", "inner", "euclidean"),
)
_K = Parameter("k", 10, "number of nearest neighbours")
_TIES = ("ties", "share the last places equally")
_LISTS = (("self_is_neighbour", False), _TIES)
_SHARED_PLACES = (
    "stimuli that are equally near share the last places; before, the lowest index had them, the "
    "same in every representation, which created alignment where there is none"
)
_LEFT_OUT = "stimuli with tied neighbours are left out; before, ties took the order of the rows"
_SAME_BITS = "scores no longer depend on what else is compared, and rounding keeps them in range"
_ORDERED = (("self_is_neighbour", False), ("ties", "lists that tie are left out"))

RELATIONAL = (
    Measure(
        name="cka",
        kind="relational",
        version=2,
        changed=_SAME_BITS,
        relation=("linear",),
        engine="dense",
        symmetric=True,
        range=(0.0, 1.0),
        invariances=_EUCLIDEAN,
        parameters=(),
        conventions=(("kernel", "linear"), ("estimator", "biased"), ("centring", "features")),
        minimum_stimuli=3,
        reference="Kornblith et al. 2019, ICML, section 3 (HSIC and CKA with a linear kernel)",
        prose=(
            "Linear centred kernel alignment: the cosine between two doubly centred Gram matrices, "
            "diagonals included; the RV coefficient. Inflated when features outnumber stimuli."
        ),
    ),
    Measure(
        name="cka_debiased",
        kind="relational",
        version=2,
        changed=_SAME_BITS,
        relation=("linear",),
        engine="dense",
        symmetric=True,
        range=(-1.0, 1.0),
        invariances=_EUCLIDEAN,
        parameters=(),
        conventions=(("kernel", "linear"), ("estimator", "debiased"), ("centring", "features")),
        minimum_stimuli=4,
        reference="Song et al. 2012, JMLR 13, eq. 5; Székely & Rizzo 2014, Ann. Stat. 42, eq. 2.4",
        prose=(
            "Linear CKA from the unbiased estimate of HSIC: the cosine between two U-centred Gram "
            "matrices with zero diagonals. Zero on average when rows do not correspond, so it can "
            "be negative."
        ),
    ),
    Measure(
        name="cka_rbf",
        kind="relational",
        version=2,
        changed=_SAME_BITS,
        relation=("rbf", "bandwidth"),
        engine="dense",
        symmetric=True,
        range=(-1.0, 1.0),
        invariances=_EUCLIDEAN,
        parameters=(
            Parameter(
                "bandwidth",
                1.0,
                "σ of the kernel, as a multiple of the median non-zero distance",
                minimum=0.01,
                maximum=100.0,
            ),
            Parameter(
                "estimator",
                "biased",
                "doubly centred with the diagonal, or U-centred without",
                choices=("biased", "debiased"),
            ),
        ),
        conventions=(
            ("kernel", "exp(-distance²/(2σ²))"),
            (
                "median",
                "of non-zero Euclidean distances between different stimuli, "
                f"{MEDIAN_ROWS} of them at most",
            ),
        ),
        minimum_stimuli=4,
        reference="Kornblith et al. 2019, ICML, section 3 (RBF kernel); Song et al. 2012, eq. 5",
        prose=(
            "CKA with a Gaussian kernel: small bandwidths compare neighbourhoods, large ones give "
            "linear CKA. The biased estimate lies in [0, 1]."
        ),
        elsewhere=(
            (
                "Kornblith et al. 2019, notebook",
                "the median is of squared distances and counts the zeros on the diagonal, n of n², "
                "so that σ is less where stimuli are few",
            ),
            (HUH, "σ is 1 in units of the features, whatever their distances"),
        ),
    ),
    Measure(
        name="rsa",
        kind="relational",
        version=2,
        changed=_SAME_BITS + "; values that differ by float32 rounding alone have equal ranks",
        relation=("rsa", "dissimilarity", "comparison"),
        engine="dense",
        symmetric=True,
        range=(-1.0, 1.0),
        invariances=("isotropic scaling",),
        parameters=(
            Parameter(
                "dissimilarity",
                "correlation",
                "of the rows of two stimuli",
                choices=("correlation", "cosine", "euclidean"),
            ),
            Parameter(
                "comparison",
                "pearson",
                "correlation of the dissimilarities, or of their ranks",
                choices=("pearson", "spearman"),
            ),
        ),
        conventions=(
            ("pairs", "above the diagonal"),
            ("estimator", "mean-centred"),
            ("euclidean", "distances, not squared"),
            ("ties", "average rank, of what differs by its rounding too"),
        ),
        minimum_stimuli=4,
        reference="Kriegeskorte et al. 2008, Front. Syst. Neurosci. 2:4",
        prose=(
            "Representational similarity analysis: the correlation of two matrices of "
            "dissimilarities between stimuli. With Euclidean dissimilarities also invariant to "
            "translation and orthogonal transformation, with cosine ones to orthogonal "
            "transformation and row scaling, with correlations to shifts and scalings of rows. A "
            "row that is constant has correlation 0 with every other, a row of zeros cosine 0."
        ),
        elsewhere=(
            ("rsatoolbox", "`euclidean` dissimilarities are squared distances"),
            ("ReSi", "dissimilarities are compared by their ranks, comparison='spearman' here"),
        ),
    ),
    Measure(
        name="distance_correlation",
        kind="relational",
        version=2,
        changed=_SAME_BITS,
        relation=("distance",),
        engine="dense",
        symmetric=True,
        range=(-1.0, 1.0),
        invariances=_EUCLIDEAN,
        parameters=(
            Parameter(
                "estimator",
                "debiased",
                "U-centred distances, or doubly centred ones with the diagonal (biased)",
                choices=("biased", "debiased"),
            ),
        ),
        conventions=(("distance", "euclidean"), ("statistic", "squared")),
        minimum_stimuli=4,
        reference=(
            "Székely, Rizzo & Bakirov 2007, Ann. Stat. 35, def. 5; Székely & Rizzo 2014, Ann. "
            "Stat. 42, eq. 3.2"
        ),
        prose=(
            "The square of the distance correlation: the cosine between two centred matrices of "
            "distances. 0 in the population only where the two are independent. The biased "
            "estimate lies in [0, 1]; its square root is the R of 2007."
        ),
    ),
)

NEIGHBOUR = (
    Measure(
        name="mutual_knn",
        kind="neighbour",
        version=2,
        changed=_SHARED_PLACES,
        relation=("neighbours", "neighbours", "k"),
        engine="neighbours",
        symmetric=True,
        range=(0.0, 1.0),
        invariances=("isotropic scaling", "orthogonal transformation"),
        parameters=(_K, _RANKING),
        conventions=_LISTS,
        minimum_stimuli=3,
        grows_with="k",
        beyond=2,
        reference="Huh et al. 2024, ICML, appendix A, eq. 11 (m_NN)",
        prose=(
            "The share of k nearest neighbours that two representations have in common, averaged "
            "over stimuli: the inner product of two relations whose rows add up to k, over their "
            "norms, which are √(n k) without ties. With cosine neighbours also invariant to "
            "scaling of single rows, with Euclidean ones to translation."
        ),
    ),
)


def _pairwise(name: str, **facts: Any) -> Measure:
    """Describe a pairwise measure."""
    pairwise = PAIRWISE_MEASURES[name]
    return Measure(
        name=name,
        engine="pairwise",
        relation=(pairwise.prepare.__name__.removeprefix("prepare_"), *pairwise.prepares),
        parameters=pairwise.parameters,
        **facts,
    )


_OF_LISTS = {
    "kind": "neighbour",
    "version": 2,
    "changed": _SHARED_PLACES,
    "range": (0.0, 1.0),
    "invariances": ("isotropic scaling", "orthogonal transformation"),
    "conventions": _LISTS,
    "minimum_stimuli": 3,
    "grows_with": "k",
    "beyond": 2,
}
_OF_ORDERED = _OF_LISTS | {
    "conventions": _ORDERED,
    "changed": _LEFT_OUT,
    "beyond": 1,  # all others have an order, too
}
_COVARIANT: tuple[tuple[str, str], ...] = (("centring", "features"),)

PAIRWISE = (
    _pairwise(
        "cycle_knn",
        symmetric=False,
        reference="Huh et al. 2024, ICML, appendix A, table 11 and the paper's code",
        prose=(
            "The share of stimuli that are found again: among the k nearest in x of some stimulus "
            "that is among their own k nearest in y. Below 1 even for x with itself."
        ),
        **_OF_LISTS | {"conventions": (*_LISTS, ("direction", "out by y, back by x"))},
    ),
    _pairwise(
        "jaccard_knn",
        symmetric=True,
        reference="Klabunde et al. 2023, survey of similarity measures, Jaccard similarity",
        prose="Shared nearest neighbours over all that either representation has, averaged.",
        **_OF_LISTS,
    ),
    _pairwise(
        "lcs_knn",
        symmetric=True,
        reference="Huh et al. 2024, ICML, appendix A, table 11 and the paper's code",
        prose=(
            "Length of the longest common subsequence of the two ordered lists of nearest "
            "neighbours, over k, averaged; the paper's code does not divide by k."
        ),
        **_OF_ORDERED,
    ),
    _pairwise(
        "edit_knn",
        symmetric=True,
        reference="Huh et al. 2024, ICML, appendix A, table 11 and the paper's code",
        prose=(
            "1 less the edit distance (Levenshtein, all edits cost 1) of the two ordered lists of "
            "nearest neighbours over k, averaged."
        ),
        **_OF_ORDERED,
    ),
    _pairwise(
        "cknna",
        kind="neighbour",
        version=2,
        changed=_SHARED_PLACES,
        symmetric=False,
        range=(-1.0, 1.0),
        invariances=("isotropic scaling", "orthogonal transformation"),
        conventions=(*_LISTS, ("kernel", "linear")),
        minimum_stimuli=4,
        grows_with="k",
        beyond=1,
        reference="Huh et al. 2024, ICML, appendix A, eq. 16 to 18, and the paper's code",
        prose=(
            "CKA over the pairs of stimuli that are near in both representations. The forms of the "
            "paper's code differ from its equations: they can leave the range (what is beyond 1 "
            "is 1 once calibrated), and `unbiased` is slightly asymmetric."
        ),
    ),
    _pairwise(
        "second_order_cosine",
        kind="neighbour",
        version=2,
        changed=_SHARED_PLACES,
        symmetric=True,
        range=(-1.0, 1.0),
        invariances=("isotropic scaling", "orthogonal transformation", "row scaling"),
        conventions=(("neighbours", "cosine"), *_LISTS, ("compared", "cosines, not distances")),
        minimum_stimuli=2,
        grows_with="k",
        beyond=1,
        reference="Hamilton et al. 2016, EMNLP; Klabunde et al. 2023, survey",
        prose=(
            "Each stimulus's cosines to the union of its neighbours in both representations, "
            "compared by their cosine, averaged."
        ),
        elsewhere=(
            ("ReSi", "cosine distances are compared, 1 less these cosines, which is another score"),
        ),
    ),
    _pairwise(
        "procrustes",
        kind="subspace",
        symmetric=True,
        range=(0.0, 1.0),
        invariances=_EUCLIDEAN,
        conventions=(*_COVARIANT, ("normalisation", "Frobenius")),
        minimum_stimuli=3,
        reference="Williams et al. 2021, NeurIPS; Harvey et al. 2024 (normalised Bures similarity)",
        prose=(
            "The cosine of two representations after the best rotation, the nuclear norm "
            "‖XᵀY‖ over ‖X‖‖Y‖ (`nuclear`), or 1 − (2/π) of its angle (`angular`)."
        ),
    ),
    _pairwise(
        "cca",
        kind="subspace",
        symmetric=True,
        range=(0.0, 1.0),
        invariances=(*_EUCLIDEAN, "invertible linear transformation"),
        conventions=(*_COVARIANT, ("number", "smaller rank")),
        minimum_stimuli=3,
        reference="Raghu et al. 2017, NeurIPS; Kornblith et al. 2019, table 1",
        prose=(
            "Mean of the canonical correlations, or of their squares. Inflated when the ranks "
            "together exceed the stimuli, undefined where one alone makes it 1."
        ),
    ),
    _pairwise(
        "svcca",
        kind="subspace",
        symmetric=True,
        range=(0.0, 1.0),
        invariances=_EUCLIDEAN,
        conventions=(
            *_COVARIANT,
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
    ),
    _pairwise(
        "pwcca",
        kind="subspace",
        symmetric=False,
        range=(0.0, 1.0),
        invariances=("translation", "isotropic scaling", "permutation of features"),
        conventions=(
            *_COVARIANT,
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
    ),
    _pairwise(
        "linear_regression",
        kind="subspace",
        symmetric=False,
        range=(float("-inf"), 1.0),
        invariances=_EUCLIDEAN,
        conventions=(*_COVARIANT, ("direction", "y from x"), ("pooling", "over features and rows")),
        minimum_stimuli=4,
        grows_with="folds",
        beyond=2,
        reference="Kornblith et al. 2019, section 3 (linear regression), cross-validated",
        prose=(
            "R² on held-out stimuli of y predicted from x by ridge regression. Below 1 even for x "
            "with itself, negative where the prediction is worse than the mean."
        ),
    ),
    _pairwise(
        "soft_matching",
        kind="subspace",
        symmetric=True,
        range=(-1.0, 1.0),
        invariances=("translation", "isotropic scaling", "permutation of features"),
        conventions=(
            ("correlation", "pearson"),
            ("constant_features", "left out"),
            ("matching", "transport plan, features of equal weight"),
        ),
        minimum_stimuli=3,
        reference="Khosla & Williams 2024, UniReps (soft matching distance)",
        prose=(
            "The highest mean correlation of features under a transport plan between the two sets "
            "of features, each with equal weight."
        ),
        elsewhere=(
            (
                "ReSi",
                "SoftCorrelationMatch is a semi-matching: each feature goes with the one it "
                "correlates with most, several with the same one if so, and the mean over features "
                "is averaged over both directions, so that it is never less than this",
            ),
        ),
    ),
    _pairwise(
        "gulp",
        kind="subspace",
        symmetric=True,
        range=(0.0, 1.0),
        invariances=_EUCLIDEAN,
        conventions=(*_COVARIANT, ("scale", "total variance 1"), ("form", "inner product")),
        minimum_stimuli=3,
        reference="Boix-Adserà et al. 2022, NeurIPS (GULP)",
        prose=(
            "How alike ridge predictions from two representations are over all tasks: GULP's inner "
            "product over its norms. Tends to CKA for a large penalty, to CCA for a small one."
        ),
    ),
    _pairwise(
        "cka_minibatch",
        kind="sampled",
        symmetric=True,
        range=(-1.0, 1.0),
        invariances=_EUCLIDEAN,
        conventions=(
            ("kernel", "linear"),
            ("estimator", "minibatch"),
            ("centring", "features"),
            ("batches", "of equal weight, a rest of fewer than 4 left out"),
        ),
        minimum_stimuli=4,
        reference="Nguyen et al. 2021, ICLR, eq. 2 to 4",
        prose=(
            "CKA from the unbiased estimate of HSIC averaged over minibatches, the same for both "
            "representations, before the ratio is taken."
        ),
    ),
)

MEASURES = (*RELATIONAL, *NEIGHBOUR, *PAIRWISE)
