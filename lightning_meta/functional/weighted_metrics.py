"""Metrics of weighted examples and the contribution of each example, computed in the dtype of the weights.

Every function takes weights `(M,)`, the number of times that an example counts; ones give the usual metric. They are
written out here since torchmetrics computes curves in float32, squashes logits until scores tie, and calls the AUROC of
one class 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

Column = Callable[[Tensor, Tensor, Tensor], Tensor]


def example_values(metric: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    r"""The contribution of each of M examples to a metric: values whose mean is the metric.

    $v_j = \theta + M\, \partial\theta / \partial w_j$ at $w = 1$, the infinitesimal jackknife. Of a mean over examples
    these are the examples' own scores, of the AUROC DeLong's placements, weighted by class. A metric does not depend on
    the sum of the weights, so the derivatives sum to 0. The variance of the mean of v estimates that of the metric.

    Args:
        metric: Function from weights `(M,)` to the metric θ, a scalar.
        like: Tensor `(M, ...)` with the dtype and device of the weights.

    Returns:
        Contributions `(M,)`; NaN if the metric is NaN.

    Efron, The jackknife, the bootstrap and other resampling plans, SIAM 1982, chapter 6; DeLong, DeLong and
    Clarke-Pearson, Biometrics 44, 1988.
    """
    ones = like.new_ones(len(like))
    slope: Tensor = grad(metric)(ones)
    return metric(ones) + len(like) * slope


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of values `(M, ...)` over examples."""
    mean: Tensor = (weights @ values) / weights.sum()
    return mean


def auroc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """The probability that a positive example scores above a negative one, ties counting half.

    Args:
        scores: `(M,)`, of any scale.
        positive: `(M,)` bool, of both kinds.
        weights: `(M,)`.
    """
    values, group = scores.unique(return_inverse=True)  # ascending; ties are one group
    negatives = weights * ~positive
    of_group = negatives.new_zeros(len(values)).index_add(0, group, negatives)
    below = of_group.cumsum(0) - of_group / 2
    positives = weights * positive
    return (positives * below[group]).sum() / (positives.sum() * negatives.sum())


def average_precision(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """The mean over positive examples of the precision at their score, without interpolation.

    Args:
        scores: `(M,)`, of any scale.
        positive: `(M,)` bool, of both kinds.
        weights: `(M,)`.
    """
    values, group = scores.unique(return_inverse=True)
    positives = weights * positive
    counts = torch.stack([positives, weights])
    of_group = counts.new_zeros(2, len(values)).index_add(1, group, counts)
    right, found = of_group.flip(1).cumsum(1).flip(1)
    mean: Tensor = (positives * (right / found)[group]).sum() / positives.sum()
    return mean


def over_columns(metric: Column, scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """The mean of a metric over K columns, each against the rest; columns with a single class are left out.

    Args:
        metric: Function of scores `(M,)`, positives `(M,)` and weights `(M,)`.
        scores: Scores `(M, K)`.
        positive: Whether each label is positive, `(M, K)` bool.
        weights: Weights of the examples, `(M,)`.

    Returns:
        A scalar; NaN if no column has both classes.
    """
    both = (positive.any(0) & ~positive.all(0)).nonzero()[:, 0].tolist()
    if not both:
        return weights.new_tensor(torch.nan)
    return torch.stack([metric(scores[:, k], positive[:, k], weights) for k in both]).mean()


def f1(predicted: Tensor, positive: Tensor, weights: Tensor, counted: Tensor) -> Tensor:
    """F1 = 2 TP / (2 TP + FP + FN), the mean over columns.

    Args:
        predicted: Predictions `(M, K)` bool.
        positive: Labels `(M, K)` bool.
        weights: Weights of the examples, `(M,)`.
        counted: Columns in the mean, `(K,)` bool: those with a positive label or prediction.

    Returns:
        A scalar; NaN if no column is counted.
    """
    predicted, positive = predicted[:, counted], positive[:, counted]
    right, all_of_both = (weights @ p.to(weights.dtype) for p in (predicted & positive, predicted.int() + positive))
    score: Tensor = (2 * right / all_of_both).mean()
    return score


def recall(right: Tensor, of_class: Tensor, weights: Tensor) -> Tensor:
    """The share of each class's examples that are predicted correctly, `(C,)`.

    Args:
        right: Whether predictions are correct, `(M,)` or `(M, C)` bool.
        of_class: Whether examples belong to each class, `(M, C)` bool; each class has at least one.
        weights: Weights of the examples, `(M,)`.
    """
    right = right if right.dim() > 1 else right[:, None]
    return (weights @ (right & of_class).to(weights.dtype)) / (weights @ of_class.to(weights.dtype))
