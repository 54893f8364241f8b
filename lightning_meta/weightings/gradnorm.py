"""Weights that balance the norms of the tasks' gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.checks import not_negative, positive
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks import Task
from lightning_meta.weightings.aggregator import GradientWeighting

SMALLEST = 1e-3  # lower bound of the weights: a negative weight would maximise the loss of its task


class GradNorm(GradientWeighting):
    r"""Trains the weights so that the tasks' gradient norms follow their inverse training rates.

    Let $G_i = \lVert w_i \, g_i \rVert$, and let $r_i$ be $L_i(t) / L_i(0)$ divided by its mean over the tasks. A
    step of gradient descent on w reduces

    $$\sum_i \left| G_i - \overline{G} \, r_i^\alpha \right|,$$

    where $\overline{G} \, r_i^\alpha$ is held constant. Then w is scaled so that its sum is T. The network is updated
    with the weights from before this step; they apply to the heads as well as to the backbone.

    Chen, Badrinarayanan, Lee and Rabinovich, GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks (ICML 2018, https://arxiv.org/abs/1711.02257), equations 1 and 2, algorithm 1.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting GradNorm`.

    Logged:
        - `train/weight/<task>`: $w_i$ of the step.
        - `train/loss`: $\sum_i w_i L_i$.

    Deviations:
        - Section 3.1: the gradients are those of all shared parameters; in the paper, of the last shared layer.
        - Equation 2: a task that is absent from the step keeps its weight, up to the scaling, and enters no mean.
        - A weight is at least 0.001 before it is scaled.

    Args:
        alpha: Exponent α, >= 0; larger values give more weight to tasks that train slowly.
        lr: Learning rate of the weights, > 0.
        rep_grad: Whether to use gradients with respect to shared features; see `Aggregator`.

    Raises:
        UserError: α is below 0, or the learning rate is not above 0.
    """

    w: Tensor
    first: Tensor

    def __init__(self, alpha: float = 1.5, lr: float = 0.025, rep_grad: bool = False) -> None:
        super().__init__(rep_grad)
        not_negative(alpha=alpha)
        positive(lr=lr)
        self.alpha, self.lr = alpha, lr

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make buffers for w and for the loss of each task in its first step."""
        super().configure(tasks)
        self.register_buffer("w", torch.ones(len(tasks)))
        self.register_buffer("first", torch.full((len(tasks),), torch.nan))  # L_i(0); NaN until the task has been seen

    def weights(self) -> Tensor:
        """The weights of the next step, `(T,)`; they sum to T."""
        return self.w

    def weigh(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The weights of this step, `(T,)`, before their update; arguments as for `Aggregator.direction`."""
        used, norms = self.w.clone(), at_least_float32(gradients).norm(dim=1).to(self.w)
        self.first.copy_(torch.where(present & self.first.isnan(), losses, self.first))
        # A loss that was 0 at first has no training rate, so its task is treated as training at the mean rate.
        rates = torch.where(self.first > 0, losses / self.first, torch.nan)[present]
        rates = rates / rates.nanmean()
        weighted = (self.w * norms)[present]
        target = weighted.mean() * torch.where(rates.isfinite(), rates, 1) ** self.alpha
        self.w[present] -= self.lr * torch.sign(weighted - target) * norms[present]  # dG_i/dw_i = |g_i|
        self.w.clamp_(min=SMALLEST).mul_(len(self.w) / self.w.sum())
        return used
