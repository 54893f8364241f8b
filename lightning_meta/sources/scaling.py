"""Scaling of tabular inputs with statistics of the training rows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.tasks.table import NumberFeature

QUANTILES = 1000
EDGE = 1e-7 - 2.0**-52  # probabilities are clipped to [EDGE, 1 - EDGE], as in scikit-learn
ROUNDING = 1e-7  # relative difference of numbers that may be equal apart from rounding


class Standardiser:
    """Standardises columns: (x − μ) / σ with μ and σ of the training rows; σ is 1 for constant columns.

    Args:
        train: Training rows `(n, D)`, float64, without missing values.
    """

    def __init__(self, train: Tensor) -> None:
        varies = train.amax(0) > train.amin(0)
        self.mean = train.mean(0).where(varies, train[0])
        self.scale = train.std(0, correction=0).where(varies, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        """Return rows `(m, D)` in standard units, float32."""
        return ((x - self.mean) / self.scale).float()


def quantiles_of(train: NDArray[np.float64], rows: int) -> list[float]:
    """Return the quantiles of training numbers at evenly spaced levels from 0 to 1.

    Args:
        train: Numbers of the training rows `(n,)`, without missing values.
        rows: Number of training rows, including those with missing values; it is the number of levels, but at most 1000
            levels are used.
    """
    levels = np.linspace(0, 1, min(QUANTILES, rows))
    # By rounding, an interpolated percentile can be slightly below the previous one.
    quantiles = np.maximum.accumulate(np.percentile(train, levels * 100))
    return quantiles.tolist()  # type: ignore[no-any-return]


def ends_of(feature: NumberFeature) -> tuple[float, float]:
    """Return the number up to which F is 0, and the number from which it is 1, for a feature with quantiles.

    For a normal output, numbers that differ from the extremes only by rounding count as extreme. The tolerance is
    relative to the extreme and to its distance from the median. It does not depend on the unit of the column, unlike
    that of scikit-learn, and is small where values are dense, as near the minimum of a column with a long tail.
    """
    low, middle, high = (feature.quantiles[i] for i in (0, len(feature.quantiles) // 2, -1))
    if not feature.normal:
        return low, high
    return low + ROUNDING * min(abs(low), middle - low), high - ROUNDING * min(abs(high), high - middle)


def scaled(numbers: NDArray[np.float64], feature: NumberFeature) -> NDArray[np.float64]:
    """Scale the numbers of a feature; NaN stays NaN.

    The result is (x − μ) / σ; with quantiles it is the interpolated distribution function F(x) of the training numbers,
    or Φ⁻¹(F(x)) for a normal output. With quantiles it equals `QuantileTransformer` of scikit-learn without
    subsampling, except for numbers close to the extremes of the training numbers: its tolerance is 1e-7 in the unit of
    the column.

    Args:
        numbers: Numbers `(n,)`, after subtraction of the offset of the feature.
        feature: Statistics of the training rows.
    """
    if not feature.quantiles:
        return (numbers - feature.mean) / feature.scale
    quantiles = np.asarray(feature.quantiles)
    levels = np.linspace(0, 1, len(quantiles))
    # The mean of interpolations from below and from above assigns repeated quantiles the middle of their levels.
    shares = (np.interp(numbers, quantiles, levels) - np.interp(-numbers, -quantiles[::-1], -levels[::-1])) / 2
    low, high = ends_of(feature)
    shares[numbers >= high] = 1.0
    shares[numbers <= low] = 0.0
    if not feature.normal:
        return shares
    return torch.special.ndtri(torch.from_numpy(shares).clamp(EDGE, 1 - EDGE)).numpy()  # type: ignore[no-any-return]
