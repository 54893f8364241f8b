"""Weights from the rate at which each loss decreases."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.tasks import Task
from lightning_meta.weightings.base import Weighting


class DynamicWeightAverage(Weighting):
    r"""Gives larger weights to tasks whose loss decreases more slowly than the losses of other tasks.

    $$w_i(t) = T \, \mathrm{softmax}_i(r_i(t) / \tau), \qquad r_i(t) = L_i(t-1) / L_i(t-2),$$

    where $L_i(t)$ is the mean over the steps of epoch t whose batch contains the task. The weights sum to T, and are
    all 1 in the first two epochs.

    Liu, Johns and Davison, End-to-End Multi-Task Learning with Attention (CVPR 2019,
    https://arxiv.org/abs/1803.10704), section 3.3, equation 7.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting
        DynamicWeightAverage`.

    Logged:
        `train/weight/<task>`: $w_i(t)$, the same for all steps of an epoch.

    Deviations:
        - Equation 7: a task that is absent for an epoch keeps its ratio, which is 1 until the task has been seen in
          two epochs. So does a task whose previous mean loss is not above 0, for which the ratio is not defined.

    Args:
        temperature: Temperature τ of the softmax, > 0; larger values make the weights more equal.

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
        """Make buffers for the mean losses of this and the previous epoch, and for their ratios."""
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
        """Update the mean losses of the present tasks; arguments as in `Weighting`."""
        self.steps += present
        change = (losses.to(self.mean.dtype) - self.mean) / self.steps.clamp(min=1)
        self.mean += torch.where(present, change, 0)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Update the ratios of this epoch's mean losses to those of the previous epoch."""
        seen = self.steps > 0
        self.ratio.copy_(torch.where(seen & (self.last > 0), self.mean / self.last, self.ratio))
        self.last.copy_(torch.where(seen, self.mean, self.last))
        self.mean.zero_()
        self.steps.zero_()
