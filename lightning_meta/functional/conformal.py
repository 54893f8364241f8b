"""How sure a classifier is: temperature, prediction sets by split conformal calibration, and what is of no class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.functional.weighted_metrics import auroc

SLACK = 1e-6  # the last digits of a probability depend on what it was computed with: sets are rather too large
BISECTIONS = 60  # of log β between ±20, to far below float64's rounding


def fit_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    r"""The temperature at which probabilities fit held-out labels best.

    $$\min_{T > 0} \sum_{(z, y)} -\log \mathrm{softmax}_y(z / T)$$

    Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks (ICML 2017,
    https://arxiv.org/abs/1706.04599, section 4.2). The loss is convex in β = 1 / T, and its slope
    $\sum \mathbb{E}_p[z] - z_y$ grows with β, so it is bisected, from e⁻²⁰ to e²⁰. Where every label has the largest
    logit the best T is 0, and one is returned at which these probabilities are 1 to rounding.

    Args:
        logits: `(M, N)` of examples that were not learned from.
        labels: `(M,)` in [0, N).

    Returns:
        T, a float64 scalar.
    """
    z = logits.double()
    z = z - z.gather(1, labels[:, None])  # the logit of the label is 0 now
    low, high = z.new_tensor(-20.0), z.new_tensor(20.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        slope = ((z * middle.exp()).softmax(1) * z).sum()
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return (-(low + high) / 2).exp()


def conformal_quantile(probabilities: Tensor, labels: Tensor, error: float) -> Tensor:
    r"""The largest score that a label of a prediction set may have, from held-out examples.

    The score of a label is $s = 1 - p_y$ (LAC: Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued Classifiers, JASA
    114 (2019), https://arxiv.org/abs/1609.00451). Of n scores the k-th smallest is taken,
    $k = \lceil (n + 1)(1 - \alpha) \rceil$ (split conformal prediction: Vovk, Gammerman and Shafer, Algorithmic
    Learning in a Random World, 2005). If a new example is exchangeable with these, its set holds its label with a
    probability of at least 1 − α, and of at most 1 − α + 1 / (n + 1) where no two scores are equal. The examples of a
    task are more alike than those of several: for new tasks see `hierarchical_quantile`.

    Args:
        probabilities: `(n, N)` of examples that were not learned from.
        labels: `(n,)` in [0, N).
        error: α, in (0, 1).

    Returns:
        A scalar in [0, 1]; infinity where k > n, so that sets hold every label.

    Raises:
        UserError: α is no such share.
    """
    return hierarchical_quantile(1 - probabilities.gather(1, labels[:, None]), error)


def hierarchical_quantile(scores: Tensor, error: float) -> Tensor:
    r"""The score that a new example of a new task exceeds with a probability of at most α, from examples of n tasks.

    Of the n M scores the k-th smallest is taken, $k = \lceil (n + 1)(1 - \alpha) M \rceil$: each task has the weight
    1 / (n + 1), its M examples share it, and the rest stands for the new task. The examples of a task need not be
    independent; it is enough that tasks, and the examples in a task, are exchangeable (hierarchical conformal
    prediction: Lee, Barber and Willett, Distribution-free inference with hierarchical data,
    https://arxiv.org/abs/2306.06342). With M = 1 it is split conformal prediction.

    Args:
        scores: `(n, M)`, larger ones of examples that fit their label less.
        error: α, in (0, 1).

    Returns:
        A scalar; infinity where n is so small that k > n M.

    Raises:
        UserError: α is no such share.
    """
    if not 0 < error < 1:
        raise UserError(f"error: a share above 0 and below 1, got {error}")
    tasks, examples = scores.shape
    rank = math.ceil((tasks + 1) * (1 - error) * examples - 1e-9)  # (9 + 1)(1 - 0.1) is 9, whatever its rounding
    return scores.flatten().sort().values[rank - 1] if rank <= scores.numel() else scores.new_tensor(torch.inf)


def prediction_sets(probabilities: Tensor, quantile: Tensor) -> Tensor:
    """The labels whose score 1 − p is at most the quantile, or a millionth above it.

    Args:
        probabilities: `(M, N)`.
        quantile: What `conformal_quantile` returned.

    Returns:
        `(M, N)` bool. A row may hold no label, where none is probable enough.
    """
    return 1 - probabilities <= quantile + SLACK


def open_set_auroc(known: Tensor, unknown: Tensor) -> Tensor:
    """How well the largest probability tells examples of the classes from examples of none.

    Args:
        known: `(M, N)` probabilities of examples of the classes.
        unknown: `(K, N)` of others.

    Returns:
        The probability that one of the classes has the larger maximum, ties counting half; 1/2 is chance.
    """
    scores = torch.cat([known.amax(1), unknown.amax(1)]).double()
    positive = torch.cat([torch.ones(len(known)), torch.zeros(len(unknown))]).to(scores.device) > 0
    return auroc(scores, positive, torch.ones_like(scores))
