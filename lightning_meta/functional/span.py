"""Features of a task in as many dimensions as there are examples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_meta.functional.precision import in_float32


@in_float32
def in_their_span(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """The features of a task in a basis of their own span, where they have the same inner products and distances.

    Where there are fewer examples than features, as in few-shot tasks, what is computed from it is faster.

    Args:
        support: `(K, F)`.
        query: `(M, F)`.

    Returns:
        `(K, D)` and `(M, D)` with D = min(F, K + M).
    """
    features = torch.cat([support, query])
    if len(features) >= features.shape[1]:
        return support, query
    coordinates = torch.linalg.qr(features.T).R.T
    return coordinates[: len(support)], coordinates[len(support) :]
