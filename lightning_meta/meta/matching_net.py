"""Matching networks."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import positive
from lightning_meta.functional.prototypes import cosine_similarity, one_hot
from lightning_meta.meta.metric import BatchNorm, MetricLearner


class MatchingNet(MetricLearner):
    r"""Classify a query by attention over the labelled support examples (Vinyals et al., NeurIPS 2016).

    $$p(y = n \mid x) = \sum_{i:\, y_i = n} a(x, x_i), \qquad
      a(x, x_i) = \mathrm{softmax}_i\left(\cos(f(x), f(x_i)) / \tau\right)$$

    (equation 1 and section 2.1.1; https://arxiv.org/abs/1606.04080) with the softmax over all support examples. With
    one example per class it is ProtoNet with cosines. Tasks may have any number of ways, whatever the number in
    training.

    At a glance:
        - Shared: an embedding θ.
        - Own: the embedded support set and its labels.
        - New task: embed.

    Run it:
        `python scripts/fit.py --config configs/matching_net_glyphs.yaml` without a download; the paper's experiment is
        `configs/matching_net_omniglot.yaml`.

    Logged:
        - `val/accuracy`, `test/accuracy`: accuracy on the queries, averaged over tasks of `test_ways` classes, with its
          `_ci95`.
        - `train/accuracy`, `train/loss`: on the episodes of one step, with `ways` classes each.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - Section 2.1.2: full context embeddings (an LSTM over the support set) are not implemented; one backbone embeds
          queries and support examples.
        - Equation 1: the temperature τ is an addition; the paper has τ = 1. Since cosines lie in [-1, 1], no
          probability of a 5-way 1-shot task then exceeds 0.65.

    Args:
        backbone: Embedding network f.
        temperature: Temperature τ > 0; with a smaller one predictions are more confident.
        batch_norm: Statistics that normalise features in evaluation: `running`, averaged over training (where the
            support and query examples of a task form one batch); `inductive`, those of the support set; `transductive`,
            those of the support set for support examples and of the query set for queries.
        **options: Options of `MetricLearner`.
    """

    def __init__(
        self, backbone: nn.Module, temperature: float = 1.0, batch_norm: BatchNorm = "running", **options: Any
    ) -> None:
        super().__init__(backbone, batch_norm, **options)
        positive(temperature=temperature)
        self.temperature = temperature

    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        """The features `(K, F)` of the support set, and its labels, one-hot `(K, N)`."""
        return {"keys": support.x, "members": one_hot(support.y, ways)}

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        """The logarithm of the attention on each class, `(M, N)`."""
        attention = (cosine_similarity(features, summary["keys"]) / self.temperature).log_softmax(-1)  # (M, K)
        # Sums in log space: with a small τ the probabilities of distant classes underflow.
        others = ~summary["members"].T
        return attention.unsqueeze(-2).masked_fill(others, -math.inf).logsumexp(-1)
