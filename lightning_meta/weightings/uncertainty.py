"""Weights from the learned noise of each task."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_meta.checks import switch
from lightning_meta.tasks import Regression, Task
from lightning_meta.weightings.base import LARGEST_WEIGHT, Weighting


class Uncertainty(Weighting):
    r"""Learns the noise $\sigma_i$ of each task together with the network, and weights the losses by it.

    $$\sum_i c_i e^{-s_i} L_i + \tfrac{1}{2} s_i, \qquad s_i = \log \sigma_i^2,$$

    with $c_i = 1/2$ for a `Regression`, the negative log-likelihood of a Gaussian (equation 7), and $c_i = 1$ for every
    other task, a softmax of temperature $\sigma_i^2$ (equations 9 and 10). The revised form of Liebel and Körner has
    $\log(1 + \sigma_i^2)$ in place of $\tfrac{1}{2} s_i$, which is never negative, and $c_i = 1/2$ for all. A task that
    is absent from the batch adds neither term. The $s_i$ start at 0 and are trained like the network's parameters,
    without weight decay, which would pull each $\sigma_i$ towards 1.

    Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics
    (CVPR 2018, https://arxiv.org/abs/1705.07115), section 3.2. The revised form: Liebel and Körner, Auxiliary Tasks in
    Multi-task Learning (2018, https://arxiv.org/abs/1805.06334), equation 4.

    Run it:
        `python scripts/fit.py --config configs/multi_head_parkinsons.yaml`, which uses it.

    Logged:
        - `train/weight/<task>`: $c_i e^{-s_i}$.
        - `train/loss`: the objective including $\tfrac{1}{2} s_i$, so it can be negative, or the revised term.

    Deviations:
        - Section 3.2: the squared error of a target with several dimensions is averaged over them, since
          $\tfrac{1}{2} s_i$ is the term of one dimension.
        - $\sigma_i$ is at least 0.01, a hundredth of the standard deviation of a target. Otherwise the weight of a task
          whose loss approaches 0 would diverge, and so would every later error. The parameter is clamped, as in a
          projected gradient step.
        - The $s_i$ are one parameter: an optimiser with momentum also moves that of a task that is absent from a step.

    Args:
        revised: Whether to use the revised form of Liebel and Körner.
    """

    log_variance: nn.Parameter
    likelihood_scale: Tensor

    def __init__(self, revised: bool = False) -> None:
        super().__init__()
        switch(revised=revised)
        self.revised = revised

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make the parameters $s_i$, and $c_i$ from the class of each task."""
        halved = [self.revised or isinstance(task, Regression) for task in tasks.values()]
        scale = torch.tensor([0.5 if half else 1.0 for half in halved])
        self.register_buffer("likelihood_scale", scale, persistent=False)
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)))

    def weights(self) -> Tensor:
        """$c_i e^{-s_i}$, `(T,)`."""
        return self.likelihood_scale * (-self.log_variance).exp()

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The weighted losses plus the terms that bound the noises; arguments as in `Weighting`."""
        with torch.no_grad():
            self.log_variance.clamp_(min=-math.log(LARGEST_WEIGHT))
        noise = nn.functional.softplus(self.log_variance) if self.revised else self.log_variance / 2
        return super().forward(losses, present) + (noise * present).sum().to(losses.dtype)
