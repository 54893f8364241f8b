"""Soft k-means: prototypes refined by the query set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import positive, whole
from lightning_meta.functional.precision import in_float32
from lightning_meta.functional.prototypes import class_means, one_hot, squared_euclidean
from lightning_meta.meta.metric import BatchNorm, MetricLearner


class SoftKMeans(MetricLearner):
    r"""Prototypical networks whose prototypes are refined by unlabelled examples, here the query set (Ren et al. 2018).

    $$z_{jn} = \mathrm{softmax}_n\left(-\lVert f(x_j) - c_n \rVert^2 / \tau\right), \qquad
      \tilde c_n = \frac{\sum_{i:\, y_i = n} f(x_i) + \sum_j z_{jn} f(x_j)}{K + \sum_j z_{jn}}$$

    (Meta-Learning for Semi-Supervised Few-Shot Classification, ICLR 2018, https://arxiv.org/abs/1803.00676, section
    3.1.1, equation 3) with i over support examples and j over queries, starting from the class means c. The logits of a
    query are $-\lVert f(x) - \tilde c_n \rVert^2 / \tau$. Training differentiates through the refinement. Tasks may
    have any number of ways.

    **Transductive**: predictions depend on the whole query set. It does not assume equal class frequencies among the
    queries, but gains most from them; a class without queries still attracts some. With a single query the prototypes
    change little.

    At a glance:
        - Shared: an embedding θ.
        - Own: prototypes of the support set and the queries.
        - New task: embed, assign the queries softly, average.

    Run it:
        `python scripts/fit.py --config configs/soft_k_means_glyphs.yaml` without a download. To reuse the network of
        another run: `--model.backbone_weights runs/protonet_glyphs/0 --trainer.max_steps 0`.

    Logged:
        - `val/accuracy`, `test/accuracy`: accuracy on the queries, averaged over tasks of `test_ways` classes, with its
          `_ci95`.
        - `train/accuracy`, `train/loss`: on the episodes of one step, with `ways` classes each.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - The unlabelled examples are the queries themselves. In the paper they are separate examples, some of other
          classes (its sections 3.1.2 and 3.1.3).
        - The temperature τ and more than one step are additions; 1 and 1 are the paper's.

    Args:
        backbone: Embedding network f.
        steps: Number of refinements of the prototypes, at least 1.
        temperature: Temperature τ > 0; with `scale_features` choose a small one, such as 0.1, since squared distances
            are then at most 4.
        batch_norm: Statistics that normalise features in evaluation: `running`, averaged over training (where the
            support and query examples of a task form one batch); `inductive`, those of the support set; `transductive`,
            those of the support set for support examples and of the query set for queries.
        **options: Options of `MetricLearner`.
    """

    uses_query_set = "refines the classes by all of them"

    def __init__(
        self,
        backbone: nn.Module,
        steps: int = 1,
        temperature: float = 1.0,
        batch_norm: BatchNorm = "running",
        **options: Any,
    ) -> None:
        super().__init__(backbone, batch_norm, **options)
        whole(1, steps=steps)
        positive(temperature=temperature)
        self.steps, self.temperature = steps, temperature

    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        """The features `(K, F)` of the support set, its labels, and its class means `(N, F)`."""
        return {"features": support.x, "labels": support.y, "prototypes": class_means(support.x, support.y, ways)}

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        """Negative squared distances to the refined prototypes over τ, `(M, N)`."""
        support = Examples(summary["features"], summary["labels"])
        prototypes = summary["prototypes"]
        for _ in range(self.steps):
            prototypes = refined(features, prototypes, *support, self.temperature)
        return -squared_euclidean(features, prototypes) / self.temperature


@in_float32
def refined(query: Tensor, prototypes: Tensor, support: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Class means of support examples and softly assigned queries (equation 3).

    Args:
        query: Features `(M, F)`.
        prototypes: Prototypes `(N, F)` that the queries are assigned to.
        support: Features `(K, F)`.
        labels: `(K,)` in [0, N).
        temperature: τ > 0.

    Returns:
        Refined prototypes `(N, F)`.
    """
    assigned = (-squared_euclidean(query, prototypes) / temperature).softmax(-1)
    weights = torch.cat([one_hot(labels, len(prototypes)).to(assigned.dtype), assigned])
    return weights.T @ torch.cat([support, query]) / weights.sum(0).unsqueeze(-1)
