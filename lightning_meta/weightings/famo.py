"""Weights under which all losses decrease at the same relative rate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.checks import not_negative as at_least_zero
from lightning_meta.checks import positive
from lightning_meta.tasks import Task
from lightning_meta.weightings.of_losses import EPSILON, LossWeighting, kept, not_negative

BETAS = 0.9, 0.999  # decay rates of Adam's moments


class FAMO(LossWeighting):
    r"""Learns weights under which the logarithms of all losses decrease at the same rate.

    $$w_i = \frac{T z_i / L_i}{\sum_j z_j / L_j}, \qquad z = \mathrm{softmax}(\xi).$$

    After the step, the losses $L_i'$ of the same batch are computed. With the decrease
    $\delta_i = \log L_i - \log L_i'$, ξ takes a step of Adam along $-(\nabla_\xi z)^\top \delta$, with weight decay:
    a task whose loss decreased more than others gets less weight. This costs another forward pass, in training mode,
    and no backward pass; running statistics and random states are not changed.

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
        - With dropout, the second forward pass draws other masks, and each rank its own, so δ is as noisy as the
          losses.
        - With accumulation, ξ is updated from the last batch of the step.

    Args:
        lr: Learning rate of ξ, > 0.
        weight_decay: Weight decay γ of ξ, >= 0.

    Raises:
        UserError: The learning rate is not above 0, or the weight decay is below 0.
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
        """Make buffers for ξ and its Adam state."""
        super().configure(tasks)
        for name in ("logits", "first_moment", "second_moment"):
            self.register_buffer(name, torch.zeros(len(tasks)))
        self.register_buffer("updates", torch.zeros(len(tasks), dtype=torch.int64))  # per task
        self._before = torch.zeros(0)

    def weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        """T times the weights of algorithm 1, `(T,)`; arguments as in `LossWeighting`."""
        self._before = kept(self._before, losses)
        weights = self._shares(present) / (not_negative(losses) + EPSILON)
        return present.sum() * weights / weights.sum()

    @torch.no_grad()
    def observe_step(self, losses: Tensor, present: Tensor) -> None:
        """Update ξ of the present tasks by a step of Adam; arguments as in `Weighting`."""
        fall = ((self._before + EPSILON).log() - (losses + EPSILON).log()).to(self.logits)
        shares = self._shares(present)
        fall = torch.where(present, fall, 0)
        # The Jacobian of the softmax is symmetric, diag(z) - z z^T, and is applied to the decreases.
        gradient = shares * (fall - shares @ fall) + self.weight_decay * self.logits
        self.updates += present
        corrections = []
        for moment, new, beta in zip(
            (self.first_moment, self.second_moment), (gradient, gradient**2), BETAS, strict=True
        ):
            # Each task has its own number of updates, so an absent task does not distort its bias correction.
            moment.copy_(torch.where(present, beta * moment + (1 - beta) * new, moment))
            corrections.append(moment / (1 - beta ** self.updates.clamp(min=1).to(moment)))
        step = self.lr * corrections[0] / (corrections[1].sqrt() + EPSILON)
        self.logits -= torch.where(present, step, 0)

    def _shares(self, present: Tensor) -> Tensor:
        """Softmax z of ξ over the present tasks, `(T,)`; 0 for absent tasks."""
        return self.logits.masked_fill(~present, -float("inf")).softmax(0)
