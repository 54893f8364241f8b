"""Features of a task in the span of its examples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_meta.functional.precision import in_float32


@in_float32
def in_their_span(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of features in a basis of their span; inner products and distances do not change.

    This makes later computations faster if there are fewer examples than features, as in few-shot tasks.

    Args:
        support: Features `(K, F)`.
        query: Features `(M, F)`.

    Returns:
        Coordinates `(K, D)` and `(M, D)` with D = min(F, K + M). In an exported model, which serves any M, the features
        themselves.
    """
    features = torch.cat([support, query])
    if torch.compiler.is_compiling() or features.shape[0] >= features.shape[1]:  # an exported model serves any M
        return support, query
    coordinates = torch.linalg.qr(features.T).R.T
    return coordinates[: len(support)], coordinates[len(support) :]
