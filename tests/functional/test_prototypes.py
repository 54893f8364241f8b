"""Prototypes and distances against scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity as sklearn_cosine
from sklearn.neighbors import NearestCentroid
from torch import Tensor
from torch.func import vmap

from lightning_meta.functional.prototypes import class_means, cosine_similarity, squared_euclidean


def features(seed: int = 0, ragged: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Support features with unsorted labels, of ragged counts or not, and query features."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.tensor([2, 0, 1, 2, 2, 0, 3, 1, 2] if ragged else [3, 0, 1, 2, 2, 1, 0, 3])
    return torch.randn(len(labels), 7, generator=g).double(), labels, torch.randn(11, 7, generator=g).double()


@pytest.mark.parametrize("ragged", [False, True])
def test_prototypes_are_the_centroids_of_scikit_learn(ragged: bool) -> None:
    support, labels, query = features(ragged=ragged)
    reference = NearestCentroid().fit(support.numpy(), labels.numpy())
    means = class_means(support, labels, 4)
    np.testing.assert_allclose(means, reference.centroids_, rtol=1e-12)
    nearest = squared_euclidean(query, means).argmin(-1)
    np.testing.assert_array_equal(nearest, reference.predict(query.numpy()))


def test_distances_are_those_of_scipy_and_scikit_learn() -> None:
    support, labels, query = features()
    means = class_means(support, labels, 4)
    np.testing.assert_allclose(squared_euclidean(query, means), cdist(query, means, "sqeuclidean"), rtol=1e-12)
    np.testing.assert_allclose(cosine_similarity(query, means), sklearn_cosine(query, means), rtol=1e-12)


def test_the_order_of_the_support_set_does_not_matter() -> None:
    support, labels, _ = features()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(class_means(support[order], labels[order], 4), class_means(support, labels, 4))


def test_a_prototype_is_at_distance_zero_of_itself_and_far_features_stay_exact() -> None:
    means = features()[0].float()
    distances = squared_euclidean(means, means)
    assert distances.diagonal().abs().max() < 1e-5
    # Features of a trained network are long: rounding must not decide between neighbours a whole unit apart.
    far = torch.full((1, 512), 10.0)
    near = torch.cat([far, far + torch.nn.functional.one_hot(torch.tensor([3]), 512)])
    torch.testing.assert_close(squared_euclidean(far, near), torch.tensor([[0.0, 1.0]]), atol=0.02, rtol=0)


def test_cosine_ignores_length() -> None:
    support, labels, query = features()
    means = class_means(support, labels, 4)
    torch.testing.assert_close(cosine_similarity(3 * query, 0.2 * means), cosine_similarity(query, means))


@pytest.mark.parametrize("distance", [squared_euclidean, cosine_similarity])
def test_maps_over_tasks(distance: object) -> None:
    def one_task(support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        return distance(query, class_means(support, labels, 4))  # type: ignore[operator]

    several = [features(seed) for seed in range(3)]
    mapped = vmap(one_task)(*(torch.stack(column) for column in zip(*several, strict=True)))
    torch.testing.assert_close(mapped, torch.stack([one_task(*task) for task in several]), rtol=1e-12, atol=1e-12)
