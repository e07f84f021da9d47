"""The records of all measures, in the order of the documentation."""

from __future__ import annotations

from pipeline.measures.measure import Measure, Parameter

_EUCLIDEAN = ("translation", "isotropic scaling", "orthogonal transformation")
_RANKING = Parameter(
    "neighbours",
    "cosine",
    "how nearness is ranked; cosine because the paper's code L2-normalises rows",
    choices=("cosine", "inner", "euclidean"),
)
_K = Parameter("k", 10, "number of nearest neighbours")
_LISTS = (("self_is_neighbour", False), ("ties", "lowest index"))

RELATIONAL = (
    Measure(
        name="cka",
        kind="relational",
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
            ("median", "of non-zero Euclidean distances"),
        ),
        minimum_stimuli=4,
        reference="Kornblith et al. 2019, ICML, section 3 (RBF kernel); Song et al. 2012, eq. 5",
        prose=(
            "CKA with a Gaussian kernel: small bandwidths compare neighbourhoods, large ones give "
            "linear CKA. The biased estimate lies in [0, 1]."
        ),
    ),
    Measure(
        name="rsa",
        kind="relational",
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
            ("ties", "average rank"),
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
    ),
    Measure(
        name="distance_correlation",
        kind="relational",
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
        relation=("neighbours", "neighbours", "k"),
        engine="neighbours",
        symmetric=True,
        range=(0.0, 1.0),
        invariances=("isotropic scaling", "orthogonal transformation"),
        parameters=(_K, _RANKING),
        conventions=_LISTS,
        minimum_stimuli=2,
        grows_with="k",
        reference="Huh et al. 2024, ICML, appendix A, eq. 11 (m_NN)",
        prose=(
            "The share of k nearest neighbours that two representations have in common, averaged "
            "over stimuli. With cosine neighbours also invariant to scaling of single rows, with "
            "Euclidean ones to translation."
        ),
    ),
)

MEASURES = (*RELATIONAL, *NEIGHBOUR)
