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

from lightning_meta.checks import whole
from lightning_meta.configuration import Described
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import HAS_FLOAT64, at_least_float32

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
        whole(0, outputs=outputs)
        self.outputs = outputs

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each prediction: `(M, outputs)` and targets to `(M,)`."""

    @abstractmethod
    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What each of all M examples of a split adds to the metric `selection`, which is the mean.

        Args:
            outputs: `(M, outputs)`, on any device; float64 outputs are scored in float64.
            targets: `(M, ...)`.

        Returns:
            `(M,)` of the outputs' dtype, at least float32.
        """

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
        """The metric of each few-shot task: `(..., M, outputs)` and targets to `(...)`, at least float32."""
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
        return F.cross_entropy(at_least_float32(outputs), targets.long(), reduction="none")

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of right answers: logits `(..., M, N)`, labels `(..., M)`."""
        return _as_numbers(outputs.argmax(-1) == targets, outputs).mean(-1)

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 for a right answer and 0 for a wrong one."""
        return _as_numbers(outputs.argmax(-1) == targets, outputs)

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
        logits = at_least_float32(outputs[:, 0])
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 for a right answer and 0 for a wrong one."""
        return _as_numbers((outputs[:, 0] > 0) == (targets > 0), outputs)

    def metrics(self) -> dict[str, Metric]:
        """The area under the receiver operating characteristic."""
        return {"auroc": BinaryAUROC()}

    def readable(self, outputs: Tensor) -> Tensor:
        """The probability of yes, `(M,)`."""
        return at_least_float32(outputs[:, 0]).sigmoid()

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
        logits = at_least_float32(outputs)
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(-1)

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of an example's labels that are right."""
        return _as_numbers((outputs > 0) == (targets > 0), outputs).mean(-1)

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
        outputs = at_least_float32(outputs)
        return (outputs - self._standardised(targets, outputs.dtype)).square().mean(-1)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error: both `(..., M, outputs)`."""
        outputs = at_least_float32(outputs)
        return (outputs - targets.to(outputs.dtype)).square().mean((-2, -1))

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 − e² / Var(y), averaged over dimensions: the mean over examples is R². NaN where all targets are equal."""
        # In standard units, which R² does not depend on: far from 0 they have more digits than the targets' own units.
        outputs = at_least_float32(outputs)
        wanted = self._standardised(targets, outputs.dtype)
        spread = (wanted - wanted.mean(0)).square().mean(0)
        error = (outputs - wanted).square()
        return torch.where(_all_equal(targets), torch.nan, 1 - error / spread).mean(-1)

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
        """Predictions in the units of the targets: μ + σ times the outputs.

        They are float64 where μ is so much larger than σ that float32 would lose digits; on the CPU, where the device
        has no float64.
        """
        if not self.scale:
            return outputs
        outputs = at_least_float32(outputs)
        if self._far_from_0:
            outputs = (outputs if outputs.device.type in HAS_FLOAT64 else outputs.cpu()).double()
        return outputs * outputs.new_tensor(self.scale) + outputs.new_tensor(self.mean)

    def fitted(self, targets: Tensor) -> Regression:
        """The task with μ and σ of `(n, outputs)` training targets; σ is 1 where they are all equal."""
        targets = targets.cpu()
        first = targets[:1] if not targets.is_floating_point() else targets[:1].double()
        apart = (targets - first).double()  # exact for whole numbers, of which float64 would merge the large ones
        scale = torch.where(_all_equal(targets), 1.0, apart.std(0, correction=0))
        if not (torch.isfinite(apart.mean(0)) & torch.isfinite(scale) & (scale > 0)).all():
            raise UserError("the spread of the targets is more or less than float64 holds; scale them")
        # Python's own whole numbers, which are exact, where those of float64 lie apart.
        near, rest = first[0].tolist(), apart.mean(0).tolist()
        mean = tuple(y + round(m) if abs(y) >= 2**53 else y + m for y, m in zip(near, rest, strict=True))
        return Regression(self.outputs, mean, tuple(scale.tolist()))

    @property
    def _far_from_0(self) -> bool:
        return any(abs(mean) > 1000 * scale for mean, scale in zip(self.mean, self.scale, strict=True))

    def _standardised(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """(y - μ) / σ in a dtype; what μ and y have in common cancels in the targets' own numbers first."""
        if not self.scale:
            return targets.to(dtype)
        if targets.is_floating_point():
            y = at_least_float32(targets)
            return ((y - y.new_tensor(self.mean)) / y.new_tensor(self.scale)).to(dtype)
        whole = [round(mean) for mean in self.mean]  # large whole numbers have more digits than float32 holds
        rest = [mean - near for mean, near in zip(self.mean, whole, strict=True)]
        y = (targets - torch.tensor(whole, device=targets.device)).to(dtype)
        return (y - y.new_tensor(rest)) / y.new_tensor(self.scale)


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
        input_dtype: The dtype of the stored inputs, such as "uint8" or "int64"; "" where nobody said so.
        input_statistics: Range and brightness of training inputs, see `lightning_meta.nn.likeness`; empty where nobody
            said so.
    """

    task: TaskName = "classification"
    input_shape: tuple[int, ...] = ()
    outputs: int = 0
    classes: int = 0
    input_dtype: str = ""
    input_statistics: tuple[float, ...] = ()


@dataclass(frozen=True)
class TasksSpec:
    """What a module must know of a fixed set of T tasks before it makes parameters. The data module fills it in.

    Attributes:
        tasks: The tasks by name, standardisation learned; their order is that of every vector over tasks.
        input_shapes: The shape of one input of each task, by name.
        train_examples: How many training examples each task has, by name.
        descriptors: z_i by name, where the data gives them; else empty.
        input_dtypes: The dtype of each task's stored inputs, such as "uint8"; empty where nobody said so.
        input_statistics: Range and brightness of each task's training inputs, see `lightning_meta.nn.likeness`; empty
            where nobody said so.
    """

    tasks: Mapping[str, Task] = field(default_factory=dict)
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    train_examples: Mapping[str, int] = field(default_factory=dict)
    descriptors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    input_dtypes: Mapping[str, str] = field(default_factory=dict)
    input_statistics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def _as_numbers(right: Tensor, outputs: Tensor) -> Tensor:
    """0 and 1; float32 counts exactly up to 16 million, half precision only to a few hundred."""
    return right.to(torch.promote_types(outputs.dtype, torch.float32))


def _all_equal(values: Tensor) -> Tensor:
    """Whether all rows are the same, by column; their variance may differ from 0 by rounding."""
    return (values == values[:1]).all(0)


def _check_zeros_and_ones(targets: Tensor, shape: tuple[int, ...]) -> None:
    if targets.shape[1:] != shape:
        raise UserError(f"labels of an example have shape {shape}, these have {tuple(targets.shape[1:])}")
    other = targets[(targets != 0) & (targets != 1)]
    if len(other):
        raise UserError(f"labels are 0 or 1, these hold {other[0].item()}")
