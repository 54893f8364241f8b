"""Real targets of stored few-shot tasks: learned in standard units, reported in their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks.regression import Regression


class StandardisedRegression(Regression):
    r"""Regression on targets that are already $(y - \mu) / \sigma$, μ and σ those of the training tasks.

    The loss is in standard units. The mean squared error is in the squared units of the targets, averaged over their
    dimensions; `in_standard_units` and `readable` go from those units to standard ones and back.

    Args:
        mean: μ, one number a dimension.
        scale: σ, one number a dimension.
    """

    def __init__(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__(len(mean))
        self._units_of = Regression(len(mean), mean, scale)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error in squared units of the targets: both `(..., M, outputs)`, in standard units."""
        outputs = at_least_float32(outputs)
        errors = (outputs - targets.to(outputs.dtype)).square().mean(-2)
        # By Python's numbers: a tensor of the scales would be copied to the device, which waits for it.
        scaled = [error * scale**2 for error, scale in zip(errors.unbind(-1), self._units_of.scale, strict=True)]
        return torch.stack(scaled, -1).mean(-1)

    def in_standard_units(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Floating-point targets `(..., outputs)` in their own units, to standard units in a dtype."""
        known = zip(targets.unbind(-1), self._units_of.mean, self._units_of.scale, strict=True)
        return torch.stack([(y - mean) / scale for y, mean, scale in known], -1).to(dtype)

    def readable(self, outputs: Tensor) -> Tensor:
        """Predictions `(..., outputs)` in the units of the targets."""
        return self._units_of.readable(outputs)
