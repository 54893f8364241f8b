"""ANIL (almost no inner loop)."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_meta.meta.gradient_based import GradientBasedLearner


class ANIL(GradientBasedLearner):
    r"""MAML whose inner steps only adapt the head (Raghu et al., ICLR 2020, https://arxiv.org/abs/1909.09157).

    $$\min_{\theta, w} \sum_i L(w_i, \theta; \mathrm{query}_i), \qquad
      w_i = w - \alpha \nabla_w L(w, \theta; \mathrm{support}_i) \text{ (a few times)}$$

    (section 4) with θ the backbone and w the linear head. The backbone is learned only in the outer loop, through the
    inner steps of the head, so the features of a support set are computed once. New tasks must have as many ways as in
    training.

    At a glance:
        - Shared: features θ, an initial head w.
        - Own: a head w − α∇L(w, support).
        - New task: adapt the head by a few gradient steps.

    Run it:
        `python scripts/fit.py --config configs/anil_glyphs.yaml` without a download; the paper's experiment is
        `configs/anil_mini_imagenet.yaml`.

    Logged:
        - `test/accuracy_step_<j>` (`test/mse_step_<j>` in regression), and likewise for `val`: the mean over tasks
          after j = 0, ..., `test_inner_steps` inner steps, with its `_ci95`.
        - `train/loss`, `train/accuracy`: on the query sets of one meta-batch, after `inner_steps` inner steps.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - Those of `MAML`, except that inner steps do not adapt batch normalisation.
        - A backbone that draws random numbers, such as dropout, is run once per inner step.

    Args:
        backbone: The network below the head.
        **options: Options of `GradientBasedLearner`, except `inner_parameters`.
    """

    fixed_options = ("inner_parameters",)

    def __init__(self, backbone: nn.Module, **options: Any) -> None:
        super().__init__(backbone, inner_parameters="head", **options)
