"""Meta-SGD: learned inner learning rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.meta.gradient_based import GradientBasedLearner, parameter_key
from lightning_meta.tasks import EpisodeSpec


class MetaSGD(GradientBasedLearner):
    r"""Learn an initialisation and an inner learning rate for every weight (Li, Zhou, Chen and Li, 2017).

    $$\min_{\theta, \alpha} \sum_i L(\theta_i; \mathrm{query}_i), \qquad
      \theta_i = \theta - \alpha \circ \nabla_\theta L(\theta; \mathrm{support}_i)$$

    (equations 2 and 3; https://arxiv.org/abs/1707.09835) with α of the shape of θ. Rates may become negative, so the
    outer loop learns the direction of a step as well as its length. All inner steps share the rates. New tasks must
    have as many ways as in training.

    At a glance:
        - Shared: an initialisation θ, rates α.
        - Own: φ = θ − α∘∇L(θ, support).
        - New task: adapt by one gradient step.

    Run it:
        `python scripts/fit.py --config configs/meta_sgd_glyphs.yaml` without a download; for the paper's data, use
        `configs/meta_sgd_omniglot.yaml`.

    Logged:
        - `test/accuracy_step_<j>` (`test/mse_step_<j>` in regression), and likewise for `val`: the mean over tasks
          after j = 0, ..., `test_inner_steps` inner steps, with its `_ci95`.
        - `train/loss`, `train/accuracy`: on the query sets of one meta-batch, after `inner_steps` inner steps.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - Those of `MAML`.
        - The paper draws the initial value of all rates from [0.005, 0.1]; here it is `inner_lr`.

    Args:
        backbone: The network below the head.
        inner_lr: Initial value of all rates, > 0.
        inner_steps: Number of inner steps in training; 1 in the paper.
        **options: Options of `GradientBasedLearner`.
    """

    def __init__(self, backbone: nn.Module, inner_lr: float = 0.05, inner_steps: int = 1, **options: Any) -> None:
        super().__init__(backbone, inner_lr=inner_lr, inner_steps=inner_steps, **options)

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the head and the rates."""
        super().build(episodes)
        adapted = self.adapted()
        self.alpha = nn.ParameterDict()
        for name, p in self.network.named_parameters():
            # A frozen weight has a fixed rate, so that a checkpoint loads whether or not weights are frozen.
            if name in adapted or not p.requires_grad:
                self.alpha[parameter_key(name)] = nn.Parameter(torch.full_like(p, self.inner_lr), name in adapted)

    def rates(self, step: int) -> dict[str, Tensor]:
        """α by name of the parameter, the same in every step."""
        return {name: self.alpha[parameter_key(name)] for name in self.adapted() if parameter_key(name) in self.alpha}
