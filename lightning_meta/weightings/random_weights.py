"""Random weights, drawn at every step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.functional import random_bits
from lightning_meta.tasks import Task
from lightning_meta.weightings.base import Weighting


class RandomWeights(Weighting):
    r"""Draws the weights of each batch: $w = T \, \mathrm{softmax}(z)$ with $z_i \sim N(0, 1)$.

    They are a pure function of a key, which is drawn once from torch's generator, and of the number of the batch, so
    they are the same on all ranks and after a resume.

    Lin, Ye, Zhang and Tsang, Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning
    (TMLR 2022, https://arxiv.org/abs/2111.10603), section 3, RLW with the normal distribution.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting RandomWeights`.

    Logged:
        `train/weight/<task>`: $w_i$ of the step.

    Deviations:
        - Section 3: the weights sum to T and have mean 1; in the paper they sum to 1.
        - With accumulation, each batch of a step has weights of its own.
    """

    key: Tensor
    step: Tensor
    count: int

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Draw the key."""
        self.count = len(tasks)
        self.register_buffer("key", torch.randint(torch.iinfo(torch.int64).max, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def weights(self) -> Tensor:
        """The weights of this batch, `(T,)` float64 on the CPU, wherever the losses are; they sum to T."""
        # Uniform numbers are multiples of 2^-53, 0 included, whose quantile is not finite: half a cell is added.
        half_cell = 2.0**-54
        uniform = random_bits.uniform(random_bits.key(self.key, self.step), self.count)
        normal: Tensor = torch.special.ndtri(uniform + half_cell)
        return self.count * normal.softmax(0)

    def observe(self, losses: Tensor, present: Tensor) -> None:
        """Count the batch; arguments as in `Weighting`."""
        self.step += 1
