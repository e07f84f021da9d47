"""The measures against packages that people wrote apart from this one."""

import numpy as np
import pytest
import reference
from oracles import dcor
from rsatoolbox.rdm import RDMs
from rsatoolbox.rdm import compare as rsa_compare
from scipy.spatial.distance import pdist, squareform
from sklearn.neighbors import NearestNeighbors

from pipeline.measures import similarity


def test_similarity__cka_is_the_whitened_cosine_of_squared_distances():
    x, y = reference.digits_layers()
    distances = RDMs(np.stack([pdist(x, "sqeuclidean"), pdist(y, "sqeuclidean")]))
    expected = rsa_compare(distances[0], distances[1], method="cosine_cov")[0, 0]
    assert similarity(x, y, "cka") == pytest.approx(expected, abs=1e-8)


def test_similarity__cka_debiased_is_dcor_of_half_squared_distances():
    x, y = reference.digits_layers()
    a, b = (dcor.u_centered(-0.5 * squareform(pdist(z, "sqeuclidean"))) for z in (x, y))
    expected = dcor.u_product(a, b) / np.sqrt(dcor.u_product(a, a) * dcor.u_product(b, b))
    assert similarity(x, y, "cka_debiased") == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_similarity__mutual_knn_agrees_with_scikit_learn(metric):
    x, y = reference.digits_layers(200)
    lists = [
        NearestNeighbors(n_neighbors=10, metric=metric).fit(z).kneighbors(return_distance=False)
        for z in (x, y)
    ]
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*lists, strict=True)])
    assert similarity(x, y, "mutual_knn", neighbours=metric) == pytest.approx(expected, abs=1e-12)
