"""Number of queries per class of an imbalanced task: stateless draws from a Dirichlet distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_meta.functional.random_bits import fold, uniform

TRIES = 32
"""Proposals per gamma variate. Each is rejected with a probability of at most 5 %, all of them with less than 1e-41."""


def dirichlet_counts(keys: Tensor, ways: int, total: int, concentration: float) -> Tensor:
    r"""Draw numbers of queries per class with Dirichlet shares, as in Veilleux et al. (NeurIPS 2021).

    $$p \sim \mathrm{Dirichlet}(\alpha, \ldots, \alpha), \qquad m_n \approx M p_n, \qquad \sum_n m_n = M$$

    (https://arxiv.org/abs/2204.11181, section 3.2), rounded by the largest remainder method. A class may have 0.

    Args:
        keys: Keys `(T,)`, one per task, see `functional.random_bits.key`.
        ways: Number of classes N.
        total: Total number of queries M of a task.
        concentration: α > 0; the larger, the more balanced the classes.

    Returns:
        Numbers of queries `(T, N)`, int64; each row sums to M.

    >>> dirichlet_counts(torch.tensor([1, 2]), ways=3, total=12, concentration=2.0).sum(1)
    tensor([12, 12])
    """
    logs = log_gamma_variates(fold(keys.unsqueeze(-1), torch.arange(ways)), concentration)
    expected = total * logs.softmax(-1)  # normalised gamma variates are Dirichlet
    counts = expected.floor()
    # Give one more query to the classes with the largest remainders until the row sums to M.
    rank = (counts - expected).argsort(dim=-1, stable=True).argsort(dim=-1)
    counts += rank < (total - counts.sum(-1, keepdim=True))
    return counts.long()


def log_gamma_variates(keys: Tensor, shape: float) -> Tensor:
    """Draw the logarithm of a gamma variate for each key.

    Marsaglia and Tsang, A Simple Method for Generating Gamma Variables (ACM TOMS 2000). As the method rejects
    proposals, a fixed number of them is drawn for each key and the first accepted one is used. Shapes below 1 follow
    their section 6. Logarithms avoid the underflow of small variates.

    Args:
        keys: Keys `(...)`, int64.
        shape: Shape parameter α > 0; the scale is 1.

    Returns:
        Logarithms `(...)`, float64.
    """
    raised = shape if shape >= 1 else shape + 1
    d = raised - 1 / 3
    c = 1 / math.sqrt(9 * d)
    u = 1 - uniform(keys, 3 * TRIES + 1)  # in (0, 1], so that its logarithm is finite
    radius, angle, chance = u[..., : 3 * TRIES].unflatten(-1, (3, TRIES)).unbind(-2)
    normal = (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()
    cube = (1 + c * normal) ** 3
    log_cube = cube.clamp_min(torch.finfo(cube.dtype).tiny).log()
    good = (cube > 0) & (chance.log() < normal**2 / 2 + d - d * cube + d * log_cube)
    first = good.to(torch.uint8).argmax(-1, keepdim=True)
    logs: Tensor = math.log(d) + log_cube.gather(-1, first).squeeze(-1)
    return logs if shape >= 1 else logs + u[..., -1].log() / shape
