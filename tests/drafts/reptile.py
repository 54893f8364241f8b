"""Reptile as a draft."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_meta import Examples, GradientBasedLearner, InnerAdam, Outcome


class Reptile(GradientBasedLearner):
    """Move θ towards what inner steps make of it (Nichol et al. 2018, algorithm 1, https://arxiv.org/abs/1803.02999).

    The outer gradient is the mean of θ - φ over tasks; the loss that is reported is that of the query set.
    """

    def __init__(self, backbone: nn.Module, inner_batch_size: int | None = 10, **options: Any) -> None:
        options = {"inner_optimizer": InnerAdam(beta1=0.0), **options}
        super().__init__(backbone, first_order=True, inner_batch_size=inner_batch_size, **options)

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        phi = self.adapt(support, ways)
        with torch.no_grad():
            outcome = self.outcome(phi, query)
        pulls = [(p - phi[name].detach()).square().sum() / 2 for name, p in self.network.named_parameters()]
        pull = torch.stack(pulls).sum()
        return outcome._replace(loss=outcome.loss + pull - pull.detach())
