"""What a task asks for: its loss, its metric and how a prediction is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.errors import UserError

TaskName = Literal["classification", "regression"]


class Task(ABC):
    """The L of a task T = {p(x), p(y|x), L}, with the metric that people read.

    Attributes:
        metric: The metric's name, as logged.
        higher_is_better: Which way the metric points.
    """

    metric: str
    higher_is_better: bool

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of M predictions, a scalar; maps over tasks under `torch.func.vmap`."""

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The metric of each set of M predictions: `(..., M, outputs)` and targets to `(...)`."""

    @abstractmethod
    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse targets that do not fit.

        Raises:
            UserError: What is wrong and what was expected.
        """


class Classification(Task):
    """One of N classes: cross-entropy of the logits, accuracy in [0, 1]."""

    metric = "accuracy"
    higher_is_better = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy: logits `(M, N)`, labels `(M,)` in [0, N)."""
        return F.cross_entropy(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of right answers: logits `(..., M, N)`, labels `(..., M)`."""
        return (outputs.argmax(-1) == targets).double().mean(-1)

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse labels that are not whole numbers in [0, N)."""
        if targets.is_floating_point():
            raise UserError(f"labels are whole numbers, these are {targets.dtype}; for real targets use regression")
        if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < outputs:
            found = f"{int(targets.min())} to {int(targets.max())}"
            raise UserError(f"labels {found} are out of range: a task of {outputs} ways has labels 0 to {outputs - 1}")


class Regression(Task):
    """Real targets: squared error."""

    metric = "mse"
    higher_is_better = False

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error: both `(M, outputs)`."""
        return F.mse_loss(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error: both `(..., M, outputs)`."""
        return (outputs.double() - targets.double()).square().mean((-2, -1))

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse targets of another dimension, and those that are not finite."""
        if targets.shape[-1:] != (outputs,):
            raise UserError(f"regression targets end in a dimension of {outputs}, these are {tuple(targets.shape)}")
        if not torch.isfinite(targets).all():
            raise UserError("regression targets are finite numbers, these hold NaN or infinity")


def task_named(name: TaskName) -> Task:
    """The ready-made task of a name."""
    return {"classification": Classification, "regression": Regression}[name]()


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
