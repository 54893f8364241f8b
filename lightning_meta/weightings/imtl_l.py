"""Scales under which all losses are alike."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_meta.tasks import Task
from lightning_meta.weightings.base import LARGEST_WEIGHT, Weighting


class IMTLL(Weighting):
    r"""Learns a scale for each loss, under which all of them are near 1.

    $$\sum_i e^{s_i} L_i - s_i.$$

    The $s_i$ begin at 0 and are trained like the network's parameters, without weight decay. A task that is absent from
    the batch adds neither term.

    Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, Towards Impartial Multi-task Learning (ICLR 2021,
    https://openreview.net/forum?id=IMPnRXEWpvr), section 3.2, loss balance.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting IMTLL`.

    Logged:
        - `train/weight/<task>`: $e^{s_i}$.
        - `train/loss`: with the $-s_i$, so it may fall below 0.

    Deviations:
        - $e^{s_i}$ is at most 10⁴: it would grow without end for a task whose loss falls to 0.
    """

    log_scale: nn.Parameter

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make $s_i$."""
        self.log_scale = nn.Parameter(torch.zeros(len(tasks)))

    def weights(self) -> Tensor:
        """$e^{s_i}$, `(T,)`."""
        return self.log_scale.exp()

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scaled losses, and what keeps the scales from 0; arguments as in `Weighting`."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(LARGEST_WEIGHT))  # as in a projected gradient step
        return super().forward(losses, present) - (self.log_scale * present).sum().to(losses.dtype)
