"""BD-CSPN: prototypes rectified by the query set."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.checks import positive
from lightning_meta.functional.precision import in_float32
from lightning_meta.functional.prototypes import cosine_similarity, one_hot
from lightning_meta.meta.transductive import TransductiveClassifier
from lightning_meta.nn.stateless import Tensors

SHIFTED = "shifts them to the mean of the support set: one alone would lie there whatever it is"
"""Why methods that shift the queries refuse a single one."""


class BDCSPN(TransductiveClassifier):
    r"""Shift queries to the mean of the support set, pseudo-label them, and average both into new prototypes.

    Liu, Song and Qin, Prototype Rectification for Few-Shot Learning (ECCV 2020, https://arxiv.org/abs/1911.10713,
    section 3). With features x of length 1, S the support set, Q the query set, and $P_n$ the mean of class n's support
    examples,

    $$x_j \leftarrow x_j + \xi, \quad \xi = \tfrac{1}{|S|} \sum_{i \in S} x_i - \tfrac{1}{|Q|} \sum_{j \in Q} x_j,
      \qquad P'_n = \sum_{i \in X_n} w_{in} x_i, \quad
      w_{in} = \frac{\exp(\varepsilon \cos(x_i, P_n))}{\sum_{k \in X_n} \exp(\varepsilon \cos(x_k, P_n))}$$

    where $X_n$ are the support examples of class n and the queries whose nearest prototype by the cosine is $P_n$. The
    logits of a query are $\varepsilon \cos(x_j, P'_n)$. The network is trained to classify all training classes, or
    taken from another run. Tasks may have any number of ways.

    **Transductive, and assumes balance**: predictions depend on the whole query set. The shift assumes that classes are
    as frequent among the queries as in the support set. A single query would be moved to the mean of the support set,
    so a predictor refuses it.

    At a glance:
        - Shared: features θ of a classifier of all training classes.
        - Own: prototypes of the support set and the queries.
        - New task: embed, shift and label the queries, take weighted means.

    Run it:
        `python scripts/fit.py --config configs/bd_cspn_glyphs.yaml`. To reuse the network of another run:
        `--model.backbone_weights runs/rfs_glyphs/0 --trainer.max_steps 0`. For the paper's data, use
        `configs/bd_cspn_mini_imagenet.yaml` (results not reproduced here).

    Logged:
        - `train/loss`, `train/accuracy`: on the images of one step, among all training classes (chance level: 1 /
          number of classes).
        - `val/accuracy`, `test/accuracy`, `val/loss`, `test/loss`: averaged over few-shot tasks; not comparable with
          the training metrics.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - All queries are averaged; the paper takes the Z most confident ones of each class.
        - The network is trained with a linear classifier; the paper's is a cosine classifier.

    Args:
        backbone: Feature extractor f.
        scale: Scale ε > 0 of the cosines; 10 in the paper.
        **options: Options of `MetaModule`.
    """

    uses_query_set = "takes their classes to be as frequent as in the support set"
    one_query_refused = SHIFTED

    def __init__(self, backbone: nn.Module, scale: float = 10.0, **options: Any) -> None:
        super().__init__(backbone, **options)
        positive(scale=scale)
        self.scale = scale

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Logits `(M, N)` of all queries."""
        query = shifted(self.scaled_features(x), state["features"])
        return self.scale * cosine_similarity(query, rectified(query, state["features"], state["members"], self.scale))


@in_float32
def shifted(query: Tensor, support: Tensor) -> Tensor:
    """Queries `(M, F)` moved so that their mean is that of the support set `(K, F)`."""
    return query + (support.mean(0) - query.mean(0))


@in_float32
def rectified(query: Tensor, support: Tensor, members: Tensor, scale: float) -> Tensor:
    """The rectified prototypes P' of one task.

    Args:
        query: Shifted features `(M, F)`.
        support: Features `(K, F)`.
        members: Labels of the support examples, one-hot `(K, N)`.
        scale: ε > 0.

    Returns:
        Prototypes `(N, F)`.
    """
    features, cosines, members = labelled(query, support, members)
    return (scale * cosines).masked_fill(members == 0, -math.inf).softmax(0).T @ features


@in_float32
def labelled(query: Tensor, support: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pseudo-label queries by the nearest class mean of the support set.

    Args:
        query: Features `(M, F)`.
        support: Features `(K, F)`.
        members: Labels of the support examples, one-hot `(K, N)`.

    Returns:
        For the support examples followed by the queries: features `(K + M, F)`, cosines with the class means `(K + M,
        N)`, and labels, one-hot `(K + M, N)`.
    """
    means = members.T.to(support.dtype) @ support / members.sum(0).unsqueeze(-1)
    features = torch.cat([support, query])
    cosines = cosine_similarity(features, means)
    nearest = one_hot(cosines[len(support) :].argmax(-1), len(means))
    return features, cosines, torch.cat([members, nearest])
