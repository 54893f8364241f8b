"""Learned scales that bring all losses to the same size."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_meta.tasks import Task
from lightning_meta.weightings.base import LARGEST_WEIGHT, Weighting


class IMTLL(Weighting):
    r"""Learns a scale for each loss, such that the scaled losses are near 1.

    $$\sum_i e^{s_i} L_i - s_i.$$

    The $s_i$ start at 0 and are trained like the network's parameters, without weight decay. A task that is absent from
    the batch adds neither term.

    Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, Towards Impartial Multi-task Learning (ICLR 2021,
    https://openreview.net/forum?id=IMPnRXEWpvr), section 3.2, loss balance.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting IMTLL`.

    Logged:
        - `train/weight/<task>`: $e^{s_i}$.
        - `train/loss`: the objective including $-s_i$, so it can be negative.

    Deviations:
        - $e^{s_i}$ is at most 10⁴; otherwise it would diverge for a task whose loss approaches 0.
        - The $s_i$ are one parameter: an optimiser with momentum also moves that of a task that is absent from a step.
    """

    log_scale: nn.Parameter

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make the parameters $s_i$."""
        self.log_scale = nn.Parameter(torch.zeros(len(tasks)))

    def weights(self) -> Tensor:
        """$e^{s_i}$, `(T,)`."""
        return self.log_scale.exp()

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The sum of the scaled losses minus the sum of $s_i$; arguments as in `Weighting`."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(LARGEST_WEIGHT))  # as in a projected gradient step
        return super().forward(losses, present) - (self.log_scale * present).sum().to(losses.dtype)
