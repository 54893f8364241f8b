"""Tasks of labels: one of several classes, yes or no, and several of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf, log, nan

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.errors import UserError
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.functional.weighted_metrics import auroc, average_precision, f1, over_columns, recall
from lightning_meta.tasks.base import MetricChoice, Task
from lightning_meta.tasks.label_weights import Weights, balanced_weights, checked

RARE = 0.8
"""Where one class has more than this share of the training labels, the default metric is the AUROC.

Accuracy says little there: on 6 % positives every model that never says yes has 94 %, so no checkpoint is better than
the first. The AUROC ranks yes above no whatever the threshold; its chance level is ½ in every task, so that means over
tasks compare, while that of average precision is the share of positives; and a few positives suffice for its interval.
"""
LEAST = 1e-9  # a share whose logarithm is finite
CLASSIFIED = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "f1", "log_loss")


class _Labels(Task, ABC):
    """What the kinds of labels share.

    Args:
        outputs: How many numbers a network predicts for one example.
        metric: What models are selected and compared by.
        frequencies: The share of each class or label in the training data, once `fitted`.
        weights: By the name of their option, those of the loss: numbers, "balanced" until `fitted`, or None.
        count: How many these are.
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
        """Whether the loss has weights."""
        return self._weights is not None

    def loss_weights(self, like: Tensor) -> Tensor | None:
        """The weights of the loss on a tensor's device, in its dtype; None without any.

        Raises:
            UserError: They are to be balanced, and no training labels were seen.
        """
        if self._weights is None:
            return None
        if isinstance(self._weights, str):
            raise UserError(f"{self._option}: 'balanced' needs training labels; use `fitted(labels)`, or give numbers")
        return like.new_tensor(self._weights)

    @abstractmethod
    def plain_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`losses` without weights, as the log loss has them."""

    @abstractmethod
    def balanced(self, frequencies: Sequence[float]) -> tuple[float, ...]:
        """The weights that "balanced" stands for, given the shares in the training labels."""

    @property
    def guesses(self) -> int:
        """Among how many answers a guess chooses."""
        return 2

    @abstractmethod
    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How right each prediction is, in [0, 1]: `(M, outputs)` and targets to `(M,)`."""

    @property
    def floor(self) -> float:
        """Log loss twice that of a uniform guess."""
        return -2 * log(self.guesses) if self._choice is not None and self._choice.name == "log_loss" else -inf

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How right each prediction is, where accuracy is the metric."""
        return self._example_scores(outputs, targets)

    def scores_by(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
        """How right each prediction is for accuracy, its loss for log loss."""
        if name != "log_loss":
            return self.right(outputs, targets)
        return (self.losses if self._weights is None else self.plain_losses)(outputs, targets)


class Classification(_Labels):
    """One of N classes: cross-entropy of the logits, accuracy in [0, 1].

    By name it can be selected by accuracy, log loss, and the mean over classes of recall (balanced accuracy), AUROC,
    average precision and F1, each class against the rest.

    Args:
        outputs: N; 0 in episodes, whose way may change.
        metric: What models are selected and compared by; by default accuracy, and AUROC where one class has more than
            80 % of the training labels.
        frequencies: The share of each class in the training labels, once `fitted`.
        class_weight: N weights of the loss, one a class, or "balanced": n / (C n_c) with n_c of n training labels in
            class c and C classes among them, as in scikit-learn. The loss is weighted, metrics are not.
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

    def fitted(self, targets: Tensor) -> Task:
        """The task with the shares of its classes among `(n,)` training labels."""
        counts = torch.bincount(targets.long().flatten(), minlength=self.outputs).double()
        return _fitted(self, counts / counts.sum(), counts.max() / counts.sum())

    def constant(self) -> Tensor | None:
        """The logarithms of the shares of the classes."""
        return torch.tensor(self.frequencies, dtype=torch.float64).clamp_min(LEAST).log() if self.frequencies else None

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy times the weight of the class: logits `(M, N)`, labels `(M,)` in [0, N)."""
        logits = at_least_float32(outputs)
        return F.cross_entropy(logits, targets.long(), self.loss_weights(logits), reduction="none")

    def plain_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(at_least_float32(outputs), targets.long(), reduction="none")

    def balanced(self, frequencies: Sequence[float]) -> tuple[float, ...]:
        """The same sum for each class that is there."""
        return balanced_weights(frequencies)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of right answers: logits `(..., M, N)`, labels `(..., M)`."""
        return _as_numbers(outputs.argmax(-1) == targets, outputs).mean(-1)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 for a right answer and 0 for a wrong one, `(M,)`."""
        return _as_numbers(outputs.argmax(-1) == targets, outputs)

    def measure(self, name: str, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The mean over classes, each against the rest; classes that are not there have no score."""
        classes = torch.arange(outputs.shape[1], device=outputs.device)
        positive, predicted = targets[:, None] == classes, outputs.argmax(-1)[:, None] == classes
        if name in ("auroc", "average_precision"):
            scores = outputs.log_softmax(-1)
            if outputs.shape[1] == 2:  # the same order, and no ties where one class is all but certain
                scores = outputs - outputs.flip(1)
            return over_columns(auroc if name == "auroc" else average_precision, scores, positive, weights)
        there = positive.any(0)
        if name == "f1":
            return f1(predicted, positive, weights, there | predicted.any(0))
        if there.sum() < 2:
            return weights.new_tensor(nan)
        return recall(predicted[:, there], positive[:, there], weights).mean()

    def for_classes(self, outputs: Tensor) -> Tensor:
        """The probabilities of the classes, `(M, N)`."""
        return at_least_float32(outputs).softmax(-1)

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse labels that are not whole numbers in [0, N)."""
        if targets.is_floating_point():
            raise UserError(f"labels are whole numbers, these are {targets.dtype}; for real targets use regression")
        if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < outputs:
            found = f"{int(targets.min())} to {int(targets.max())}"
            raise UserError(f"labels {found} are out of range: a task of {outputs} ways has labels 0 to {outputs - 1}")


class Binary(_Labels):
    """Yes or no: logistic loss of one logit, accuracy in [0, 1].

    By name it can be selected by accuracy, log loss, balanced accuracy (the mean recall of yes and no), and AUROC,
    average precision and F1 of yes.

    Args:
        metric: What models are selected and compared by; by default accuracy, and AUROC where yes or no has more than
            80 % of the training labels.
        frequencies: The share of yes in the training labels, one number, once `fitted`.
        class_weight: Two weights of the loss, of no and of yes, or "balanced": n / (2 n_c) with n_c of n training
            labels in a class, as in scikit-learn. The loss is weighted, metrics are not. torch's `pos_weight` of w is
            `[1, w]`.
    """

    beside = ("accuracy", "auroc")

    def __init__(
        self, metric: MetricChoice = None, frequencies: Sequence[float] = (), class_weight: Weights = None
    ) -> None:
        super().__init__(1, metric, frequencies, "class_weight", class_weight, 2)

    def fitted(self, targets: Tensor) -> Task:
        """The task with the share of yes among `(n,)` training labels."""
        share = (targets > 0).double().mean()
        return _fitted(self, share[None], torch.maximum(share, 1 - share))

    def constant(self) -> Tensor | None:
        """The logit of the share of yes; always yes for F1, which is 0 without any."""
        return _constant(self)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy times the weight of the class: logits `(M, 1)`, labels `(M,)`, 0 or 1."""
        losses = self.plain_losses(outputs, targets)
        weights = self.loss_weights(losses)
        return losses if weights is None else losses * weights[(targets > 0).long()]

    def plain_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy."""
        logits = at_least_float32(outputs[:, 0])
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")

    def balanced(self, frequencies: Sequence[float]) -> tuple[float, ...]:
        """The same sum for no and yes, where both are there."""
        (yes,) = frequencies
        return balanced_weights((1 - yes, yes))

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 for a right answer and 0 for a wrong one, `(M,)`."""
        return _as_numbers((outputs[:, 0] > 0) == (targets > 0), outputs)

    def measure(self, name: str, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The metric of yes against no; NaN where all are the same."""
        return _of_labels(name, outputs, targets[:, None] > 0, weights)

    def readable(self, outputs: Tensor) -> Tensor:
        """The probability of yes, `(M,)`."""
        return at_least_float32(outputs[:, 0]).sigmoid()

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse labels that are not `(M,)` of 0 and 1."""
        _check_zeros_and_ones(targets, ())


class Multilabel(_Labels):
    """K yes-or-no labels of one example: the mean of their logistic losses, the share of right labels.

    By name it can be selected by accuracy, log loss, and the mean over labels of balanced accuracy, AUROC, average
    precision and F1; labels of which all examples have the same value are left out.

    Args:
        outputs: K.
        metric: What models are selected and compared by; by default accuracy, and AUROC where the more frequent values
            of the labels are more than 80 % of the training labels.
        frequencies: The share of yes in the training data of each label, once `fitted`.
        pos_weight: K weights of the loss where a label is yes, as torch has them, or "balanced": how many no come to a
            yes in the training data of each label; 1 where all are the same. The loss is weighted, metrics are not.
    """

    beside = ("accuracy", "f1")

    def __init__(
        self, outputs: int, metric: MetricChoice = None, frequencies: Sequence[float] = (), pos_weight: Weights = None
    ) -> None:
        super().__init__(outputs, metric, frequencies, "pos_weight", pos_weight, outputs)

    def fitted(self, targets: Tensor) -> Task:
        """The task with the share of yes in each label of `(n, K)` training targets."""
        shares = (targets > 0).double().mean(0)
        return _fitted(self, shares, torch.maximum(shares, 1 - shares).mean())

    def constant(self) -> Tensor | None:
        """The logits of the shares of yes; always yes for F1, which is 0 without any."""
        return _constant(self)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean weighted binary cross-entropy over labels: logits `(M, K)`, labels `(M, K)`, 0 or 1."""
        return _mean_over_labels(outputs, targets, self.loss_weights(at_least_float32(outputs)))

    def plain_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy over labels."""
        return _mean_over_labels(outputs, targets, None)

    def balanced(self, frequencies: Sequence[float]) -> tuple[float, ...]:
        """How many no come to a yes."""
        return tuple((1 - yes) / yes if 0 < yes < 1 else 1.0 for yes in frequencies)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of an example's labels that are right, `(M,)`."""
        return _as_numbers((outputs > 0) == (targets > 0), outputs).mean(-1)

    def measure(self, name: str, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The mean over labels of the metric of yes against no."""
        return _of_labels(name, outputs, targets > 0, weights)

    def for_classes(self, outputs: Tensor) -> Tensor:
        """The probability of yes for each label, `(M, K)`."""
        return at_least_float32(outputs).sigmoid()

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse labels that are not `(M, K)` of 0 and 1."""
        _check_zeros_and_ones(targets, (outputs,))


def _fitted(task: _Labels, frequencies: Tensor, largest: Tensor) -> Task:
    """The task with its frequencies and weights, and another metric where accuracy says little and nobody chose one.

    A class of a user's own that is derived from these stays as it is.
    """
    if type(task) not in (Classification, Binary, Multilabel):
        return task
    metric = "auroc" if task.chosen is None and float(largest) > RARE else task.chosen
    shares = tuple(frequencies.tolist())
    weights = task.balanced(shares) if isinstance(task._weights, str) else task._weights
    known = (metric, shares, weights)
    if isinstance(task, Binary):
        return Binary(*known)
    return (Classification if isinstance(task, Classification) else Multilabel)(task.outputs, *known)


def _mean_over_labels(outputs: Tensor, targets: Tensor, pos_weight: Tensor | None) -> Tensor:
    logits = at_least_float32(outputs)
    wanted = targets.to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=pos_weight)
    return losses.mean(-1)


def _constant(task: Binary | Multilabel) -> Tensor | None:
    if not task.frequencies:
        return None
    shares = torch.tensor(task.frequencies, dtype=torch.float64)
    return torch.ones_like(shares) if task.chosen == "f1" else torch.logit(shares, LEAST)


def _as_numbers(right: Tensor, outputs: Tensor) -> Tensor:
    """0 and 1; float32 counts exactly up to 16 million, half precision only to a few hundred."""
    return right.to(torch.promote_types(outputs.dtype, torch.float32))


def _of_labels(name: str, outputs: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """A metric of yes-or-no labels, the mean over those `(M, K)` of which both values are there."""
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
