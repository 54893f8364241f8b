"""Weights by how fast each loss falls."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.tasks import Task
from lightning_meta.weightings.base import Weighting


class DynamicWeightAverage(Weighting):
    r"""Gives more weight to the tasks whose loss falls more slowly than that of others.

    $$w_i(t) = T \, \mathrm{softmax}_i(r_i(t) / \tau), \qquad r_i(t) = L_i(t-1) / L_i(t-2),$$

    where $L_i(t)$ is the mean over the steps of epoch t that had the task in the batch. The weights sum to T, and are
    all 1 in the first two epochs.

    Liu, Johns and Davison, End-to-End Multi-Task Learning with Attention (CVPR 2019,
    https://arxiv.org/abs/1803.10704), section 3.3, equation 7.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting
        DynamicWeightAverage`.

    Logged:
        `train/weight/<task>`: $w_i(t)$, the same for all steps of an epoch.

    Deviations:
        - Equation 7 for a task that is absent for an epoch: it keeps its ratio, which is 1 until the task has been seen
          in two epochs; so does one whose loss was not above 0, to which no ratio can be taken.

    Args:
        temperature: τ, above 0; the larger, the more equal the weights.

    Raises:
        UserError: The temperature is not above 0.
    """

    mean: Tensor
    steps: Tensor
    last: Tensor
    ratio: Tensor

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise UserError(f"temperature: expected a number above 0, got {temperature}")
        self.temperature = temperature

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make the means of this epoch and the last, and the ratios."""
        count = len(tasks)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("steps", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("last", torch.full((count,), torch.nan))  # NaN: not seen in any epoch yet
        self.register_buffer("ratio", torch.ones(count))

    def weights(self) -> Tensor:
        """The weights of this epoch, `(T,)`; they sum to T."""
        return len(self.ratio) * (self.ratio / self.temperature).softmax(0)

    @torch.no_grad()
    def observe(self, losses: Tensor, present: Tensor) -> None:
        """Follow the mean loss of the tasks present; arguments as in `Weighting`."""
        self.steps += present
        change = (losses.to(self.mean.dtype) - self.mean) / self.steps.clamp(min=1)
        self.mean += torch.where(present, change, 0)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Take the ratio of this epoch's mean loss to the last one's."""
        seen = self.steps > 0
        self.ratio.copy_(torch.where(seen & (self.last > 0), self.mean / self.last, self.ratio))
        self.last.copy_(torch.where(seen, self.mean, self.last))
        self.mean.zero_()
        self.steps.zero_()
