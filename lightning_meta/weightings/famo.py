"""Weights under which all losses fall at the same rate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.checks import not_negative as at_least_zero
from lightning_meta.checks import positive
from lightning_meta.tasks import Task
from lightning_meta.weightings.of_losses import EPSILON, LossWeighting, kept, not_negative

BETAS = 0.9, 0.999  # of Adam


class FAMO(LossWeighting):
    r"""Learns weights under which the logarithms of all losses fall at the same rate.

    $$w_i = \frac{T z_i / L_i}{\sum_j z_j / L_j}, \qquad z = \mathrm{softmax}(\xi).$$

    After the step the losses $L_i'$ of the same batch say how much each fell, $\delta_i = \log L_i - \log L_i'$, and ξ
    takes a step of Adam along $-(\nabla_\xi z)^\top \delta$, with weight decay: a task that fell more than others
    counts less. That takes one forward pass more, in training mode, and no backward pass; running statistics and random
    states stay as they were.

    Liu, Feng, Stone and Liu, FAMO: Fast Adaptive Multitask Optimization (NeurIPS 2023,
    https://arxiv.org/abs/2306.03792), algorithms 1 and 2.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting FAMO`.

    Logged:
        - `train/weight/<task>`: $w_i$ of the step.
        - `train/loss`: $\sum_i w_i L_i$, which is $T / \sum_i (z_i / L_i)$.

    Deviations:
        - Algorithm 1: multiplied by T, so that the weights sum to T.
        - A task that is absent from the batch keeps its ξ; the others share the softmax.
        - Where a network drops units at random, the second look drops others, and on each rank its own: δ is then as
          noisy as the losses are.
        - With accumulation, ξ follows the last batch of the step.

    Args:
        lr: Learning rate of ξ.
        weight_decay: γ, the weight decay of ξ, at least 0.

    Raises:
        UserError: The rate is not above 0, or the decay below 0.
    """

    looks_again = True

    logits: Tensor
    first_moment: Tensor
    second_moment: Tensor
    updates: Tensor

    def __init__(self, lr: float = 0.025, weight_decay: float = 0.001) -> None:
        super().__init__()
        positive(lr=lr)
        at_least_zero(weight_decay=weight_decay)
        self.lr, self.weight_decay = lr, weight_decay

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make ξ and what Adam keeps of it."""
        super().configure(tasks)
        for name in ("logits", "first_moment", "second_moment"):
            self.register_buffer(name, torch.zeros(len(tasks)))
        self.register_buffer("updates", torch.zeros(len(tasks), dtype=torch.int64))  # of each task
        self._before = torch.zeros(0)

    def weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        """The weights of algorithm 1, T times; arguments as in `LossWeighting`."""
        self._before = kept(self._before, losses)
        weights = self._shares(present) / (not_negative(losses) + EPSILON)
        return present.sum() * weights / weights.sum()

    @torch.no_grad()
    def observe_step(self, losses: Tensor, present: Tensor) -> None:
        """Take a step of Adam for the tasks present; arguments as in `Weighting`."""
        fall = ((self._before + EPSILON).log() - (losses + EPSILON).log()).to(self.logits)
        shares = self._shares(present)
        fall = torch.where(present, fall, 0)
        gradient = shares * (fall - shares @ fall) + self.weight_decay * self.logits
        self.updates += present
        corrections = []
        for moment, new, beta in zip(
            (self.first_moment, self.second_moment), (gradient, gradient**2), BETAS, strict=True
        ):
            moment.copy_(torch.where(present, beta * moment + (1 - beta) * new, moment))
            corrections.append(moment / (1 - beta ** self.updates.clamp(min=1).to(moment)))
        step = self.lr * corrections[0] / (corrections[1].sqrt() + EPSILON)
        self.logits -= torch.where(present, step, 0)

    def _shares(self, present: Tensor) -> Tensor:
        """z, `(T,)`: 0 for an absent task."""
        return self.logits.masked_fill(~present, -float("inf")).softmax(0)
