"""Gradients without their conflicting components."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.functional import random_bits
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks import Task
from lightning_meta.weightings.aggregator import GradientWeighting


class PCGrad(GradientWeighting):
    r"""Removes from each task's gradient its components that conflict with other tasks' gradients, by projection.

    $g_i^{PC}$ starts as $g_i$, and the other tasks j are visited in a random order. If $g_i^{PC} \cdot g_j < 0$,

    $$g_i^{PC} \leftarrow g_i^{PC} - \frac{g_i^{PC} \cdot g_j}{\lVert g_j \rVert^2} \, g_j.$$

    The direction is $\sum_i g_i^{PC}$, which equals that of `Equal` if no two tasks conflict. The orders are a pure
    function of a key, which is drawn once from torch's generator, and of the number of the optimiser step, so they are
    the same on all ranks and after a resume. Only inner products of gradients are needed, so the cost after the
    backward passes is that of one matrix product, `(T, P)` by `(P, T)`.

    Yu, Kumar, Gupta, Levine, Hausman and Finn, Gradient Surgery for Multi-Task Learning (NeurIPS 2020,
    https://arxiv.org/abs/2001.06782), algorithm 1.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting PCGrad`.

    Logged:
        `train/weight/<task>`: $w_i$ of the step, with $\sum_i g_i^{PC} = \sum_i w_i g_i$; at least 1, and above 1 if
        the projection of another task's gradient has added a multiple of $g_i$.

    Deviations:
        - Algorithm 1: only the gradients of shared parameters are projected; in the paper, those of all parameters θ. A
          task's own parameters get the gradient of its loss, with which no other task's gradient can conflict.

    Args:
        rep_grad: Whether to use gradients with respect to shared features; see `Aggregator`.
    """

    key: Tensor
    step: Tensor

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Draw the key."""
        super().configure(tasks)
        self.register_buffer("key", torch.randint(torch.iinfo(torch.int64).max, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def weigh(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The weights of the original gradients in the sum of projected ones; arguments as for `direction`."""
        wide = at_least_float32(gradients)
        # Squares of small norms underflow, so the rows are scaled; the result is scaled back below.
        size = wide.abs().amax(1)
        # A gradient 1e36 times smaller than the largest counts as zero; otherwise its weight would overflow.
        vanishes = size <= size.max() / 1e36
        unit = wide / torch.where(vanishes, torch.inf, size).unsqueeze(1)
        products = (unit @ unit.T).cpu().double()
        size = torch.where(vanishes, 1, size).cpu().double()
        tasks = torch.arange(len(products))
        orders = random_bits.choose(random_bits.key(self.key, self.step, tasks), len(tasks), len(tasks))
        self.step += 1
        return (size.unsqueeze(1) * projected(products, orders) / size).sum(0)


def projected(products: Tensor, orders: Tensor) -> Tensor:
    r"""Algorithm 1 on coefficients: each projected gradient is a weighted sum, $g_i^{PC} = \sum_k c_{ik} g_k$.

    >>> products = torch.tensor([[1.0, -2.0], [-2.0, 8.0]])  # of (1, 0) and (-2, 2)
    >>> projected(products, torch.tensor([[0, 1], [0, 1]])).tolist()  # (1/2, 1/2) and (0, 2)
    [[1.0, 0.25], [2.0, 1.0]]

    Args:
        products: Inner products $g_i \cdot g_j$, `(T, T)`.
        orders: Order in which each task visits all tasks, `(T, T)` int64; the task itself is skipped.

    Returns:
        Coefficients $c$, `(T, T)`, one row for each projected gradient.
    """
    tasks = torch.arange(len(products))
    coefficients = torch.eye(len(products), dtype=products.dtype)
    for others in orders.T:  # the next task in each order; all tasks are projected at once
        conflict = (coefficients * products[others]).sum(1)
        projects = (conflict < 0) & (others != tasks)  # never onto a zero gradient, whose products are 0
        squared = products[others, others]
        coefficients[tasks, others] -= torch.where(projects, conflict / squared, 0)
    return coefficients
