"""The base class of tasks: loss, metrics and conversion of network outputs to predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf, nan
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_meta.checks import whole
from lightning_meta.describing import Described
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.functional.weighted_metrics import example_values
from lightning_meta.metrics import OF_EXAMPLES, Choice, choose, value_of_class, values_of_class
from lightning_meta.modes import Mode

MetricChoice = str | type[Metric] | None


class Task(Described, ABC):
    """The loss L of a task T = {p(x), p(y|x), L}, and its metrics.

    A custom task implements `losses`, `example_scores` and `check`, and names its score by the class attribute
    `selection`; if a smaller score is better, it sets `selection_mode = "min"`. A constructor of its own calls
    `super().__init__(outputs)`. Override `metrics` to log more metrics. For episodes, a task implements `losses` and
    `score`, and sets `metric` and `higher_is_better`.

    Args:
        outputs: Number of network outputs per example.
        metric: Metric that selects and compares models: one of `names`, or a subclass of `torchmetrics.Metric`; by
            default the class attribute `selection`.

    Attributes:
        names: Metrics that can be chosen by name.
        beside: Metrics that are always logged.
        selection: Name of the metric that selects and compares models.
        selection_mode: "max" if a larger `selection` is better, "min" if a smaller one is.
        metric: Name of the metric of a few-shot task in the logs.
        higher_is_better: Whether a larger `metric` is better.
        numbers: Number of network outputs per dimension of a real target.
    """

    names: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    selection: str
    selection_mode: Mode = "max"
    metric: str
    higher_is_better: bool = True
    numbers: ClassVar[int] = 1

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
        """Return the loss of each of M predictions, `(M,)`.

        Args:
            outputs: Network outputs, `(M, outputs)`.
            targets: Targets, `(M, ...)`.
        """

    @abstractmethod
    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the score of each of the M examples of a split; their mean is the metric `selection`.

        Args:
            outputs: Network outputs, `(M, outputs)`, on any device; float64 outputs are scored in float64.
            targets: Targets, `(M, ...)`.

        Returns:
            Scores `(M,)` in the dtype of the outputs, at least float32.
        """

    def metrics(self) -> dict[str, Metric]:
        """Return new instances of further metrics by name; they take `readable` outputs and the targets."""
        return {}

    @abstractmethod
    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse targets that do not suit the task.

        Args:
            targets: Targets, `(M, ...)`.
            outputs: Number of network outputs per example.

        Raises:
            UserError: The targets are invalid.
        """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of M predictions, a scalar; works under `torch.func.vmap` over tasks."""
        return self.losses(outputs, targets).mean()

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the metric of each few-shot task, `(...)`, from outputs `(..., M, outputs)`; at least float32."""
        raise UserError(f"{type(self).__name__} is not a task of episodes")

    def evaluate(self, outputs: Tensor, targets: Tensor, metric: str = "") -> float:
        """Compute a metric over all M examples of a split.

        Args:
            outputs: Network outputs, `(M, outputs)`.
            targets: Targets, `(M, ...)`.
            metric: One of `names`; by default `selection`.

        Returns:
            The value; NaN if it is undefined, such as the AUROC of a single class.
        """
        if not len(outputs):
            return nan
        name = metric or self.selection
        kind = self._choice.kind if self._choice is not None and name == self.selection else None
        if name == self.selection and self.of_examples:
            return float(one_each(self, "example_scores", self.example_scores(outputs, targets), outputs).mean())
        if kind is None and name in OF_EXAMPLES:
            return float(self.scores_by(name, outputs, targets).mean())
        if not torch.isfinite(outputs).all():
            return nan
        if kind is not None:
            return float(value_of_class(kind, self.outputs, self.for_classes(outputs), targets))
        return float(self.measure(name, outputs, targets, torch.ones_like(outputs[:, 0])))

    @property
    def chosen(self) -> MetricChoice:
        """The metric that the user chose; None for the default."""
        return None if self._choice is None else self._choice.kind or self._choice.name

    @property
    def of_examples(self) -> bool:
        """Whether `selection` is a mean over examples, and thus defined for a batch as well as for a split."""
        choice = self._choice
        return choice is None or (choice.kind is None and choice.name in OF_EXAMPLES)

    @property
    def _scores_itself(self) -> bool:
        """Whether a custom class computes the selection metric itself."""
        custom = not type(self).example_scores.__module__.startswith("lightning_meta.tasks.")
        return self._choice is None and (custom or self.selection not in self.names)

    def comparable(self, score: float) -> float:
        """Convert a value of `selection` to the scale of `val/score`, the mean over tasks, where larger is better.

        Errors are divided by `unit`, which is the standard deviation of the training targets for built-in ones. Values
        are clipped from below at `floor`, so that a single bad task does not dominate the mean.
        """
        signed = (score if self.selection_mode == "max" else -score) / self.unit
        return signed if signed != signed else max(signed, self.floor)

    @property
    def floor(self) -> float:
        """Lower bound of `comparable`; −∞ if the metric is bounded, or its bound is unknown."""
        return -inf

    @property
    def unit(self) -> float:
        """Divisor that makes `selection` comparable between tasks."""
        return 1.0

    def constant(self) -> Tensor | None:
        """Return the constant outputs `(outputs,)` with the best `selection` on the training targets.

        None before the task is `fitted`. If the metric is a torchmetrics class, they minimise the loss instead.
        """
        return None

    def scores_by(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the scores of the examples, `(M,)`, whose mean is the named metric."""
        raise UserError(f"metric: {type(self).__name__} has no {name}")

    def measure(self, name: str, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return a named metric of M examples weighted by `weights` `(M,)`, a scalar."""
        raise UserError(f"metric: {type(self).__name__} has no {name}")

    def readable(self, outputs: Tensor) -> Tensor:
        """Convert outputs to predictions in the units of the targets; class logits are returned unchanged."""
        return outputs

    def for_classes(self, outputs: Tensor) -> Tensor:
        """Convert outputs to the input of a torchmetrics class: probabilities of labels, otherwise as `readable`.

        Logits would be ambiguous: torchmetrics treats a batch whose values all lie in [0, 1] as probabilities.
        """
        return self.readable(outputs)

    def fitted(self, targets: Tensor) -> Task:
        """Return the task with the statistics of its training targets, such as their mean and scale."""
        return self

    def _example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`example_scores` of the built-in tasks, for the chosen metric."""
        choice, outputs = self._choice, at_least_float32(outputs)
        if choice is None or self.of_examples:
            return self.scores_by(self.selection, outputs, targets)
        if not torch.isfinite(outputs).all():
            return torch.full_like(outputs[:, 0], nan)
        if choice.kind is not None:
            return values_of_class(choice.kind, self.outputs, self.for_classes(outputs), targets).to(outputs.dtype)
        return example_values(lambda weights: self.measure(choice.name, outputs, targets, weights), outputs[:, 0])


def one_each(task: Task, method: str, values: Tensor, outputs: Tensor) -> Tensor:
    """Return what a method of a task computed for M examples, if it is one number for each.

    Args:
        task: The task.
        method: Name of the method, for the error.
        values: Result of the method.
        outputs: Outputs of the M examples, `(M, outputs)`.

    Raises:
        UserError: The received and the expected shape.
    """
    expected = outputs.shape[:1]
    if isinstance(values, Tensor) and values.shape == expected:
        return values
    received = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
    raise UserError(
        f"{type(task).__name__}.{method} returned {received}; expected one number for each example, {tuple(expected)}"
    )
