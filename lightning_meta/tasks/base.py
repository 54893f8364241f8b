"""What every task says: its loss, its metrics and how a prediction is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf, nan
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_meta.checks import whole
from lightning_meta.configuration import Described
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.functional.weighted_metrics import example_values
from lightning_meta.metrics import OF_EXAMPLES, Choice, choose, value_of_class, values_of_class
from lightning_meta.modes import Mode

MetricChoice = str | type[Metric] | None


class Task(Described, ABC):
    """The L of a task T = {p(x), p(y|x), L}, with the metrics that people read.

    A task of your own gives `losses`, `example_scores` and `check`, and `metrics` if it has further ones.

    Args:
        outputs: How many numbers a network predicts for one example.
        metric: What models are selected and compared by: a name of `names`, or a class derived from
            `torchmetrics.Metric`; by default `selection` of the class.

    Attributes:
        names: The metrics that can be chosen by name.
        beside: Those that are always logged.
        selection: The metric that models are selected and compared by.
        selection_mode: Whether a good value of it is large ("max") or small ("min").
        metric: The metric of one few-shot task, as logged.
        higher_is_better: Which way `metric` points.
    """

    names: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    selection: str
    selection_mode: Mode = "max"
    metric: str
    higher_is_better: bool = True

    def __init__(self, outputs: int, metric: MetricChoice = None) -> None:
        whole(0, outputs=outputs)
        self.outputs = outputs
        self._choice: Choice | None = (
            None if metric is None else choose(metric, self.names, outputs, type(self).__name__)
        )
        if self._choice is not None:
            self.selection, self.selection_mode = self._choice.name, self._choice.mode

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

    def metrics(self) -> dict[str, Metric]:
        """Further metrics of a split by name, new ones: functions of `readable` outputs and targets."""
        return {}

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

    def evaluate(self, outputs: Tensor, targets: Tensor, metric: str = "") -> float:
        """A metric of all M examples of a split.

        Args:
            outputs: `(M, outputs)`.
            targets: `(M, ...)`.
            metric: One of `names`; `selection` by default.

        Returns:
            The value; NaN where it is not defined, as the AUROC of one class.
        """
        if not len(outputs):
            return nan
        name = metric or self.selection
        kind = self._choice.kind if self._choice is not None and name == self.selection else None
        if name == self.selection and self.of_examples:
            return float(self.example_scores(outputs, targets).mean())
        if kind is None and name in OF_EXAMPLES:
            return float(self.scores_by(name, outputs, targets).mean())
        if not torch.isfinite(outputs).all():
            return nan
        if kind is not None:
            return float(value_of_class(kind, self.outputs, self.for_classes(outputs), targets))
        return float(self.measure(name, outputs, targets, torch.ones_like(outputs[:, 0])))

    @property
    def chosen(self) -> MetricChoice:
        """The metric that was asked for; None for the default."""
        return None if self._choice is None else self._choice.kind or self._choice.name

    @property
    def of_examples(self) -> bool:
        """Whether `selection` is a mean of scores of single examples, so that a batch has it as well as a split."""
        choice = self._choice
        return choice is None or (choice.kind is None and choice.name in OF_EXAMPLES)

    def comparable(self, score: float) -> float:
        """The metric `selection` as it enters `val/score`, the mean over tasks: a large value is good.

        Errors are measured in units of the training targets' standard deviation, and no task counts as worse than
        `floor`, so that one task cannot decide alone.
        """
        signed = (score if self.selection_mode == "max" else -score) / self.unit
        return signed if signed != signed else max(signed, self.floor)

    @property
    def floor(self) -> float:
        """The least that a task counts in the mean over tasks; −∞ where its metric has a worst value or is a class."""
        return -inf

    @property
    def unit(self) -> float:
        """What `selection` is measured in before tasks are compared."""
        return 1.0

    def constant(self) -> Tensor | None:
        """The outputs `(outputs,)`, whatever the input, whose `selection` is the best by the training targets.

        None if they are not known. For a class that is the metric they are those of the least loss.
        """
        return None

    def scores_by(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scores `(M,)` of the examples by a named metric that is their mean."""
        raise UserError(f"metric: {type(self).__name__} has no {name}")

    def measure(self, name: str, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """A named metric of M examples that count as often as `weights` `(M,)` says, a scalar."""
        raise UserError(f"metric: {type(self).__name__} has no {name}")

    def readable(self, outputs: Tensor) -> Tensor:
        """Predictions as people and metrics take them: in the units of the targets; logits of classes as they are."""
        return outputs

    def for_classes(self, outputs: Tensor) -> Tensor:
        """Predictions as a class that is the `metric` takes them: probabilities of labels, else as `readable`.

        torchmetrics takes numbers in [0, 1] for probabilities and others for logits, batch by batch.
        """
        return self.readable(outputs)

    def fitted(self, targets: Tensor) -> Task:
        """The task with what it learns from its training targets, such as their mean and scale."""
        return self

    def _example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`example_scores` of the ready-made kinds, by the metric that was chosen."""
        choice, outputs = self._choice, at_least_float32(outputs)
        if choice is None or self.of_examples:
            return self.scores_by(self.selection, outputs, targets)
        if not torch.isfinite(outputs).all():
            return torch.full_like(outputs[:, 0], nan)
        if choice.kind is not None:
            return values_of_class(choice.kind, self.outputs, self.for_classes(outputs), targets).to(outputs.dtype)
        return example_values(lambda weights: self.measure(choice.name, outputs, targets, weights), outputs[:, 0])
