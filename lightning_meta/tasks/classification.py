"""Classification tasks: one of N classes, one binary label, and several binary labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf, log, nan
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.errors import UserError
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.functional.weighted_metrics import auroc, average_precision, f1, over_columns, recall
from lightning_meta.tasks.base import MetricChoice, Task
from lightning_meta.tasks.label_weights import Weights, balanced_weights, checked
from lightning_meta.tasks.refitting import refitted

RARE = 0.8
"""If one class has more than this share of the training labels, the default metric is the AUROC.

Accuracy is then uninformative: with 6 % positives, a model that always predicts the negative class reaches 94 %, and
model selection cannot improve on it. The AUROC does not depend on a threshold. Its chance level is ½ in every task, so
it can be averaged over tasks, unlike average precision, whose chance level is the share of positives.
"""
LEAST = 1e-9  # lower bound of a share, so that its logarithm is finite
CLASSIFIED = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "f1", "log_loss")


class _Labels(Task, ABC):
    """Base of the classification tasks.

    Args:
        outputs: Number of network outputs per example.
        metric: Metric that selects and compares models.
        frequencies: Share of each class or label in the training data; set by `fitted`.
        option: Name of the option that gives the weights, for errors.
        weights: Weights of the loss; "balanced" is replaced by numbers in `fitted`; None for an unweighted loss.
        count: Required number of weights.
    """

    names = CLASSIFIED
    selection = "accuracy"
    metric = "accuracy"

    def __init__(
        self,
        outputs: int,
        metric: MetricChoice,
        frequencies: Sequence[float],
        option: str,
        weights: Weights,
        count: int,
    ) -> None:
        super().__init__(outputs, metric)
        self.frequencies = tuple(frequencies)
        self._option, self._weights = option, checked(option, weights, count)

    @property
    def weighted(self) -> bool:
        """Whether the loss is weighted."""
        return self._weights is not None

    def loss_weights(self, like: Tensor) -> Tensor | None:
        """Return the weights of the loss with the device and dtype of a tensor; None for an unweighted loss.

        Raises:
            UserError: The weights are "balanced" and the task is not fitted.
        """
        if self._weights is None:
            return None
        if isinstance(self._weights, str):
            raise UserError(f"{self._option}: 'balanced' needs training labels; use `fitted(labels)`, or give numbers")
        return like.new_tensor(self._weights)

    @abstractmethod
    def plain_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return `losses` without weights, as used for the log loss."""

    @abstractmethod
    def balanced(self, frequencies: Sequence[float]) -> tuple[float, ...]:
        """Return the weights for "balanced", given the shares in the training labels."""

    @property
    def guesses(self) -> int:
        """Number of classes of a uniform random guess."""
        return 2

    @abstractmethod
    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the accuracy of each prediction in [0, 1], `(M,)`, from outputs `(M, outputs)`."""

    @property
    def floor(self) -> float:
        """Minus twice the log loss of a uniform guess; −∞ for other metrics."""
        return -2 * log(self.guesses) if self._choice is not None and self._choice.name == "log_loss" else -inf

    def _fitted(self, frequencies: Tensor, largest: Tensor) -> Self:
        """Return the task with its frequencies and weights, and with AUROC as the default metric of rare classes."""
        metric = self.chosen
        if metric is None and not self._scores_itself and self.selection == "accuracy" and float(largest) > RARE:
            metric = "auroc"
        shares = tuple(frequencies.tolist())
        weights = self.balanced(shares) if isinstance(self._weights, str) else self._weights
        return self.with_fitted(metric=metric, frequencies=shares, **{self._option: weights})

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the score of each example; its accuracy if accuracy is the metric."""
        return self._example_scores(outputs, targets)

    def scores_by(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the accuracy or the log loss of each prediction, `(M,)`."""
        if name == "accuracy":
            return self.right(outputs, targets)
        if name != "log_loss":
            return super().scores_by(name, outputs, targets)
        return (self.losses if self._weights is None else self.plain_losses)(outputs, targets)


class Classification(_Labels):
    """One of N classes, trained with cross-entropy.

    Named metrics are accuracy, log loss, and the one-vs-rest means over classes of recall (balanced accuracy), AUROC,
    average precision and F1.

    Args:
        outputs: N; 0 in episodes, whose number of ways may vary.
        metric: Metric that selects and compares models; by default accuracy, or AUROC if one class has more than 80 %
            of the training labels.
        frequencies: Share of each class in the training labels; set by `fitted`.
        class_weight: N weights of the loss, or "balanced": n / (C n_c), where n_c of the n training labels are of class
            c and C classes occur, as in scikit-learn. Only the loss is weighted, not the metrics.

    >>> task = Classification(3, class_weight=[1, 1, 2])
    >>> task.losses(torch.zeros(2, 3), torch.tensor([0, 2]))  # log 3 and 2 log 3
    tensor([1.0986, 2.1972])
    """

    beside = ("accuracy", "f1")

    def __init__(
        self,
        outputs: int = 0,
        metric: MetricChoice = None,
        frequencies: Sequence[float] = (),
        class_weight: Weights = None,
    ) -> None:
        super().__init__(outputs, metric, frequencies, "class_weight", class_weight, outputs)

    @property
    def guesses(self) -> int:
        """N."""
        return self.outputs

    def with_fitted(self, **values: Any) -> Self:
        """Return a copy with other arguments of `Classification`; a subclass keeps its class."""
        return refitted(self, Classification, **{"outputs": self.outputs, **values})

    def fitted(self, targets: Tensor) -> Self:
        """Return the task with the class shares of the training labels `(n,)`."""
        counts = torch.bincount(targets.long().flatten(), minlength=self.outputs).double()
        return self._fitted(counts / counts.sum(), counts.max() / counts.sum())

    def constant(self) -> Tensor | None:
        """Return the logarithms of the class shares, `(N,)`; None for a subclass's own score."""
        if not self.frequencies or self._scores_itself:
            return None
        return torch.tensor(self.frequencies, dtype=torch.float64).clamp_min(LEAST).log()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted cross-entropy `(M,)` of logits `(M, N)` and labels `(M,)` in [0, N)."""
        logits = at_least_float32(outputs)
        return F.cross_entropy(logits, targets.long(), self.loss_weights(logits), reduction="none")

    def plain_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy, `(M,)`."""
        return F.cross_entropy(at_least_float32(outputs), targets.long(), reduction="none")

    def balanced(self, frequencies: Sequence[float]) -> tuple[float, ...]:
        """Return weights with which every class that occurs has the same total weight."""
        return balanced_weights(frequencies)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the accuracy `(...)` of logits `(..., M, N)` and labels `(..., M)`; predictions of NaN are wrong."""
        return _as_numbers((outputs.argmax(-1) == targets) & ~outputs.isnan().any(-1), outputs).mean(-1)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 1 for each correct prediction and 0 for the others, `(M,)`; NaN if an output is NaN."""
        return _known(outputs.argmax(-1) == targets, outputs.isnan().any(-1), outputs)

    def measure(self, name: str, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the one-vs-rest mean over classes; classes without an example are ignored."""
        classes = torch.arange(outputs.shape[1], device=outputs.device)
        positive, predicted = targets[:, None] == classes, outputs.argmax(-1)[:, None] == classes
        if name in ("auroc", "average_precision"):
            scores = outputs.log_softmax(-1)
            if outputs.shape[1] == 2:  # the same order without the ties of saturated log-probabilities
                scores = outputs - outputs.flip(1)
            return over_columns(auroc if name == "auroc" else average_precision, scores, positive, weights)
        there = positive.any(0)
        if name == "f1":
            return f1(predicted, positive, weights, there | predicted.any(0))
        if there.sum() < 2:
            return weights.new_tensor(nan)
        return recall(predicted[:, there], positive[:, there], weights).mean()

    def for_classes(self, outputs: Tensor) -> Tensor:
        """Return the class probabilities, `(M, N)`."""
        return at_least_float32(outputs).softmax(-1)

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse labels that are not integers in [0, N)."""
        if targets.is_floating_point():
            raise UserError(f"labels are whole numbers, these are {targets.dtype}; for real targets use regression")
        if targets.dim() != 1:
            raise UserError(f"labels are one number for each example, these are {tuple(targets.shape)}")
        if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < outputs:
            labels = f"{int(targets.min())} to {int(targets.max())}"
            raise UserError(f"labels {labels} are out of range: a task of {outputs} ways has labels 0 to {outputs - 1}")


class Binary(_Labels):
    """One binary label, trained with the logistic loss of one logit.

    Named metrics are accuracy, log loss, balanced accuracy (the mean recall of both classes), AUROC, average precision
    and F1 of the positive class.

    Args:
        metric: Metric that selects and compares models; by default accuracy, or AUROC if one class has more than 80 %
            of the training labels.
        frequencies: Share of positives in the training labels, one number; set by `fitted`.
        class_weight: Weights of the loss for the negative and the positive class, or "balanced": n / (2 n_c), where n_c
            of the n training labels are of class c, as in scikit-learn. Only the loss is weighted, not the metrics. The
            `pos_weight` w of torch corresponds to `[1, w]`.

    >>> Binary().readable(torch.zeros(2, 1))  # probabilities of the positive class
    tensor([0.5000, 0.5000])
    """

    beside = ("accuracy", "auroc")

    def __init__(
        self, metric: MetricChoice = None, frequencies: Sequence[float] = (), class_weight: Weights = None
    ) -> None:
        super().__init__(1, metric, frequencies, "class_weight", class_weight, 2)

    def with_fitted(self, **values: Any) -> Self:
        """Return a copy with other arguments of `Binary`; a subclass keeps its class."""
        return refitted(self, Binary, **values)

    def fitted(self, targets: Tensor) -> Self:
        """Return the task with the share of positives in the training labels `(n,)`."""
        share = (targets > 0).double().mean()
        return self._fitted(share[None], torch.maximum(share, 1 - share))

    def constant(self) -> Tensor | None:
        """Return the logit of the share of positives; for F1 a positive output, as F1 needs positive predictions."""
        return _constant(self)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted binary cross-entropy `(M,)` of logits `(M, 1)` and labels `(M,)`, 0 or 1."""
        losses = self.plain_losses(outputs, targets)
        weights = self.loss_weights(losses)
        return losses if weights is None else losses * weights[(targets > 0).long()]

    def plain_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the binary cross-entropy, `(M,)`."""
        logits = at_least_float32(outputs[:, 0])
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")

    def balanced(self, frequencies: Sequence[float]) -> tuple[float, ...]:
        """Return weights with which both classes have the same total weight."""
        (yes,) = frequencies
        return balanced_weights((1 - yes, yes))

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 1 for each correct prediction and 0 for the others, `(M,)`; NaN if the output is NaN."""
        return _known((outputs[:, 0] > 0) == (targets > 0), outputs[:, 0].isnan(), outputs)

    def measure(self, name: str, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the metric of the positive class; NaN if only one class occurs."""
        return _of_labels(name, outputs, targets[:, None] > 0, weights)

    def readable(self, outputs: Tensor) -> Tensor:
        """Return the probability of the positive class, `(M,)`."""
        return at_least_float32(outputs[:, 0]).sigmoid()

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse labels that are not 0 or 1 in shape `(M,)`."""
        _check_zeros_and_ones(targets, ())


class Multilabel(_Labels):
    """K binary labels per example, trained with the mean of their logistic losses.

    Named metrics are accuracy (the share of correct labels), log loss, and the means over labels of balanced accuracy,
    AUROC, average precision and F1; labels with the same value in all examples are ignored in these means.

    Args:
        outputs: K.
        metric: Metric that selects and compares models; by default accuracy, or AUROC if the more frequent values of
            the labels make up more than 80 % of the training labels.
        frequencies: Share of positives of each label in the training data; set by `fitted`.
        pos_weight: K weights of the loss of positive labels, as in torch, or "balanced": the number of negatives per
            positive of each label; 1 if only one value occurs. Only the loss is weighted, not the metrics.

    >>> Multilabel(2).right(torch.tensor([[3.0, -1.0]]), torch.tensor([[1, 1]]))
    tensor([0.5000])
    """

    beside = ("accuracy", "f1")

    def __init__(
        self, outputs: int, metric: MetricChoice = None, frequencies: Sequence[float] = (), pos_weight: Weights = None
    ) -> None:
        super().__init__(outputs, metric, frequencies, "pos_weight", pos_weight, outputs)

    def with_fitted(self, **values: Any) -> Self:
        """Return a copy with other arguments of `Multilabel`; a subclass keeps its class."""
        return refitted(self, Multilabel, **{"outputs": self.outputs, **values})

    def fitted(self, targets: Tensor) -> Self:
        """Return the task with the share of positives of each label in the training targets `(n, K)`."""
        shares = (targets > 0).double().mean(0)
        return self._fitted(shares, torch.maximum(shares, 1 - shares).mean())

    def constant(self) -> Tensor | None:
        """Return the logits of the shares of positives; positive outputs for F1, see `Binary.constant`."""
        return _constant(self)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean weighted binary cross-entropy over labels, `(M,)`, of logits and labels `(M, K)`."""
        return _mean_over_labels(outputs, targets, self.loss_weights(at_least_float32(outputs)))

    def plain_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy over labels, `(M,)`."""
        return _mean_over_labels(outputs, targets, None)

    def balanced(self, frequencies: Sequence[float]) -> tuple[float, ...]:
        """Return the number of negatives per positive of each label."""
        return tuple((1 - yes) / yes if 0 < yes < 1 else 1.0 for yes in frequencies)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the share of correct labels of each example, `(M,)`; NaN if an output is NaN."""
        return _known((outputs > 0) == (targets > 0), outputs.isnan(), outputs).mean(-1)

    def measure(self, name: str, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the mean over labels of the metric of the positive class."""
        return _of_labels(name, outputs, targets > 0, weights)

    def for_classes(self, outputs: Tensor) -> Tensor:
        """Return the probability of each label, `(M, K)`."""
        return at_least_float32(outputs).sigmoid()

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse labels that are not 0 or 1 in shape `(M, K)`."""
        _check_zeros_and_ones(targets, (outputs,))


def _mean_over_labels(outputs: Tensor, targets: Tensor, pos_weight: Tensor | None) -> Tensor:
    logits = at_least_float32(outputs)
    labels = targets.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none", pos_weight=pos_weight).mean(-1)


def _constant(task: Binary | Multilabel) -> Tensor | None:
    if not task.frequencies or task._scores_itself:
        return None
    shares = torch.tensor(task.frequencies, dtype=torch.float64)
    return torch.ones_like(shares) if task.chosen == "f1" else torch.logit(shares, LEAST)


def _as_numbers(right: Tensor, outputs: Tensor) -> Tensor:
    """Convert to 0 and 1 in at least float32, which counts exactly up to 2^24; half precision stops at 2048."""
    return right.to(torch.promote_types(outputs.dtype, torch.float32))


def _known(right: Tensor, unknown: Tensor, outputs: Tensor) -> Tensor:
    """As `_as_numbers`, but NaN where the prediction is unknown."""
    return _as_numbers(right, outputs).masked_fill(unknown, nan)


def _of_labels(name: str, outputs: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of a metric over the binary labels `(M, K)` of which both values occur."""
    if name in ("auroc", "average_precision"):
        return over_columns(auroc if name == "auroc" else average_precision, outputs, positive, weights)
    predicted, both = outputs > 0, positive.any(0) & ~positive.all(0)
    if name == "f1":
        return f1(predicted, positive, weights, both)
    right, positive = (predicted == positive)[:, both], positive[:, both]
    return ((recall(right, positive, weights) + recall(right, ~positive, weights)) / 2).mean()


def _check_zeros_and_ones(targets: Tensor, shape: tuple[int, ...]) -> None:
    if targets.shape[1:] != shape:
        raise UserError(f"labels of an example have shape {shape}, these have {tuple(targets.shape[1:])}")
    other = targets[(targets != 0) & (targets != 1)]
    if len(other):
        raise UserError(f"labels are 0 or 1, these hold {other[0].item()}")
