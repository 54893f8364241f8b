"""BD-CSPN: prototypes rectified by the query set."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import positive
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import in_float32
from lightning_meta.functional.prototypes import cosine_similarity, one_hot, unit_length
from lightning_meta.meta.all_classes import ClassifierLearner
from lightning_meta.nn.stateless import Tensors


class BDCSPN(ClassifierLearner):
    r"""Shift queries to the mean of the support set, label them by cosine prototypes, and average them with it.

    Liu, Song and Qin, Prototype Rectification for Few-Shot Learning (ECCV 2020, https://arxiv.org/abs/1911.10713,
    section 3). With features x of length 1, S the support set, Q the query set, and $P_n$ the mean of class n's support
    examples,

    $$x_j \leftarrow x_j + \xi, \quad \xi = \tfrac{1}{|S|} \sum_{i \in S} x_i - \tfrac{1}{|Q|} \sum_{j \in Q} x_j,
      \qquad P'_n = \sum_{i \in X_n} w_{in} x_i, \quad
      w_{in} = \frac{\exp(\varepsilon \cos(x_i, P_n))}{\sum_{k \in X_n} \exp(\varepsilon \cos(x_k, P_n))}$$

    where $X_n$ are the support examples of class n and the queries whose nearest prototype by the cosine is $P_n$. The
    logits of a query are $\varepsilon \cos(x_j, P'_n)$. The network is a classifier of all training classes, or that
    of another run. Any way is served.

    **Transductive, and assumes balance**: a prediction uses the whole query set. The shift takes its classes to be as
    frequent as in the support set. One query alone would be moved to the mean of all classes, so a predictor refuses
    it.

    At a glance:
        - Shared: features θ of a classifier of all training classes.
        - Own: prototypes of the support set and the queries.
        - New task: embed, shift and label the queries, take weighted means.

    Run it:
        `python scripts/fit.py --config configs/bd_cspn_glyphs.yaml`. On the network of another run:
        `--model.backbone_weights runs/rfs_glyphs/0 --trainer.max_steps 0`. For the paper's data there is
        `configs/bd_cspn_mini_imagenet.yaml`, which was not run here.

    Logged:
        - `train/loss`, `train/accuracy`: of all images of one step among all training classes; chance is one in their
          number.
        - `val/accuracy`, `test/accuracy`, `val/loss`, `test/loss`: of few-shot tasks, the mean over tasks. They are not
          to be compared with the training figures. There is no inner loop, so no `_step_<j>`.

        The rest, and what the intervals are over, is said at `MetaModule`.

    Deviations:
        - All queries are averaged, where the paper takes the Z of each class that are classified with most confidence.
        - The network is trained with a linear classifier; the paper's is a cosine classifier.

    Args:
        backbone: The network f.
        scale: ε > 0; 10 in the paper.
        **options: Those of `MetaModule`.
    """

    uses_query_set = "takes their classes to be as frequent as in the support set"

    def __init__(self, backbone: nn.Module, scale: float = 10.0, **options: Any) -> None:
        super().__init__(backbone, **options)
        positive(scale=scale)
        self.scale = scale

    def adapt(self, support: Examples, ways: int) -> Tensors:
        """The features of the support set, of length 1, and which class each is of, one-hot `(M, N)`."""
        return {"features": unit_length(self.features(support.x)), "members": one_hot(support.y, ways)}

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Logits `(M, N)` of all queries."""
        query = shifted(unit_length(self.features(x)), state["features"])
        return self.scale * cosine_similarity(query, rectified(query, state["features"], state["members"], self.scale))

    def check_queries(self, count: int) -> None:
        """Refuse one query alone.

        Raises:
            UserError: It would be moved to the mean of the support set.
        """
        refuse_one_query(type(self).__name__, count)


def refuse_one_query(method: str, count: int) -> None:
    """Refuse one query alone, which `shifted` moves to the same place whatever it is.

    Raises:
        UserError: There is one.
    """
    if count == 1:
        raise UserError(
            f"{method} predicts all examples together and shifts them to the mean of the support set: one alone would "
            "lie there whatever it is; give it more, or use another method"
        )


@in_float32
def shifted(query: Tensor, support: Tensor) -> Tensor:
    """Queries `(M, F)` moved so that their mean is that of the support set `(K, F)`."""
    return query + (support.mean(0) - query.mean(0))


@in_float32
def rectified(query: Tensor, support: Tensor, members: Tensor, scale: float) -> Tensor:
    """The rectified prototypes P' of one task.

    Args:
        query: `(M, F)`, shifted.
        support: `(K, F)`.
        members: Which class each support example is of, one-hot `(K, N)`.
        scale: ε > 0.

    Returns:
        `(N, F)`.
    """
    features, cosines, members = labelled(query, support, members)
    return (scale * cosines).masked_fill(members == 0, -math.inf).softmax(0).T @ features


@in_float32
def labelled(query: Tensor, support: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries labelled by the nearest class mean of the support set.

    Args:
        query: `(M, F)`.
        support: `(K, F)`.
        members: Which class each support example is of, one-hot `(K, N)`.

    Returns:
        Of support and query set together, in this order: features `(K + M, F)`, cosines with the class means
        `(K + M, N)`, and classes, one-hot `(K + M, N)`.
    """
    means = members.T.to(support.dtype) @ support / members.sum(0).unsqueeze(-1)
    features = torch.cat([support, query])
    cosines = cosine_similarity(features, means)
    nearest = one_hot(cosines[len(support) :].argmax(-1), len(means))
    return features, cosines, torch.cat([members, nearest])
