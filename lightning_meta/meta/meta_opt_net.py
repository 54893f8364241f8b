"""MetaOptNet with ridge regression as the head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import positive
from lightning_meta.functional.precision import at_least_float32, in_float32
from lightning_meta.functional.prototypes import one_hot
from lightning_meta.functional.ridge import ridge
from lightning_meta.meta.metric import BatchNorm, MetricLearner


class MetaOptNet(MetricLearner):
    r"""A convex classifier as the head, here ridge regression (Lee, Maji, Ravichandran and Soatto, CVPR 2019).

    $$W = \arg\min_W \lVert X W - Y \rVert^2 + \lambda \lVert W \rVert^2, \quad \mathrm{logits} = \gamma\, f(x)^\top W$$

    (section 3; https://arxiv.org/abs/1904.03758) with X the features of the support set, Y its one-hot labels, λ fixed
    and γ learned in the outer loop, which differentiates through the solution. Tasks may have any number of ways. The
    paper trains with more shots than it tests with; see `shots` and `test_shots` of the data module.

    At a glance:
        - Shared: an embedding θ and γ.
        - Own: a linear head W, the solution of a convex problem.
        - New task: embed, solve M equations.

    Run it:
        `python scripts/fit.py --config configs/meta_opt_net_glyphs.yaml` without a download; the paper's experiment is
        `configs/meta_opt_net_cifar_fs.yaml`.

    Logged:
        - `val/accuracy`, `test/accuracy`: accuracy on the queries, averaged over tasks of `test_ways` classes and
          `test_shots` shots, with its `_ci95`.
        - `train/accuracy`, `train/loss`: on the episodes of one step, with `ways` classes and `shots` shots.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - The head is ridge regression, in closed form. The paper's SVM, which is not better on CIFAR-FS, is not
          implemented.
        - The authors' code solves the dual problem, whose weights are 2 W, with γ = 1 initially; here γ is 2 initially.
        - Section 4.1, label smoothing of the query loss by 0.1, is not implemented.

    Args:
        backbone: Embedding network f.
        penalty: Ridge penalty λ > 0; by default as in the authors' code, for features that are not of length 1.
        scale: Initial value of γ, > 0.
        batch_norm: Statistics that normalise features in evaluation: `running`, averaged over training (where the
            support and query examples of a task form one batch); `inductive`, those of the support set; `transductive`,
            those of the support set for support examples and of the query set for queries.
        **options: Options of `MetricLearner`.
    """

    sets_first_weights = ("scale",)

    def __init__(
        self,
        backbone: nn.Module,
        penalty: float = 50.0,
        scale: float = 2.0,
        batch_norm: BatchNorm = "running",
        **options: Any,
    ) -> None:
        super().__init__(backbone, batch_norm, **options)
        positive(penalty=penalty, scale=scale)
        self.penalty = penalty
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        """W `(F, N)`."""
        penalty = support.x.new_tensor(self.penalty)
        return {"weight": ridge(support.x, one_hot(support.y, ways), penalty)}

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        """γ f(x)ᵀ W, `(M, N)`."""
        scores: Tensor = _product(features, at_least_float32(summary["weight"]))
        return at_least_float32(self.scale) * scores


_product = in_float32(torch.matmul)
