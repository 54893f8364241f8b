"""What a task asks for: its loss, its metrics and how a prediction is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.classification import BinaryAUROC, MulticlassF1Score, MultilabelF1Score

from lightning_meta.configuration import Described
from lightning_meta.errors import UserError

TaskName = Literal["classification", "regression"]


class Task(Described, ABC):
    """The L of a task T = {p(x), p(y|x), L}, with the metrics that people read.

    A task of your own gives `losses`, `example_scores`, `metrics` and `check`.

    Args:
        outputs: How many numbers a network predicts for one example.

    Attributes:
        selection: The metric that models are selected and compared by; higher is better. It is the mean of
            `example_scores`.
        metric: The metric of one few-shot task, as logged.
        higher_is_better: Which way `metric` points.
    """

    selection: str
    metric: str
    higher_is_better: bool = True

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each prediction: `(M, outputs)` and targets to `(M,)`."""

    @abstractmethod
    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What each of all M examples of a split adds to the metric `selection`, which is the mean: `(M,)` float64."""

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Further metrics of a split by name, new ones: functions of `readable` outputs and targets."""

    @abstractmethod
    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse targets that do not fit.

        Raises:
            UserError: What is wrong and what was expected.
        """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of M predictions, a scalar; maps over tasks under `torch.func.vmap`."""
        return self.losses(outputs, targets).mean()

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The metric of each few-shot task: `(..., M, outputs)` and targets to `(...)`."""
        raise UserError(f"{type(self).__name__} is not a task of episodes")

    def readable(self, outputs: Tensor) -> Tensor:
        """Predictions as people and metrics take them: in the units of the targets; logits of classes as they are."""
        return outputs

    def fitted(self, targets: Tensor) -> Task:
        """The task with what it learns from its training targets, such as their mean and scale."""
        return self


class Classification(Task):
    """One of N classes: cross-entropy of the logits, accuracy in [0, 1].

    Args:
        outputs: N; 0 in episodes, whose way may change.
    """

    selection = "accuracy"
    metric = "accuracy"

    def __init__(self, outputs: int = 0) -> None:
        super().__init__(outputs)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy: logits `(M, N)`, labels `(M,)` in [0, N)."""
        return F.cross_entropy(outputs, targets.long(), reduction="none")

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of right answers: logits `(..., M, N)`, labels `(..., M)`."""
        return (outputs.argmax(-1) == targets).double().mean(-1)

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 for a right answer and 0 for a wrong one."""
        return (outputs.argmax(-1) == targets).double()

    def metrics(self) -> dict[str, Metric]:
        """The F1 score, averaged over classes."""
        return {"f1": MulticlassF1Score(self.outputs, average="macro")}

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse labels that are not whole numbers in [0, N)."""
        if targets.is_floating_point():
            raise UserError(f"labels are whole numbers, these are {targets.dtype}; for real targets use regression")
        if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < outputs:
            found = f"{int(targets.min())} to {int(targets.max())}"
            raise UserError(f"labels {found} are out of range: a task of {outputs} ways has labels 0 to {outputs - 1}")


class Binary(Task):
    """Yes or no: logistic loss of one logit, accuracy in [0, 1]."""

    selection = "accuracy"
    metric = "accuracy"

    def __init__(self) -> None:
        super().__init__(1)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy: logits `(M, 1)`, labels `(M,)`, 0 or 1."""
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype), reduction="none")

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 for a right answer and 0 for a wrong one."""
        return ((outputs[:, 0] > 0) == (targets > 0)).double()

    def metrics(self) -> dict[str, Metric]:
        """The area under the receiver operating characteristic."""
        return {"auroc": BinaryAUROC()}

    def readable(self, outputs: Tensor) -> Tensor:
        """The probability of yes, `(M,)`."""
        return outputs[:, 0].sigmoid()

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse labels that are not `(M,)` of 0 and 1."""
        _check_zeros_and_ones(targets, ())


class Multilabel(Task):
    """K yes-or-no labels of one example: the mean of their logistic losses, the share of right labels.

    Args:
        outputs: K.
    """

    selection = "accuracy"
    metric = "accuracy"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy over labels: logits `(M, K)`, labels `(M, K)`, 0 or 1."""
        losses = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
        return losses.mean(-1)

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of an example's labels that are right."""
        return ((outputs > 0) == (targets > 0)).double().mean(-1)

    def metrics(self) -> dict[str, Metric]:
        """The F1 score, averaged over labels."""
        return {"f1": MultilabelF1Score(self.outputs, average="macro")}

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse labels that are not `(M, K)` of 0 and 1."""
        _check_zeros_and_ones(targets, (outputs,))


class Regression(Task):
    """Real targets: squared error of standardised values, R² (in episodes: squared error).

    The network predicts $(y - \\mu) / \\sigma$, with μ and σ those of the training targets once `fitted`.

    Args:
        outputs: The dimension of a target.
        mean: μ, one number a dimension; 0 by default.
        scale: σ, one number a dimension; 1 by default.
    """

    selection = "r2"
    metric = "mse"
    higher_is_better = False

    def __init__(self, outputs: int = 1, mean: Sequence[float] = (), scale: Sequence[float] = ()) -> None:
        super().__init__(outputs)
        self.mean, self.scale = tuple(mean), tuple(scale)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error in standard units, averaged over dimensions: both `(M, outputs)`."""
        return (outputs - self._standardised(targets)).square().mean(-1)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error: both `(..., M, outputs)`."""
        return (outputs.double() - targets.double()).square().mean((-2, -1))

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 − e² / Var(y), averaged over dimensions: the mean over examples is R². NaN where all targets are equal."""
        wanted = targets.double()
        spread = (wanted - wanted.mean(0)).square().mean(0)
        error = (self.readable(outputs.double()) - wanted).square()
        return torch.where(_all_equal(wanted), torch.nan, 1 - error / spread).mean(-1)

    def metrics(self) -> dict[str, Metric]:
        """The mean absolute error, in the units of the targets."""
        return {"mae": MeanAbsoluteError()}

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse targets of another dimension, and those that are not finite."""
        if targets.dim() < 2 or targets.shape[-1] != outputs:
            raise UserError(f"regression targets end in a dimension of {outputs}, these are {tuple(targets.shape)}")
        if not torch.isfinite(targets).all():
            raise UserError("regression targets are finite numbers, these hold NaN or infinity")

    def readable(self, outputs: Tensor) -> Tensor:
        """Predictions in the units of the targets: μ + σ times the outputs."""
        return outputs * outputs.new_tensor(self.scale) + outputs.new_tensor(self.mean) if self.scale else outputs

    def fitted(self, targets: Tensor) -> Regression:
        """The task with μ and σ of `(n, outputs)` training targets; σ is 1 where they are all equal."""
        values = targets.double()
        scale = torch.where(_all_equal(values), 1.0, values.std(0, correction=0))
        return Regression(self.outputs, tuple(values.mean(0).tolist()), tuple(scale.tolist()))

    def _standardised(self, targets: Tensor) -> Tensor:
        if not self.scale:
            return targets
        values = targets if targets.is_floating_point() else targets.double()
        return (values - values.new_tensor(self.mean)) / values.new_tensor(self.scale)


def task_named(name: TaskName, outputs: int) -> Task:
    """The ready-made task of a name."""
    return Classification(outputs) if name == "classification" else Regression(outputs)


@dataclass(frozen=True)
class EpisodeSpec:
    """What a module must know of its episodes before it makes parameters. The data module fills it in.

    Attributes:
        task: Classification or regression.
        input_shape: The shape of one input, channels first.
        outputs: N, the training way; or the dimension of a regression target. 0 where the way is a range.
        classes: Classes of the training split, rotations included; 0 for regression.
    """

    task: TaskName = "classification"
    input_shape: tuple[int, ...] = ()
    outputs: int = 0
    classes: int = 0


@dataclass(frozen=True)
class TasksSpec:
    """What a module must know of a fixed set of T tasks before it makes parameters. The data module fills it in.

    Attributes:
        tasks: The tasks by name, standardisation learned; their order is that of every vector over tasks.
        input_shapes: The shape of one input of each task, by name.
        train_examples: How many training examples each task has, by name.
        descriptors: z_i by name, where the data gives them; else empty.
    """

    tasks: Mapping[str, Task] = field(default_factory=dict)
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    train_examples: Mapping[str, int] = field(default_factory=dict)
    descriptors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def _all_equal(values: Tensor) -> Tensor:
    """Whether all rows are the same, by column; their variance may differ from 0 by rounding."""
    return (values == values[:1]).all(0)


def _check_zeros_and_ones(targets: Tensor, shape: tuple[int, ...]) -> None:
    if targets.shape[1:] != shape:
        raise UserError(f"labels of an example have shape {shape}, these have {tuple(targets.shape[1:])}")
    other = targets[(targets != 0) & (targets != 1)]
    if len(other):
        raise UserError(f"labels are 0 or 1, these hold {other[0].item()}")
