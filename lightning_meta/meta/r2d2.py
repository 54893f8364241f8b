"""R2D2: ridge regression as the head."""

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

    (equations 5 and 6) with X the features of the support set, Y its one-hot labels, and λ, α and β learned in the
    outer loop, which differentiates through the solution. Tasks may have any number of ways.

    At a glance:
        - Shared: an embedding θ, λ, α and β.
        - Own: a linear head W in closed form.
        - New task: embed, solve M equations.

    Run it:
        `python scripts/fit.py --config configs/r2d2_glyphs.yaml` without a download; the paper's experiment is
        `configs/r2d2_cifar_fs.yaml`.

    Logged:
        - `val/accuracy`, `test/accuracy`: accuracy on the queries, averaged over tasks of `test_ways` classes, with its
          `_ci95`.
        - `train/accuracy`, `train/loss`: on the episodes of one step, with `ways` classes each; with more classes than
          in validation, accuracy is lower for this reason alone.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - λ is learned as its logarithm, so it stays positive. In the authors' code it is fixed at 50, times the number
          of support examples.
        - There is no intercept, as in the equations; the authors' code appends a 1 to the features.
        - As in the paper, β is the same for all classes, so it does not affect the probabilities and has a gradient of
          0.

    Args:
        backbone: Embedding network f.
        penalty: Initial value of λ, > 0.
        scale: Initial value of α, > 0; with a larger one predictions are more confident.
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
