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
    """

    names = CLASSIFIED
    selection = "accuracy"
    metric = "accuracy"

    def __init__(self, outputs: int, metric: MetricChoice, frequencies: Sequence[float]) -> None:
        super().__init__(outputs, metric)
        self.frequencies = tuple(frequencies)

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
        return self.losses(outputs, targets) if name == "log_loss" else self.right(outputs, targets)


class Classification(_Labels):
    """One of N classes: cross-entropy of the logits, accuracy in [0, 1].

    By name it can be selected by accuracy, log loss, and the mean over classes of recall (balanced accuracy), AUROC,
    average precision and F1, each class against the rest.

    Args:
        outputs: N; 0 in episodes, whose way may change.
        metric: What models are selected and compared by; by default accuracy, and AUROC where one class has more than
            80 % of the training labels.
        frequencies: The share of each class in the training labels, once `fitted`.
    """

    beside = ("accuracy", "f1")

    def __init__(self, outputs: int = 0, metric: MetricChoice = None, frequencies: Sequence[float] = ()) -> None:
        super().__init__(outputs, metric, frequencies)

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
        """Cross-entropy: logits `(M, N)`, labels `(M,)` in [0, N)."""
        return F.cross_entropy(at_least_float32(outputs), targets.long(), reduction="none")

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
    """

    beside = ("accuracy", "auroc")

    def __init__(self, metric: MetricChoice = None, frequencies: Sequence[float] = ()) -> None:
        super().__init__(1, metric, frequencies)

    def fitted(self, targets: Tensor) -> Task:
        """The task with the share of yes among `(n,)` training labels."""
        share = (targets > 0).double().mean()
        return _fitted(self, share[None], torch.maximum(share, 1 - share))

    def constant(self) -> Tensor | None:
        """The logit of the share of yes; always yes for F1, which is 0 without any."""
        return _constant(self)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy: logits `(M, 1)`, labels `(M,)`, 0 or 1."""
        logits = at_least_float32(outputs[:, 0])
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")

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
    """

    beside = ("accuracy", "f1")

    def __init__(self, outputs: int, metric: MetricChoice = None, frequencies: Sequence[float] = ()) -> None:
        super().__init__(outputs, metric, frequencies)

    def fitted(self, targets: Tensor) -> Task:
        """The task with the share of yes in each label of `(n, K)` training targets."""
        shares = (targets > 0).double().mean(0)
        return _fitted(self, shares, torch.maximum(shares, 1 - shares).mean())

    def constant(self) -> Tensor | None:
        """The logits of the shares of yes; always yes for F1, which is 0 without any."""
        return _constant(self)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy over labels: logits `(M, K)`, labels `(M, K)`, 0 or 1."""
        logits = at_least_float32(outputs)
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(-1)

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
    """The task with its frequencies, and with another metric where accuracy says little and nobody chose one.

    A class of a user's own that is derived from these stays as it is.
    """
    if type(task) not in (Classification, Binary, Multilabel):
        return task
    metric = "auroc" if task.chosen is None and float(largest) > RARE else task.chosen
    known = (metric, tuple(frequencies.tolist()))
    return Binary(*known) if isinstance(task, Binary) else type(task)(task.outputs, *known)


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
