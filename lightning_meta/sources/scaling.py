"""Standardisation of tabular inputs, learned on training rows alone."""

from __future__ import annotations

from torch import Tensor


class Standardiser:
    """x ↦ (x − μ) / σ column by column, μ and σ those of the training rows; σ is 1 where a column is constant.

    Args:
        train: `(n, D)` float64, no value missing.
    """

    def __init__(self, train: Tensor) -> None:
        varies = train.amax(0) > train.amin(0)
        self.mean = train.mean(0).where(varies, train[0])
        self.scale = train.std(0, correction=0).where(varies, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        """Standard units, `(m, D)` float32."""
        return ((x - self.mean) / self.scale).float()
