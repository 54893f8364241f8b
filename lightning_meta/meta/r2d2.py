"""Ridge regression as the head."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import positive
from lightning_meta.functional.precision import at_least_float32, in_float32
from lightning_meta.functional.prototypes import one_hot
from lightning_meta.functional.ridge import ridge
from lightning_meta.meta.metric import BatchNorm, MetricLearner


class R2D2(MetricLearner):
    r"""Ridge regression on features as the head (Bertinetto et al., ICLR 2019, https://arxiv.org/abs/1805.08136).

    $$W = X^\top (X X^\top + \lambda I)^{-1} Y, \qquad \mathrm{logits} = \alpha\, f(x)^\top W + \beta$$

    (equations 5 and 6) with X the features of the support set, Y their labels one-hot, and λ, α and β learned in the
    outer loop, through the solution. Tasks may have any number of ways.

    At a glance:
        - Shared: an embedding θ, λ, α and β.
        - Own: a linear head W in closed form.
        - New task: embed, solve M equations.

    Run it:
        `python scripts/fit.py --config configs/r2d2_glyphs.yaml` without a download; the paper's experiment is
        `configs/r2d2_cifar_fs.yaml`.

    Logged:
        - `val/accuracy`, `test/accuracy`: accuracy on the queries, averaged over tasks of `test_ways` classes, with its
          `_ci95`. Without an inner loop there is no `_step_<j>`.
        - `train/accuracy`, `train/loss`: of one step's episodes, of `ways` classes each; with more classes than in
          validation, the accuracy is lower for that alone.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - λ is learned as its logarithm, which keeps it positive. In the authors' code it is fixed at 50 and multiplied
          by the number of support examples.
        - No intercept, as in the equations; the authors' code appends a 1 to the features.
        - β is the same for all classes, as in the paper, so it changes no probability and its gradient is 0.

    Args:
        backbone: Embedding network f.
        penalty: λ at the start, > 0.
        scale: α at the start, > 0; a larger one makes the probabilities more certain.
        batch_norm: Statistics that normalise features in evaluation: `running`, averaged over training (where the
            support and query examples of a task form one batch); `inductive`, those of the support set; `transductive`,
            those of the support set for support examples and of the query set for queries.
        **options: Options of `MetricLearner`.
    """

    sets_first_weights = ("penalty", "scale")

    def __init__(
        self,
        backbone: nn.Module,
        penalty: float = 1.0,
        scale: float = 10.0,
        batch_norm: BatchNorm = "running",
        **options: Any,
    ) -> None:
        super().__init__(backbone, batch_norm, **options)
        positive(penalty=penalty, scale=scale)
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))
        self.scale, self.shift = nn.Parameter(torch.tensor(float(scale))), nn.Parameter(torch.tensor(0.0))

    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        """W `(F, N)`."""
        return {"weight": ridge(support.x, one_hot(support.y, ways), self.log_penalty.exp())}

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        """α f(x)ᵀ W + β, `(M, N)`."""
        scores: Tensor = _product(features, at_least_float32(summary["weight"]))
        return at_least_float32(self.scale) * scores + at_least_float32(self.shift)


_product = in_float32(torch.matmul)
