"""How the gradients of T tasks on P shared parameters agree; all results are float64, on the CPU.

>>> import torch
>>> gradients = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
>>> cosines = gradient_cosines(gradients)
>>> cosines.tolist()
[[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]
>>> round(float(conflict_share(cosines)), 3)
0.333
>>> norm_shares(gradient_norms(gradients)).tolist()
[0.25, 0.5, 0.25]
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLUMNS = 1 << 18  # columns of the gradients converted to float64 at a time, which bounds the memory


def gradient_cosines(gradients: Tensor) -> Tensor:
    r"""The cosine between the gradients of each two tasks, $g_i \cdot g_j / (|g_i| |g_j|)$.

    Args:
        gradients: Gradients `(T, P)`.

    Returns:
        Cosines `(T, T)` in [-1, 1]; NaN in the row and the column of a zero gradient.
    """
    products = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for columns in gradients.split(_COLUMNS, dim=1):
        wide = columns.cpu().double()  # not every accelerator has float64
        products += wide @ wide.T
    norms = products.diagonal().sqrt()
    return (products / norms / norms[:, None]).clamp(-1, 1)


def gradient_norms(gradients: Tensor) -> Tensor:
    """The Euclidean norm of each gradient: `(T, P)` to `(T,)`."""
    norms: Tensor = torch.linalg.vector_norm(gradients.cpu(), dim=1, dtype=torch.float64)
    return norms


def norm_shares(norms: Tensor) -> Tensor:
    """The share of each task in the sum of the norms: `(T,)` to `(T,)`; NaN where all are zero."""
    return norms / norms.sum()


def conflict_share(cosines: Tensor) -> Tensor:
    """The share of pairs of tasks in conflict: whose cosine is below 0.

    Yu et al., Gradient Surgery for Multi-Task Learning (NeurIPS 2020), definition 1.

    Args:
        cosines: Cosines `(T, T)`, symmetric; pairs with NaN are ignored.

    Returns:
        A scalar in [0, 1]; NaN if no pair is left.
    """
    cosines = cosines.cpu()
    pairs = cosines[torch.ones_like(cosines, dtype=torch.bool).triu(1)]
    pairs = pairs[~pairs.isnan()]
    return (pairs < 0).double().mean()


def inter_task_affinity(before: Tensor, after: Tensor) -> Tensor:
    r"""The relative decrease of task j's loss by a gradient step of task i, $Z_{i \to j} = 1 - L_j^{(i)} / L_j$.

    Above 0 the step of task i helps task j, below 0 it harms it.

    Fifty et al., Efficiently Identifying Task Groupings for Multi-Task Learning (NeurIPS 2021), equation 1.

    Args:
        before: Losses $L_j$ before the step, `(T,)`.
        after: Losses $L_j^{(i)}$ of task j after a step of task i alone, `(T, T)`, a row for each i.

    Returns:
        Affinities `(T, T)`, a row for each i; NaN where $L_j$ is 0.
    """
    start, end = before.cpu().double(), after.cpu().double()
    return torch.where(start != 0, 1 - end / start, torch.nan)
