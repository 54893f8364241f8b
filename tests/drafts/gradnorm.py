"""GradNorm as a draft."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.tasks import Task
from lightning_meta.weightings import GradientWeighting


class GradNorm(GradientWeighting):
    r"""Trains the weights so that the tasks' gradient norms follow their inverse training rates.

    Chen, Badrinarayanan, Lee and Rabinovich, GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks (ICML 2018, https://arxiv.org/abs/1711.02257), equations 1 and 2, algorithm 1. W are all shared
    parameters, and the weights are trained by plain gradient descent.
    """

    w: Tensor
    first: Tensor

    def __init__(self, alpha: float = 1.5, rate: float = 0.025) -> None:
        super().__init__()
        self.alpha, self.rate = alpha, rate

    def configure(self, tasks: Mapping[str, Task]) -> None:
        super().configure(tasks)
        self.register_buffer("w", torch.ones(len(tasks)))
        self.register_buffer("first", torch.full((len(tasks),), torch.nan))  # L_i(0), once it was seen

    def weights(self) -> Tensor:
        return self.w

    def weigh(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        weights, norms = self.w.clone(), gradients.norm(dim=1).to(self.w)
        self.first.copy_(torch.where(present & self.first.isnan(), losses, self.first))
        ratio = (losses / self.first)[present]
        weighted = (self.w * norms)[present]
        target = weighted.mean() * (ratio / ratio.mean()) ** self.alpha
        self.w[present] -= self.rate * torch.sign(weighted - target) * norms[present]
        self.w.clamp_(min=1e-3).mul_(len(self.w) / self.w.sum())
        return weights
