"""Regression that predicts a normal distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from lightning_meta.errors import UserError
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks.regression import Regression
from lightning_meta.tasks.standardised import StandardisedRegression


class GaussianRegression(Regression):
    r"""Regression whose prediction is the mean μ and the standard deviation s of a normal distribution.

    $$L = \sum_d \tfrac12 \left(\frac{y_d - \mu_d}{s_d}\right)^2 + \log s_d + \tfrac12 \log 2\pi$$

    Predictions have shape `(..., 2 * outputs)`: the means of all dimensions, then their standard deviations. The score
    is the mean squared error of the means.

    Args:
        outputs: Dimension of a target.
        target_mean: Mean of each dimension of the training targets, if targets are standardised; otherwise empty.
        target_scale: Standard deviation of each dimension; otherwise empty.
    """

    numbers = 2

    def __init__(self, outputs: int, target_mean: Sequence[float] = (), target_scale: Sequence[float] = ()) -> None:
        super().__init__(outputs)
        self._of_mean = StandardisedRegression(target_mean, target_scale) if target_scale else Regression(outputs)
        self._target_scale = tuple(target_scale)

    def fitted(self, targets: Tensor) -> Self:
        """Refuse a fixed set of tasks.

        Raises:
            UserError: Always: only a method for episodes makes positive standard deviations of its outputs.
        """
        raise UserError(
            f"{type(self).__name__} is a task of episodes, whose methods predict a mean and a standard deviation; for "
            "a fixed set of tasks use Regression, or derive a task from it"
        )

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the negative log-likelihood `(M,)` of targets `(M, outputs)` under predictions `(M, 2 * outputs)`."""
        mean, deviation = at_least_float32(outputs).chunk(2, -1)
        distance = (targets.to(mean.dtype) - mean) / deviation
        return (distance.square() / 2 + deviation.log() + math.log(2 * math.pi) / 2).sum(-1)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of the means, `(...)`, for targets `(..., M, outputs)`."""
        return self._of_mean.score(outputs.chunk(2, -1)[0], targets)

    def readable(self, outputs: Tensor) -> Tensor:
        """Return means and standard deviations in the units of the targets, `(..., 2 * outputs)`."""
        if not self._target_scale:
            return outputs
        mean, deviation = at_least_float32(outputs).chunk(2, -1)
        means = self._of_mean.readable(mean)
        return torch.cat([means, (deviation * deviation.new_tensor(self._target_scale)).to(means)], -1)


def mean_and_deviation(outputs: Tensor, least: float) -> Tensor:
    r"""Turn the outputs of a network into the mean and the standard deviation of a normal distribution.

    $$(\mu, \rho) \mapsto (\mu, s), \qquad s = s_{\min} + (1 - s_{\min})\, \mathrm{softplus}(\rho)$$

    Args:
        outputs: μ of all dimensions, then ρ, `(..., 2 * outputs)`.
        least: s_min, the least standard deviation, in [0, 1).

    Returns:
        μ of all dimensions, then s, `(..., 2 * outputs)`, float32 or more precise.
    """
    mean, rho = at_least_float32(outputs).chunk(2, -1)
    return torch.cat([mean, least + (1 - least) * functional.softplus(rho)], -1)
