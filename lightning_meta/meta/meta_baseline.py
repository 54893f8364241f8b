"""Meta-Baseline: cosine prototypes, meta-trained from a classifier's network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import positive
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.functional.prototypes import class_means, cosine_similarity
from lightning_meta.meta.metric import BatchNorm, MetricLearner


class MetaBaseline(MetricLearner):
    r"""Cosine prototypes with a learned scale, on a network that was first trained as a classifier.

    Chen, Liu, Xu, Darrell and Wang, Meta-Baseline: Exploring Simple Meta-Learning for Few-Shot Learning (ICCV 2021,
    https://arxiv.org/abs/2003.04390, section 3):

    $$p(y = n \mid x) = \mathrm{softmax}_n\left(\tau \cos(f(x), c_n)\right)$$

    (equation 4) with $c_n$ the mean feature of class n's support examples (equation 1) and τ learned in the outer loop.
    The first stage, classification of all training classes, is a separate run, such as one of `RFS` or `SimpleShot`,
    given by `backbone_weights`. Tasks may have any number of ways.

    At a glance:
        - Shared: an embedding θ, initialised by a classifier, and τ.
        - Own: prototypes of the support set.
        - New task: embed.

    Run it:
        `python scripts/fit.py --config configs/meta_baseline_glyphs.yaml`; to start from a classifier, add
        `--model.backbone_weights runs/rfs_glyphs/0`.

    Logged:
        - `val/accuracy`, `test/accuracy`: accuracy on the queries, averaged over tasks of `test_ways` classes, with its
          `_ci95`.
        - `train/accuracy`, `train/loss`: on the episodes of one step, with `ways` classes each.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - The first stage is up to you. In the paper it is a linear classifier of all training classes, which is
          `SimpleShot`, or `RFS` without augmented support images and teacher. Without `backbone_weights` there is none.

    Args:
        backbone: Embedding network f.
        scale: Initial value of τ, > 0; 10 in the paper.
        batch_norm: Statistics that normalise features in evaluation: `running`, averaged over training (where the
            support and query examples of a task form one batch); `inductive`, those of the support set; `transductive`,
            those of the support set for support examples and of the query set for queries.
        **options: Options of `MetricLearner`.
    """

    sets_first_weights = ("scale",)

    def __init__(
        self, backbone: nn.Module, scale: float = 10.0, batch_norm: BatchNorm = "running", **options: Any
    ) -> None:
        super().__init__(backbone, batch_norm, **options)
        positive(scale=scale)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        """Prototypes `(N, F)`."""
        return {"prototypes": class_means(support.x, support.y, ways)}

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        """τ times the cosines with the prototypes, `(M, N)`."""
        return at_least_float32(self.scale) * cosine_similarity(features, summary["prototypes"])
