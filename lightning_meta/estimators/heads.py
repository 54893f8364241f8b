"""Linear classifiers for a few labelled examples, fitted in float64 to convergence."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.functional.linear_models import Labelled, linear_models
from lightning_meta.functional.prototypes import class_means
from lightning_meta.functional.ridge import ridge
from lightning_meta.tasks import Classification

LearnerName = Literal["ridge", "logistic", "nearest_mean"]


class Head(NamedTuple):
    """A linear classifier: the logits of features x `(M, F)` are $x W + b$.

    Attributes:
        weight: W, `(F, N)`.
        bias: b, `(N,)`.
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits `(M, N)` of features `(M, F)`."""
        return features @ self.weight + self.bias


def fit_head(learner: LearnerName, features: Tensor, labels: Tensor, ways: int, penalty: float, scale: float) -> Head:
    """Fit a linear classifier.

    Args:
        learner: Kind of classifier.
        features: Features `(M, F)`, float64.
        labels: Labels `(M,)` in [0, N); every class occurs.
        ways: N, at least 2.
        penalty: λ of `ridge` and `logistic`.
        scale: Factor of the outputs of `ridge`.
    """
    if learner == "nearest_mean":
        means = class_means(features, labels, ways)
        return Head(2 * means.T, -means.square().sum(1))  # −‖x − c‖² without ‖x‖², which is the same for all classes
    if learner == "logistic":
        spread = float((features - features.mean(0)).square().sum()) / features.shape[1]  # n v of `linear_models`
        rows = Labelled(Classification(ways), features, labels)
        ((weight, biases),) = linear_models([rows], [penalty / (spread or 1.0)])
        return Head(weight, biases[0])
    # The intercept is not penalised, so its optimum is mean(y) − mean(x) W for any λ: fit W to centred data.
    mean, targets = features.mean(0), F.one_hot(labels, ways).double()
    weight = ridge(features - mean, targets - targets.mean(0), torch.tensor(penalty, dtype=torch.float64))
    return Head(scale * weight, scale * (targets.mean(0) - mean @ weight))


def slope(head: Head, features: Tensor, labels: Tensor, penalty: float) -> float:
    """The largest entry of the gradient of the logistic loss, per example: 0 at the optimum."""
    residual = head.logits(features).softmax(1) - F.one_hot(labels, len(head.bias)).double()
    gradient = features.T @ residual + penalty * head.weight
    return float(gradient.abs().max()) / len(features)
