"""How many queries each class of a task has, where they are not balanced: stateless draws from a Dirichlet."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_meta.functional.random_bits import fold, uniform

TRIES = 32
"""Proposals for a gamma variate; one is refused with a probability of 5 % at most, so all are with one of 1e-42."""


def dirichlet_counts(keys: Tensor, ways: int, total: int, concentration: float) -> Tensor:
    r"""Numbers of queries whose shares are drawn from a Dirichlet, as in Veilleux et al. (NeurIPS 2021).

    $$p \sim \mathrm{Dirichlet}(\alpha, \ldots, \alpha), \qquad m_n \approx M p_n, \qquad \sum_n m_n = M$$

    (https://arxiv.org/abs/2204.11181, section 3.2) rounded by largest remainders. A class may have none.

    Args:
        keys: `(T,)` a key for each task, as of `functional.random_bits.key`.
        ways: N.
        total: M, queries of a task in all.
        concentration: α > 0; a larger one gives shares that are more alike.

    Returns:
        `(T, N)` int64, each row adding up to M.
    """
    logs = log_gamma_variates(fold(keys.unsqueeze(-1), torch.arange(ways)), concentration)
    expected = total * logs.softmax(-1)  # gamma variates divided by their sum
    counts = expected.floor()
    # The classes with the largest remainders get one more, until all queries are given out.
    rank = (counts - expected).argsort(dim=-1, stable=True).argsort(dim=-1)
    counts += rank < (total - counts.sum(-1, keepdim=True))
    return counts.long()


def log_gamma_variates(keys: Tensor, shape: float) -> Tensor:
    """The logarithm of a variate of the gamma distribution for each key, in float64.

    Marsaglia and Tsang, A Simple Method for Generating Gamma Variables (ACM TOMS 2000). It refuses proposals, so every
    key has a fixed number of them, and the first that is good is taken. For shapes below 1 it is their section 6; the
    logarithm keeps variates apart that are too small for a float.

    Args:
        keys: `(...)` int64.
        shape: α > 0; the scale is 1.

    Returns:
        `(...)` float64.
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
