"""Regression on standardised targets of few-shot tasks, with metrics in the original units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks.regression import Regression
from lightning_meta.tasks.specs import EpisodeSpec


class StandardisedRegression(Regression):
    r"""Regression on targets that are already standardised: $(y - \mu) / \sigma$ with μ and σ of the training tasks.

    The loss is in standard units. The mean squared error is in the squared original units, averaged over dimensions.
    `in_standard_units` converts original to standard units, `readable` converts back.

    Derive from it for a loss and a metric of your own on few-shot tasks; see `docs/extending.md`.

    Args:
        mean: μ of each dimension.
        scale: σ of each dimension.
    """

    def __init__(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__(len(mean))
        self._units_of = Regression(len(mean), mean, scale)

    @classmethod
    def of_episodes(cls, spec: EpisodeSpec) -> Self:
        """Return the task of these episodes; μ is 0 and σ is 1 if their targets are not standardised."""
        return cls(spec.target_mean or (0.0,) * spec.outputs, spec.target_scale or (1.0,) * spec.outputs)

    def fitted(self, targets: Tensor) -> Self:
        """Return the task unchanged: its targets are in standard units already."""
        return self

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error in original units, `(...)`; outputs and targets are in standard units."""
        outputs = at_least_float32(outputs)
        errors = (outputs - targets.to(outputs.dtype)).square().mean(-2)
        # Python numbers, because creating a tensor of the scales would synchronise with the device.
        scaled = [error * scale**2 for error, scale in zip(errors.unbind(-1), self._units_of.scale, strict=True)]
        return torch.stack(scaled, -1).mean(-1)

    def in_standard_units(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert floating-point targets `(..., outputs)` from original to standard units."""
        dimensions = zip(targets.unbind(-1), self._units_of.mean, self._units_of.scale, strict=True)
        return torch.stack([(y - mean) / scale for y, mean, scale in dimensions], -1).to(dtype)

    def in_original_units(self, differences: Tensor) -> Tensor:
        """Convert differences of predictions and targets `(..., outputs)` from standard to original units."""
        dimensions = zip(differences.unbind(-1), self._units_of.scale, strict=True)
        return torch.stack([difference * scale for difference, scale in dimensions], -1)

    def readable(self, outputs: Tensor) -> Tensor:
        """Return predictions `(..., outputs)` in the original units of the targets."""
        return self._units_of.readable(outputs)
