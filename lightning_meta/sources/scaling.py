"""Scaling of tabular inputs, learned on training rows alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.tasks.table import NumberFeature

QUANTILES = 1000
EDGE = 1e-7 - 2.0**-52  # of probability: what lies beyond is not told apart in a normal distribution


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


def quantiles_of(train: NDArray[np.float64], rows: int) -> list[float]:
    """The quantiles of training numbers at evenly spaced levels from 0 to 1.

    Args:
        train: `(n,)` the numbers that are there.
        rows: The training rows, missing ones too; there are as many levels, at most 1000.
    """
    levels = np.linspace(0, 1, min(QUANTILES, rows))
    of_levels = np.maximum.accumulate(np.percentile(train, levels * 100))  # rounding may have turned equal ones round
    return of_levels.tolist()  # type: ignore[no-any-return]


def scaled(numbers: NDArray[np.float64], feature: NumberFeature) -> NDArray[np.float64]:
    """Numbers less the feature's offset as inputs, `(n,)`; NaN stays NaN.

    Standard units (x − μ) / σ; or the share F(x) of training numbers below x, interpolated between the quantiles, and
    with a normal output Φ⁻¹(F(x)). Equal to `QuantileTransformer` of scikit-learn without subsampling.
    """
    if not feature.quantiles:
        return (numbers - feature.mean) / feature.scale
    quantiles = np.asarray(feature.quantiles)
    levels = np.linspace(0, 1, len(quantiles))
    # From below and from above: among equal numbers the middle of their levels.
    shares = (np.interp(numbers, quantiles, levels) - np.interp(-numbers, -quantiles[::-1], -levels[::-1])) / 2
    near = 1e-7 if feature.normal else 0.0
    shares[numbers + near >= quantiles[-1]] = 1.0
    shares[numbers - near <= quantiles[0]] = 0.0
    if not feature.normal:
        return shares
    return torch.special.ndtri(torch.from_numpy(shares).clamp(EDGE, 1 - EDGE)).numpy()  # type: ignore[no-any-return]
