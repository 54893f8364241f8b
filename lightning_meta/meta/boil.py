"""BOIL (body only update in inner loop)."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_meta.meta.gradient_based import GradientBasedLearner


class BOIL(GradientBasedLearner):
    r"""MAML whose inner steps only adapt the backbone (Oh et al., ICLR 2021, https://arxiv.org/abs/2008.08882).

    $$\min_{\theta, w} \sum_i L(\theta_i, w; \mathrm{query}_i), \qquad
      \theta_i = \theta - \alpha \nabla_\theta L(\theta, w; \mathrm{support}_i) \text{ (a few times)}$$

    (section 3.2: the head's inner rate is 0) with θ the backbone and w the linear head. The outer loop learns both.
    Since the head is fixed in the inner loop, the features must change, whereas ANIL adapts the head and keeps the
    features. New tasks must have as many ways as in training.

    At a glance:
        - Shared: an initial backbone θ, a head w.
        - Own: a backbone θ − α∇L(θ, support).
        - New task: adapt the backbone by a few gradient steps.

    Run it:
        `python scripts/fit.py --config configs/boil_glyphs.yaml` without a download; for the paper's data, use
        `configs/boil_mini_imagenet.yaml`.

    Logged:
        - `test/accuracy_step_<j>` (`test/mse_step_<j>` in regression), and likewise for `val`: the mean over tasks
          after j = 0, ..., `test_inner_steps` inner steps, with its `_ci95`.
        - `train/loss`, `train/accuracy`: on the query sets of one meta-batch, after `inner_steps` inner steps.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - Those of `MAML`.

    Args:
        backbone: The network below the head.
        **options: Options of `GradientBasedLearner`, except `inner_parameters`.
    """

    fixed_options = ("inner_parameters",)

    def __init__(self, backbone: nn.Module, **options: Any) -> None:
        super().__init__(backbone, inner_parameters="backbone", **options)
