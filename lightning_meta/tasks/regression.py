"""Tasks of real targets."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan, sqrt

import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.functional.precision import HAS_FLOAT64, at_least_float32
from lightning_meta.functional.weighted_metrics import weighted_mean
from lightning_meta.tasks.base import MetricChoice, Task

FEWEST_ROWS = 5
"""Examples that R² needs: of fewer, the variance that it divides by is known to a factor of two at best."""


class Regression(Task):
    """Real targets: squared error of standardised values, R² (in episodes: squared error).

    The network predicts $(y - \\mu) / \\sigma$, with μ and σ those of the training targets once `fitted`.

    By name it can be selected by R², the root of the mean squared error, and the mean absolute error, both in the units
    of the targets; of several dimensions each is the mean.

    Args:
        outputs: The dimension of a target.
        mean: μ, one number a dimension; 0 by default.
        scale: σ, one number a dimension; 1 by default.
        metric: What models are selected and compared by, R² by default.
        median: That of the training targets in standard units, one number a dimension.
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
    ) -> None:
        super().__init__(outputs, metric)
        self.mean, self.scale, self.median = tuple(mean), tuple(scale), tuple(median)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error in standard units, averaged over dimensions: both `(M, outputs)`."""
        outputs = at_least_float32(outputs)
        return (outputs - self.standardised(targets, outputs.dtype)).square().mean(-1)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error: both `(..., M, outputs)`."""
        outputs = at_least_float32(outputs)
        return (outputs - targets.to(outputs.dtype)).square().mean((-2, -1))

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 − e² / Var(y), averaged over dimensions, where R² is the metric. NaN where all targets are equal."""
        return self._example_scores(outputs, targets)

    def evaluate(self, outputs: Tensor, targets: Tensor, metric: str = "") -> float:
        """As of every task; R² of fewer than `FEWEST_ROWS` examples is NaN."""
        few = (metric or self.selection) == "r2" and len(outputs) < FEWEST_ROWS
        return nan if few else super().evaluate(outputs, targets, metric)

    @property
    def floor(self) -> float:
        """Twice the squared error of the mean: R² is −1, other errors √2 of the standard deviation."""
        known = self._choice is None or self._choice.kind is None
        return -inf if not known else -1.0 if self.selection == "r2" else -sqrt(2)

    @property
    def unit(self) -> float:
        """The mean standard deviation of the training targets for errors; R² has no unit."""
        of_errors = self._choice is not None and self._choice.name in ("rmse", "mae") and self.scale
        return sum(self.scale) / len(self.scale) if of_errors else 1.0

    def constant(self) -> Tensor | None:
        """The mean of the training targets, 0 in standard units; their median for the mean absolute error."""
        if self.selection == "mae":
            return torch.tensor(self.median, dtype=torch.float64) if self.median else None
        return torch.zeros(self.outputs, dtype=torch.float64) if self.scale else None

    def scores_by(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 − e² / Var(y) for R², |e| in the units of the targets for the mean absolute error."""
        # In standard units, which R² does not depend on: far from 0 they have more digits than the targets' own units.
        outputs = at_least_float32(outputs)
        wanted = self.standardised(targets, outputs.dtype)
        if name == "mae":
            return ((outputs - wanted).abs() * self._units(outputs)).mean(-1)
        spread = (wanted - wanted.mean(0)).square().mean(0)
        error = (outputs - wanted).square()
        return torch.where(_all_equal(targets), torch.nan, 1 - error / spread).mean(-1)

    def measure(self, name: str, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The root of the mean squared error, in the units of the targets."""
        error = outputs - self.standardised(targets, outputs.dtype)
        squares = weighted_mean(error.square(), weights)
        exact = (error == 0).all(0)  # where the root has no slope
        return (torch.where(exact, 0, torch.where(exact, 1, squares).sqrt()) * self._units(outputs)).mean()

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
        known = Regression(self.outputs, mean, tuple(scale.tolist()), self.chosen)
        median = known.standardised(targets.median(0).values[None], torch.float64)[0]
        return Regression(self.outputs, known.mean, known.scale, self.chosen, tuple(median.tolist()))

    @property
    def _far_from_0(self) -> bool:
        return any(abs(mean) > 1000 * scale for mean, scale in zip(self.mean, self.scale, strict=True))

    def _units(self, like: Tensor) -> Tensor:
        """σ, in which outputs are measured, `(outputs,)`."""
        return like.new_tensor(self.scale) if self.scale else like.new_ones(self.outputs)

    def standardised(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
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


def _all_equal(values: Tensor) -> Tensor:
    """Whether all rows are the same, by column; their variance may differ from 0 by rounding."""
    return (values == values[:1]).all(0)
