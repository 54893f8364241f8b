"""Class prototypes, and distances of features from them.

Computations are in float32, or in float64 for float64 features: squares of half-precision features overflow and cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.functional.precision import in_float32


def one_hot(labels: Tensor, ways: int) -> Tensor:
    """One-hot encoding of labels `(M,)` in [0, N) as booleans `(M, N)`; rows of labels out of range are False.

    Unlike `F.one_hot` it does not read the largest label, so it can be captured as a CUDA graph and traced.

    >>> one_hot(torch.tensor([1, 0]), 2).tolist()
    [[False, True], [True, False]]
    """
    return labels.unsqueeze(-1) == torch.arange(ways, device=labels.device)


@in_float32
def class_means(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    r"""The mean feature of each class (Snell et al. 2017, equation 1).

    $$c_n = \frac{1}{|S_n|} \sum_{(x, y) \in S,\, y = n} f(x)$$

    Args:
        features: Features `(M, D)`.
        labels: Labels `(M,)` in [0, N), in any order, each class at least once; others are ignored.
        ways: Number of classes N.

    Returns:
        Prototypes `(N, D)`.

    >>> class_means(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]), 2).tolist()
    [[1.0], [5.0]]
    """
    members = one_hot(labels, ways).to(features.dtype)
    return members.T @ features / members.sum(0).unsqueeze(-1)


@in_float32
def squared_euclidean(features: Tensor, prototypes: Tensor) -> Tensor:
    """Squared Euclidean distances of `(M, D)` features to `(N, D)` prototypes: `(M, N)`.

    >>> squared_euclidean(torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [3.0]])).tolist()
    [[1.0, 9.0], [4.0, 0.0]]
    """
    # Distances are invariant to the origin; with the mean prototype as origin, less precision is lost by cancellation.
    origin = prototypes.mean(0)
    features, prototypes = features - origin, prototypes - origin
    squares = features.square().sum(-1, keepdim=True) + prototypes.square().sum(-1)
    return (squares - features @ (2 * prototypes).T).clamp_min(0)


@in_float32
def cosine_similarity(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines of `(M, D)` features with `(N, D)` prototypes: `(M, N)` in [-1, 1].

    >>> cosine_similarity(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])).tolist()
    [[1.0, 0.0]]
    """
    return F.normalize(features, dim=-1) @ F.normalize(prototypes, dim=-1).T


@in_float32
def unit_length(features: Tensor) -> Tensor:
    """Features `(M, D)` divided by their lengths; zero vectors stay 0, with a finite gradient.

    >>> unit_length(torch.tensor([[4.0, 0.0], [0.0, 0.0]])).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    squares = features.square().sum(-1, keepdim=True)
    # For zero vectors, `F.normalize` would divide the gradient by its epsilon of 1e-12.
    return features * torch.where(squares > 0, squares, 1.0).rsqrt()
