"""The geometric mean of the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_meta.weightings.of_losses import EPSILON, LossWeighting, not_negative


class GeometricMean(LossWeighting):
    r"""Minimises the geometric mean of the losses, so that equal relative improvements of tasks count equally.

    $$T \left(\prod_i L_i\right)^{1/T}, \qquad w_i = \frac{(\prod_j L_j)^{1/T}}{L_i},$$

    over the T tasks in the batch. The method is known as GLS, the geometric loss strategy.

    Chennupati, Sistu, Yogamani and Rawashdeh, MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy
    for Multi-Task Learning (CVPR Workshops 2019, https://arxiv.org/abs/1904.08492), equation 3.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting GeometricMean`.

    Logged:
        - `train/weight/<task>`: $w_i$ of the step.
        - `train/loss`: the objective.

    Deviations:
        - Equation 3: multiplied by T, so that equal losses have weights of 1.
        - A loss below 1e-8 counts as 1e-8; otherwise the weight of a solved task would be infinite, and the weights
          of all other tasks 0.
    """

    def weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        """T times the derivatives of the geometric mean, `(T,)`; arguments as in `LossWeighting`."""
        positive = not_negative(losses).clamp(min=EPSILON)
        mean = (positive.log() * present).sum() / present.sum()
        return torch.where(present, mean.exp() / positive, 0)
