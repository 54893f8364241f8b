"""The direction near the mean gradient along which the worst task improves most."""

from __future__ import annotations

import torch
from scipy import optimize
from torch import Tensor

from lightning_meta.checks import not_negative
from lightning_meta.functional.min_norm import products, root, shortest
from lightning_meta.weightings.aggregator import GradientWeighting


class CAGrad(GradientWeighting):
    r"""Maximises the improvement of the worst task within a ball around the mean gradient.

    $$T d, \qquad d = \arg\max_d \min_i g_i \cdot d \quad \text{where} \quad \lVert d - g_0 \rVert \le c \lVert g_0
    \rVert,$$

    and $g_0$ is the mean of the gradients of the T tasks of the step. By duality
    $d = g_0 + c \lVert g_0 \rVert \, g_w / \lVert g_w \rVert$, where $g_w = \sum_i w_i g_i$ minimises
    $g_w \cdot g_0 + c \lVert g_0 \rVert \lVert g_w \rVert$ over w at least 0 of sum 1. With c = 0 it is `Equal`.

    Liu, Liu, Jin, Stone and Liu, Conflict-Averse Gradient Descent for Multi-task Learning (NeurIPS 2021,
    https://arxiv.org/abs/2110.14048), equation 4, algorithm 1.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting CAGrad`.

    Logged:
        - `train/weight/<task>`: $1 + T c \lVert g_0 \rVert w_i / \lVert g_w \rVert$.
        - `train/loss`: sum of the losses; task-specific parameters follow its gradient.

    Deviations:
        - Equation 4: the direction is multiplied by T, to have the scale of `Equal`.

    Args:
        c: Radius of the ball, >= 0, relative to the mean gradient. For c < 1 training converges to a stationary point
            of the mean loss.
        rep_grad: Whether to use gradients with respect to shared features; see `Aggregator`.

    Raises:
        UserError: c is below 0.
    """

    def __init__(self, c: float = 0.5, rep_grad: bool = False) -> None:
        super().__init__(rep_grad)
        not_negative(c=c)
        self.c = c

    def weigh(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The weights, `(T,)` on the CPU; arguments as for `Aggregator.direction`."""
        rows = present.cpu()
        unit, lengths = products(gradients)
        unit, lengths = unit[rows][:, rows], lengths[rows]
        if lengths.max() == 0:  # all gradients are 0, so the weights do not matter
            return rows.double()
        weights = torch.zeros(len(rows), dtype=torch.float64)
        weights[rows] = 1 + len(lengths) * toward_worst(unit * lengths.outer(lengths) / lengths.max() ** 2, self.c)
        return weights


def toward_worst(gram: Tensor, c: float) -> Tensor:
    r"""The weights of the tasks in $c \lVert g_0 \rVert \, g_w / \lVert g_w \rVert$; zeros if $g_w$ is 0.

    For any r > 0, $\lVert g_w \rVert \le (\lVert g_w \rVert^2 / r + r) / 2$, with equality at $r = \lVert g_w \rVert$.
    So the minimum over w is also a minimum over r, and for fixed r the minimiser is the shortest vector in the convex
    hull of $g_i + \frac{r}{c \lVert g_0 \rVert} \, g_0$.

    Args:
        gram: Inner products $g_i \cdot g_j$, `(T, T)` float64, on the CPU.
        c: Radius of the ball, >= 0, relative to the mean gradient.

    Returns:
        The weights `(T,)`, float64.
    """
    count = len(gram)
    radius = c * float(gram.mean().clamp(min=0).sqrt())  # c |g_0|
    if radius == 0:
        return torch.zeros(count, dtype=gram.dtype)

    vectors = root(gram)  # the gradients as columns, up to a rotation
    mean = vectors.mean(1, keepdim=True)

    def solve(r: float) -> tuple[Tensor, float]:
        shifted = vectors + r / radius * mean
        lengths = shifted.norm(dim=0)
        w = shortest(shifted / torch.where(lengths > 0, lengths, 1), lengths)
        return w, float((vectors @ w).norm())

    longest = float(gram.diagonal().max().sqrt())
    smallest = 1e-8 * longest
    if solve(smallest)[1] <= smallest:  # Pareto-stationary up to rounding
        return torch.zeros(count, dtype=gram.dtype)
    r = optimize.brentq(lambda r: solve(r)[1] - r, smallest, 2 * longest, xtol=1e-15 * longest, rtol=1e-14)
    w, length = solve(r)
    return w * radius / length
