"""The shortest direction in the convex hull of the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_meta.functional.min_norm import min_norm, products
from lightning_meta.weightings.aggregator import GradientWeighting


class MGDA(GradientWeighting):
    r"""Follows the shortest convex combination of the gradients, along which no task's loss increases.

    $$T \sum_i \alpha_i g_i, \qquad \alpha = \arg\min_{\alpha \ge 0, \, \sum_i \alpha_i = 1} \left\lVert \sum_i \alpha_i
    g_i \right\rVert^2,$$

    over the T tasks of the step. It is 0 at a Pareto-stationary point. Tasks with small gradients dominate the
    direction.

    Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization (NeurIPS 2018,
    https://arxiv.org/abs/1810.04650), equation 3; Désidéri, Multiple-gradient descent algorithm (2012).

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting MGDA`.

    Logged:
        - `train/weight/<task>`: $T \alpha_i$.
        - `train/loss`: sum of the losses; task-specific parameters follow its gradient.

    Deviations:
        - Equation 3: multiplied by T, so that the weights sum to T.
        - Algorithm 2, Frank-Wolfe: the minimum is found exactly, by an active-set method.

    Args:
        rep_grad: Whether to use gradients with respect to shared features, as in MGDA-UB (section 3.3); see
            `Aggregator`.
    """

    def weigh(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The weights, `(T,)` on the CPU; arguments as for `Aggregator.direction`."""
        here = present.cpu()
        unit, lengths = products(gradients)
        weights = torch.zeros(len(here), dtype=torch.float64)
        weights[here] = here.sum() * min_norm(unit[here][:, here], lengths[here])
        return weights
