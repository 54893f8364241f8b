"""Confidence of a classifier: temperature, prediction sets by split conformal calibration, and open-set detection."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_meta.checks import share
from lightning_meta.functional.weighted_metrics import auroc

SLACK = 1e-6  # rounding differs between devices and batch sizes; a label at the quantile stays in its set
BISECTIONS = 60  # of log β between -20 and 20, which is more than float64 resolves


def fit_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Fit the temperature T to held-out labels by maximum likelihood, with smoothed labels.

    $$\min_{T > 0} \sum_{(z, y)} -\sum_k t_k \log \mathrm{softmax}_k(z / T), \qquad
    t_y = \frac{M + 1}{M + 2}, \quad t_{k \neq y} = \frac{1}{(M + 2)(N - 1)}$$

    Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks (ICML 2017,
    https://arxiv.org/abs/1706.04599, section 4.2), with the targets of Platt, Probabilistic Outputs for Support Vector
    Machines (1999, section 2.1). With targets of 1, T would be 0 and every probability 1 if all M predictions are
    right, which is common with few examples. By Laplace's rule of succession, the next prediction is then right with
    probability (M + 1) / (M + 2). The smoothing weighs as much as one wrong label, so the fit tends to the maximum
    likelihood as M grows.

    The loss is convex in β = 1 / T: its slope $\sum \mathbb{E}_p[z] - \sum_k t_k z_k$ grows with β, and its zero is
    found by bisection between e⁻²⁰ and e²⁰. If the logits carry no information about the labels, the result is e²⁰,
    and the probabilities are uniform.

    Args:
        logits: Logits `(M, N)` of examples that the classifier was not trained on.
        labels: Labels of the examples, `(M,)`, in [0, N).

    Returns:
        The temperature T, a float64 scalar.
    """
    z = logits.double()
    z = z - z.gather(1, labels[:, None])  # so that the logit of the label is 0
    count, ways = z.shape
    smoothed = z.sum() / ((count + 2) * (ways - 1))  # Σ t_k z_k
    low, high = z.new_tensor(-20.0), z.new_tensor(20.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        slope = ((z * middle.exp()).softmax(1) * z).sum() - smoothed
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return (-(low + high) / 2).exp()


def conformal_quantile(probabilities: Tensor, labels: Tensor, error: float) -> Tensor:
    r"""Compute from held-out examples the largest score that a label of a prediction set may have.

    The score of a label is $s = 1 - p_y$ (LAC: Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued Classifiers, JASA
    114 (2019), https://arxiv.org/abs/1609.00451). The result is the k-th smallest of n scores,
    $k = \lceil (n + 1)(1 - \alpha) \rceil$ (split conformal prediction: Vovk, Gammerman and Shafer, Algorithmic
    Learning in a Random World, 2005). If a new example is exchangeable with these, its set contains its label with
    probability at least 1 − α, and at most 1 − α + 1 / (n + 1) if no two scores are equal. Examples of one task are not
    exchangeable with those of a new task; for new tasks use `hierarchical_quantile`.

    Args:
        probabilities: Probabilities `(n, N)` of examples that the classifier was not trained on.
        labels: Labels of the examples, `(n,)`, in [0, N).
        error: Error rate α, in (0, 1).

    Returns:
        A scalar in [0, 1]; infinity if k > n, so that sets contain every label.

    Raises:
        UserError: `error` is not in (0, 1).
    """
    return hierarchical_quantile(1 - probabilities.gather(1, labels[:, None]), error)


def hierarchical_quantile(scores: Tensor, error: float) -> Tensor:
    r"""Compute from examples of n tasks the score that an example of a new task exceeds with probability at most α.

    The result is the k-th smallest of the n M scores, $k = \lceil (n + 1)(1 - \alpha) M \rceil$. Each task has weight
    1 / (n + 1), shared by its M examples, and the remaining weight stands for the new task. The examples of a task need
    not be independent; it is enough that tasks are exchangeable, and examples within a task (hierarchical conformal
    prediction: Lee, Barber and Willett, Distribution-free inference with hierarchical data,
    https://arxiv.org/abs/2306.06342). With M = 1 this is split conformal prediction.

    Args:
        scores: Scores `(n, M)`; a larger score means that the example fits its label less.
        error: Error rate α, in (0, 1).

    Returns:
        A scalar; infinity if n is so small that k > n M.

    Raises:
        UserError: `error` is not in (0, 1).
    """
    share(0.1, error=error)
    tasks, examples = scores.shape
    rank = math.ceil((tasks + 1) * (1 - error) * examples - 1e-9)  # (9 + 1)(1 - 0.1) is 9, but may be rounded up
    return scores.flatten().sort().values[rank - 1] if rank <= scores.numel() else scores.new_tensor(torch.inf)


def prediction_sets(probabilities: Tensor, quantile: Tensor) -> Tensor:
    """Return which labels have a score 1 − p of at most the quantile, with a tolerance of 1e-6 for rounding.

    Args:
        probabilities: Probabilities `(M, N)`.
        quantile: The result of `conformal_quantile`.

    Returns:
        Prediction sets `(M, N)` as bool. A set may be empty, if no label is probable enough.
    """
    return 1 - probabilities <= quantile + SLACK


def open_set_auroc(known: Tensor, unknown: Tensor) -> Tensor:
    """Measure how well the largest probability separates examples of the known classes from others.

    Args:
        known: Probabilities `(M, N)` of examples of the known classes.
        unknown: Probabilities `(K, N)` of examples of other classes.

    Returns:
        The probability that an example of the known classes has the larger maximum, where ties count one half; 0.5 is
        chance.
    """
    scores = torch.cat([known.amax(1), unknown.amax(1)]).double()
    positive = torch.cat([torch.ones(len(known)), torch.zeros(len(unknown))]).to(scores.device) > 0
    return auroc(scores, positive, torch.ones_like(scores))
