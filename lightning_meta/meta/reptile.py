"""Reptile."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_meta.batches import Examples
from lightning_meta.functional.inner_optimizers import InnerAdam, InnerOptimizer
from lightning_meta.meta.base import Outcome
from lightning_meta.meta.gradient_based import GradientBasedLearner

_ADAM = InnerAdam(beta1=0.0)


class Reptile(GradientBasedLearner):
    r"""Move an initialisation towards the weights after training on each task (Nichol, Achiam and Schulman, 2018).

    $$\theta \leftarrow \theta + \epsilon\, \frac{1}{T} \sum_i (\varphi_i - \theta)$$

    (section 3, the batch version of algorithm 1; https://arxiv.org/abs/1803.02999) with φ_i the weights after the inner
    steps on mini-batches of task i's support set. The outer optimiser receives the mean of θ − φ_i as its gradient, so
    `torch.optim.SGD` with learning rate ε gives the equation. No second derivatives are computed. Query sets are not
    trained on; they only give the logged loss and accuracy.

    At a glance:
        - Shared: an initialisation θ.
        - Own: φ, many mini-batch steps from θ.
        - New task: train from θ for a few steps.

    Run it:
        `python scripts/fit.py --config configs/reptile_glyphs.yaml` without a download; the paper's experiment is
        `configs/reptile_omniglot.yaml`.

    Logged:
        - `test/accuracy_step_<j>` (`test/mse_step_<j>` in regression), and likewise for `val`: the mean over tasks
          after j = 0, ..., `test_inner_steps` inner steps, with its `_ci95`.
        - `train/loss`, `train/accuracy`: on the query sets of one meta-batch, after `inner_steps` inner steps. The loss
          is not the training objective.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - The state of the inner Adam is reset for each task; the authors' code keeps it across tasks.
        - With `batch_norm: inductive`, queries are normalised by the support set's statistics. The authors' code
          evaluates one query at a time, normalised together with the support set; its `transductive` mode is the same.
        - Training episodes have a query set; the authors' code has none.

    Args:
        backbone: The network below the head.
        inner_batch_size: Number of support examples in a mini-batch, at least 1; smaller support sets are used whole.
            None always uses the whole set.
        inner_optimizer: Inner optimizer; by default Adam without momentum, as in the paper.
        **options: Options of `GradientBasedLearner`, except `first_order`.
    """

    fixed_options = ("first_order",)

    def __init__(
        self,
        backbone: nn.Module,
        inner_batch_size: int | None = 10,
        inner_optimizer: InnerOptimizer = _ADAM,
        **options: Any,
    ) -> None:
        super().__init__(
            backbone, first_order=True, inner_batch_size=inner_batch_size, inner_optimizer=inner_optimizer, **options
        )

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The value of the query loss, with gradient θ − φ."""
        with torch.no_grad():
            phi = self.adapt(support, ways)
            outcome = self.outcome(phi, query)
        # d/dθ of |θ − φ|² / 2 for fixed φ is θ − φ. Its value is subtracted again, so that the loss is the query loss.
        pulls = [(p - phi[name]).square().sum() / 2 for name, p in self.network.named_parameters()]
        pull = torch.stack(pulls).sum()
        return outcome._replace(loss=outcome.loss + pull - pull.detach())
