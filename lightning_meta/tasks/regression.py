"""Regression tasks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import inf, isfinite, nan, sqrt
from typing import Any, Self

import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.functional.precision import HAS_FLOAT64, at_least_float32
from lightning_meta.functional.weighted_metrics import weighted_mean
from lightning_meta.tasks.base import MetricChoice, Task
from lightning_meta.tasks.few_rows import FEWEST_ROWS
from lightning_meta.tasks.refitting import refitted

MOST_ROWS = 2000
"""Most training rows from which the bound of a torchmetrics class is computed."""


class Regression(Task):
    """Regression trained with the squared error of standardised targets; the metric of episodes is the squared error.

    The network predicts $(y - \\mu) / \\sigma$ with the mean μ and the standard deviation σ of the training targets.

    Named metrics are R², and the root mean squared error and the mean absolute error in the units of the targets; for
    several dimensions, each is the mean over dimensions.

    Args:
        outputs: Dimension of a target.
        mean: μ of each dimension, set by `fitted`; by default 0.
        scale: σ of each dimension, set by `fitted`; by default 1.
        metric: Metric that selects and compares models; by default R².
        median: Median of the training targets in standard units, of each dimension; set by `fitted`.
        reference: Value of a torchmetrics class for the mean of the training targets, and for perfect predictions; set
            by `fitted`, empty if the class is undefined for the mean.

    >>> task = Regression(1).fitted(torch.tensor([[10.0], [14.0]]))
    >>> task.mean, task.scale, task.readable(torch.tensor([[0.5]]))
    ((12.0,), (2.0,), tensor([[13.]]))
    """

    names = ("r2", "rmse", "mae")
    beside = ("r2", "mae")
    selection = "r2"
    metric = "mse"
    higher_is_better = False

    def __init__(
        self,
        outputs: int = 1,
        mean: Sequence[float] = (),
        scale: Sequence[float] = (),
        metric: MetricChoice = None,
        median: Sequence[float] = (),
        reference: Sequence[float] = (),
    ) -> None:
        super().__init__(outputs, metric)
        self.mean, self.scale, self.median, self.reference = tuple(mean), tuple(scale), tuple(median), tuple(reference)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error in standard units, averaged over dimensions, `(M,)`."""
        outputs = at_least_float32(outputs)
        return (outputs - self.standardised(targets, outputs.dtype)).square().mean(-1)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error `(...)` of outputs and targets `(..., M, outputs)`."""
        outputs = at_least_float32(outputs)
        return (outputs - targets.to(outputs.dtype)).square().mean((-2, -1))

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the scores `(M,)`; for R² the mean over dimensions of 1 − e² / Var(y), NaN for equal targets."""
        return self._example_scores(outputs, targets)

    def evaluate(self, outputs: Tensor, targets: Tensor, metric: str = "") -> float:
        """Compute a metric over all examples, see `Task`; R² of fewer than `FEWEST_ROWS` examples is NaN."""
        few = (metric or self.selection) == "r2" and len(outputs) < FEWEST_ROWS
        return nan if few else super().evaluate(outputs, targets, metric)

    @property
    def floor(self) -> float:
        """The value of a model with twice the squared error of predicting the mean: R² is −1, an error is √2 σ.

        For a torchmetrics class, it is as far below the value for the mean as that for perfect predictions is above it.
        The scale of a subclass's own score is unknown, so it has no bound.
        """
        if self._scores_itself:
            return -inf
        if self._choice is None or self._choice.kind is None:
            return -1.0 if self.selection == "r2" else -sqrt(2)
        if not self.reference:
            return -inf
        of_mean, gap = self._worse_and_gap
        return (of_mean - gap) / self.unit

    @property
    def unit(self) -> float:
        """The mean standard deviation of the training targets for errors; 1 for R².

        For a torchmetrics class of errors, it is the error of the mean of the training targets.
        """
        if self._choice is not None and self._choice.kind is not None:
            return self._worse_and_gap[1] if self.reference and self.selection_mode == "min" else 1.0
        of_errors = self._choice is not None and self._choice.name in ("rmse", "mae") and self.scale
        return sum(self.scale) / len(self.scale) if of_errors else 1.0

    @property
    def _worse_and_gap(self) -> tuple[float, float]:
        """The values of `reference` where higher is better: the worse one, and by how much the targets are better.

        Where they are not better, as with constant training targets, the gap is 1 in the units of the metric.
        """
        of_mean, of_targets = (value if self.selection_mode == "max" else -value for value in self.reference)
        return min(of_mean, of_targets), of_targets - of_mean if of_targets > of_mean else 1.0

    def constant(self) -> Tensor | None:
        """Return the mean of the training targets, 0 in standard units; their median for the mean absolute error.

        None for a subclass's own score, whose best constant is unknown.
        """
        if self._scores_itself:
            return None
        if self.selection == "mae":
            return torch.tensor(self.median, dtype=torch.float64) if self.median else None
        return torch.zeros(self.outputs, dtype=torch.float64) if self.scale else None

    def scores_by(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 1 − e² / Var(y) for R², or |e| in the units of the targets for the mean absolute error, `(M,)`."""
        if name not in self.beside:
            return super().scores_by(name, outputs, targets)
        # R² does not depend on the units. Standard units keep more digits if targets are far from 0.
        outputs = at_least_float32(outputs)
        y = self.standardised(targets, outputs.dtype)
        if name == "mae":
            return ((outputs - y).abs() * self._units(outputs)).mean(-1)
        variance = (y - y.mean(0)).square().mean(0)
        error = (outputs - y).square()
        return torch.where(_all_equal(targets), torch.nan, 1 - error / variance).mean(-1)

    def measure(self, name: str, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the root mean squared error in the units of the targets."""
        error = outputs - self.standardised(targets, outputs.dtype)
        squares = weighted_mean(error.square(), weights)
        exact = (error == 0).all(0)  # there the square root has no finite gradient
        return (torch.where(exact, 0, torch.where(exact, 1, squares).sqrt()) * self._units(outputs)).mean()

    def check(self, targets: Tensor, outputs: int) -> None:
        """Refuse targets of another dimension and targets that are not finite."""
        if targets.dim() < 2 or targets.shape[-1] != outputs:
            raise UserError(f"regression targets end in a dimension of {outputs}, these are {tuple(targets.shape)}")
        if not torch.isfinite(targets).all():
            raise UserError("regression targets are finite numbers, these hold NaN or infinity")

    def readable(self, outputs: Tensor) -> Tensor:
        """Return predictions in the units of the targets, μ + σ times the outputs.

        They are float64 if μ is so much larger than σ that float32 would lose digits; if the device does not support
        float64, they are then on the CPU.
        """
        if not self.scale:
            return outputs
        outputs = at_least_float32(outputs)
        if self._far_from_0:
            outputs = (outputs if outputs.device.type in HAS_FLOAT64 else outputs.cpu()).double()
        return outputs * outputs.new_tensor(self.scale) + outputs.new_tensor(self.mean)

    def with_fitted(self, **values: Any) -> Self:
        """Return a copy with other arguments of `Regression`, such as `mean`; a subclass keeps its class."""
        return refitted(self, Regression, **{"outputs": self.outputs, **values})

    def fitted(self, targets: Tensor) -> Self:
        """Return the task with μ and σ of the training targets `(n, outputs)`; σ is 1 if they are all equal."""
        targets = targets.cpu()
        first = targets[:1] if not targets.is_floating_point() else targets[:1].double()
        # Subtract before converting: float64 cannot represent large integers exactly, but their differences.
        differences = (targets - first).double()
        scale = torch.where(_all_equal(targets), 1.0, differences.std(0, correction=0))
        if not (torch.isfinite(differences.mean(0)) & torch.isfinite(scale) & (scale > 0)).all():
            raise UserError("the spread of the targets is more or less than float64 holds; scale them")
        # Beyond 2^53, float64 cannot represent all integers, so the mean is rounded to an exact Python integer.
        offsets, rest = first[0].tolist(), differences.mean(0).tolist()
        mean = tuple(y + round(m) if abs(y) >= 2**53 else y + m for y, m in zip(offsets, rest, strict=True))
        task = self.with_fitted(mean=mean, scale=tuple(scale.tolist()), metric=self.chosen)
        middle = targets.sort(0).values[(len(targets) - 1) // 2 : len(targets) // 2 + 1]  # two rows of an even number
        median = task.standardised(middle, torch.float64).mean(0)
        return self.with_fitted(
            mean=task.mean,
            scale=task.scale,
            metric=self.chosen,
            median=tuple(median.tolist()),
            reference=task._reference_of(targets),
        )

    def _reference_of(self, targets: Tensor) -> tuple[float, ...]:
        """Return the values of `reference` for the training targets `(n, outputs)`."""
        if self._choice is None or self._choice.kind is None:
            return ()
        targets = targets[:: -(-len(targets) // MOST_ROWS)]  # the time of some classes grows with the square of n
        exact = self.standardised(targets, torch.float64)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a class may warn of constants, as the correlation does
                values = self.evaluate(torch.zeros_like(exact), targets), self.evaluate(exact, targets)
        except UserError:  # or it fails on them
            return ()
        return values if all(map(isfinite, values)) else ()

    @property
    def _far_from_0(self) -> bool:
        return any(abs(mean) > 1000 * scale for mean, scale in zip(self.mean, self.scale, strict=True))

    def _units(self, like: Tensor) -> Tensor:
        """Return σ, `(outputs,)`."""
        return like.new_tensor(self.scale) if self.scale else like.new_ones(self.outputs)

    def standardised(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (y − μ) / σ in a dtype; μ is subtracted in the dtype of the targets, before digits are lost."""
        if not self.scale:
            return targets.to(dtype)
        if targets.is_floating_point():
            y = at_least_float32(targets)
            return ((y - y.new_tensor(self.mean)) / y.new_tensor(self.scale)).to(dtype)
        whole = [round(mean) for mean in self.mean]  # integers are subtracted exactly, then the fraction
        rest = [mean - integer for mean, integer in zip(self.mean, whole, strict=True)]
        y = (targets - torch.tensor(whole, device=targets.device)).to(dtype)
        return (y - y.new_tensor(rest)) / y.new_tensor(self.scale)


def _all_equal(values: Tensor) -> Tensor:
    """Return for each column whether all values are equal; rounding can leave their computed variance above 0."""
    return (values == values[:1]).all(0)
