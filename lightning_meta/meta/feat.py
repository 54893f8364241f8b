"""FEAT: prototypes adapted to the task by self-attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.batches import Examples
from lightning_meta.checks import not_negative, positive
from lightning_meta.functional.precision import at_least_float32, in_float32
from lightning_meta.functional.prototypes import class_means, squared_euclidean
from lightning_meta.meta.metric import BatchNorm, MetricLearner
from lightning_meta.tasks import EpisodeSpec


class FEAT(MetricLearner):
    r"""Prototypical networks whose prototypes are adapted to the task by a transformer.

    Ye, Hu, Zhan and Sha, Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions (CVPR 2020,
    https://arxiv.org/abs/1812.03664, sections 4.2 and 4.3), after their code (https://github.com/Sha-Lab/FEAT). With
    $C$ `(N, F)` the class means of the support set,

    $$T(C) = \mathrm{LayerNorm}\left(C + W_o\, \mathrm{softmax}\left(\tfrac{1}{\sqrt F} C W_q^\top (C W_k^\top)^\top
      \right) C W_v^\top + b\right), \qquad p(y = n \mid x) \propto \exp(-\lVert f(x) - T(C)_n \rVert^2 / \tau)$$

    The training loss is the cross-entropy of the query set plus λ times a contrastive term: T adapts the support and
    query examples of each class together, and the unadapted features of all of them are classified by the class means
    of the adapted ones, with a separate temperature. The embedding is initialised by a classifier; see
    `backbone_weights`. Tasks may have any number of ways.

    At a glance:
        - Shared: an embedding θ and a transformer.
        - Own: prototypes, adapted by attention.
        - New task: embed, attend.

    Run it:
        `python scripts/fit.py --config configs/feat_glyphs.yaml`; to start from a classifier, add
        `--model.backbone_weights runs/rfs_glyphs/0`. For the paper's data, use
        `configs/feat_mini_imagenet.yaml` (results not reproduced here).

    Logged:
        - `val/accuracy`, `test/accuracy`: accuracy on the queries, averaged over tasks of `test_ways` classes, with its
          `_ci95`.
        - `train/accuracy`, `train/loss`: of one step's episodes, of `ways` classes each; only the training loss
          includes the contrastive term.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - There is no dropout; the authors' code drops attention weights with probability 0.1 and outputs of the
          transformer with 0.5.
        - The transformer has the learning rate of the backbone unless `backbone_lr_factor` is set; the authors use 10
          times the backbone's.

    Args:
        backbone: Embedding network f.
        temperature: Temperature τ > 0.
        contrast: Weight λ >= 0 of the contrastive term.
        contrast_temperature: Temperature of the contrastive term, > 0.
        batch_norm: Statistics that normalise features in evaluation: `running`, averaged over training (where the
            support and query examples of a task form one batch); `inductive`, those of the support set; `transductive`,
            those of the support set for support examples and of the query set for queries.
        **options: Options of `MetricLearner`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        temperature: float = 64.0,
        contrast: float = 0.1,
        contrast_temperature: float = 64.0,
        batch_norm: BatchNorm = "running",
        **options: Any,
    ) -> None:
        super().__init__(backbone, batch_norm, **options)
        positive(temperature=temperature, contrast_temperature=contrast_temperature)
        not_negative(contrast=contrast)
        self.temperature, self.contrast, self.contrast_temperature = temperature, contrast, contrast_temperature

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the transformer, with one head and the width of the features."""
        width = self.feature_size
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        for part in (self.query, self.key, self.value, self.output):
            nn.init.xavier_normal_(part.weight)

    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        """The adapted prototypes `(N, F)`; and for the contrastive term the features and labels of the support set."""
        prototypes = self.set_to_set(class_means(support.x, support.y, ways))
        return {"prototypes": prototypes, "features": support.x, "labels": support.y}

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        """Negative squared distances to the adapted prototypes over τ, `(M, N)`."""
        return -squared_euclidean(features, summary["prototypes"]) / self.temperature

    def outer_loss(self, summary: dict[str, Tensor], query: Examples, outputs: Tensor) -> Tensor:
        """The cross-entropy of the query set plus the contrastive term."""
        loss = self.task.loss(outputs, query.y)
        if not self.contrast:
            return loss
        x, y = torch.cat([summary["features"], query.x]), torch.cat([summary["labels"], query.y])
        centres = class_means(self.set_to_set(x, y.unsqueeze(-1) == y), y, outputs.shape[-1])
        return loss + self.contrast * self.task.loss(-squared_euclidean(x, centres) / self.contrast_temperature, y)

    def set_to_set(self, x: Tensor, together: Tensor | None = None) -> Tensor:
        """Apply T to features `(M, F)`; row i of `together` `(M, M)` marks those that i attends to, by default all."""
        weights = [at_least_float32(part.weight) for part in (self.query, self.key, self.value, self.output, self.norm)]
        biases = [at_least_float32(part.bias) for part in (self.output, self.norm)]
        return _set_to_set(at_least_float32(x), together, *weights, *biases)


@in_float32
def _set_to_set(
    x: Tensor,
    together: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    scale: Tensor,
    bias: Tensor,
    shift: Tensor,
) -> Tensor:
    scores = (x @ query.T) @ (x @ key.T).T / math.sqrt(x.shape[-1])
    if together is not None:
        scores = scores.masked_fill(~together, -math.inf)
    attended = scores.softmax(-1) @ (x @ value.T)
    return F.layer_norm(x + F.linear(attended, output, bias), x.shape[-1:], scale, shift)
