"""Weights learned with the noise of each task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_meta.tasks import Regression, Task
from lightning_meta.weightings.base import Weighting


class Uncertainty(Weighting):
    r"""Learns the noise $\sigma_i$ of each task with the network, and weighs by it.

    $$\sum_i c_i e^{-s_i} L_i + \tfrac{1}{2} s_i, \qquad s_i = \log \sigma_i^2,$$

    with $c_i = 1/2$ for a `Regression`, the negative log-likelihood of a Gaussian (equation 7), and $c_i = 1$ for every
    other task, a softmax of temperature $\sigma_i^2$ (equations 9 and 10). A task that is absent from the batch adds
    neither term. The $s_i$ begin at 0 and are trained like the network's parameters, without weight decay, which would
    pull every noise towards 1.

    Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics
    (CVPR 2018, https://arxiv.org/abs/1705.07115), section 3.2.

    Run it:
        `python scripts/fit.py --config configs/multi_head_parkinsons.yaml`, whose weighting it is.

    Logged:
        - `train/weight/<task>`: $c_i e^{-s_i}$.
        - `train/loss`: with the $\tfrac{1}{2} s_i$, so it may fall below 0.

    Deviations:
        - Section 3.2: the squared error of a target of several dimensions is averaged over them, as
          $\tfrac{1}{2} s_i$ is for one.
    """

    log_variance: nn.Parameter
    likelihood_scale: Tensor

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make $s_i$, and $c_i$ by the class of each task."""
        scale = torch.tensor([0.5 if isinstance(task, Regression) else 1.0 for task in tasks.values()])
        self.register_buffer("likelihood_scale", scale, persistent=False)
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)))

    def weights(self) -> Tensor:
        """$c_i e^{-s_i}$, `(T,)`."""
        return self.likelihood_scale * (-self.log_variance).exp()

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The weighted losses, and what keeps the noises from growing without end; arguments as in `Weighting`."""
        return super().forward(losses, present) + (self.log_variance / 2 * present).sum().to(losses.dtype)
