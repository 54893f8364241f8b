"""A smooth maximum of the losses."""

from __future__ import annotations

from torch import Tensor

from lightning_meta.checks import positive
from lightning_meta.weightings.of_losses import LossWeighting


class STCH(LossWeighting):
    r"""Minimises a smooth maximum of the losses, so that the task with the largest loss gets the largest weight.

    $$\mu \log \sum_i e^{\lambda_i L_i / \mu}, \qquad w_i = T \, \mathrm{softmax}_i(\lambda_i L_i / \mu), \qquad
    \lambda_i = 1 / T,$$

    over the T tasks in the batch: the smooth Tchebycheff scalarisation with equal preferences, whose ideal point is 0.

    Lin, Zhang, Yang, Liu, Wang and Zhang, Smooth Tchebycheff Scalarization for Multi-Objective Optimization (ICML 2024,
    https://arxiv.org/abs/2402.19078), equation 8.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting STCH`.

    Logged:
        - `train/weight/<task>`: $w_i$ of the step.
        - `train/loss`: $\sum_i w_i L_i$.

    Deviations:
        - Equation 8: multiplied by T², so that the weights sum to T.

    Args:
        mu: Smoothing μ, > 0; smaller values are closer to the maximum. The paper uses values from 0.01 to 1.

    Raises:
        UserError: μ is not above 0.
    """

    def __init__(self, mu: float = 0.1) -> None:
        super().__init__()
        positive(mu=mu)
        self.mu = mu

    def weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        """T² times the derivatives of the smooth maximum, `(T,)`; arguments as in `LossWeighting`."""
        count = present.sum()
        return count * (losses / count / self.mu).masked_fill(~present, -float("inf")).softmax(0)
