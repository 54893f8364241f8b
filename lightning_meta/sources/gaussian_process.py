"""Functions drawn from a Gaussian process: regression tasks whose optimal prediction is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_meta.batches import Examples
from lightning_meta.checks import positive
from lightning_meta.data.source import TaskGenerator
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import uniform


class GaussianProcess(TaskGenerator):
    r"""Regression tasks y = f(x) + ε, with f drawn from a Gaussian process (Garnelo et al. 2018, section 4.1).

    $$k(x, x') = a^2 \exp\left(-\frac{(x - x')^2}{2 \ell^2}\right), \qquad \varepsilon \sim N(0, \sigma^2)$$

    The length scale is the same in all tasks. `posterior` returns the exact prediction, which no method can beat
    on average. The paper does not state the constants; the defaults are those of its published code.

    At a glance:
        - Classes: any number of functions (regression).
        - Examples: any number.
        - From: generated on demand.

    Args:
        length_scale: Length scale ℓ, > 0.
        amplitude: Amplitude a, > 0.
        noise: Standard deviation σ of the noise, at least a thousandth of the amplitude.
        x_range: Range of the inputs, which are drawn uniformly.

    Raises:
        UserError: The range is empty, a number is not positive, or the noise is numerically too small.
    """

    input_shape = (1,)
    outputs = 1

    def __init__(
        self,
        length_scale: float = 0.4,
        amplitude: float = 1.0,
        noise: float = 0.02,
        x_range: tuple[float, float] = (-2.0, 2.0),
    ) -> None:
        positive(length_scale=length_scale, amplitude=amplitude, noise=noise)
        if not x_range[0] <= x_range[1]:
            raise UserError(f"GaussianProcess: x_range is {x_range}, expected (low, high) with low <= high")
        if noise < 1e-3 * amplitude:
            raise UserError(f"noise: at least a thousandth of the amplitude is needed, {amplitude / 1000}, got {noise}")
        self.length_scale, self.amplitude, self.noise, self.x_range = length_scale, amplitude, noise, x_range

    def generate(self, keys: Tensor, shots: int, queries: int) -> tuple[Examples, Examples]:
        """Draw T functions and K + Q points on each: `x` and `y` are `(T, K, 1)` and `(T, Q, 1)`, float32."""
        count = shots + queries
        low, high = self.x_range
        # Round the inputs to float32 first, so that the targets are exact for the returned inputs.
        numbers = uniform(keys, 3 * count)
        x = (low + (high - low) * numbers[:, :count]).float().double().unsqueeze(-1)
        u, v = numbers[:, count:].split(count, 1)
        normal = (-2 * (1 - u).log()).sqrt() * (2 * math.pi * v).cos()  # Box and Muller 1958; 1 - u is never 0
        root = torch.linalg.cholesky(self._covariance(x))
        y = (root * normal.unsqueeze(-2)).sum(-1, keepdim=True)
        x, y = x.float(), y.float()
        return Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:])

    def posterior(self, support: Examples, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the exact distribution of targets at new inputs, given a support set.

        $$\mu = k_*^\top (K + \sigma^2 I)^{-1} y, \qquad s^2 = a^2 + \sigma^2 - k_*^\top (K + \sigma^2 I)^{-1} k_*$$

        (Rasmussen and Williams 2006, equations 2.25 and 2.26, with the noise of the target added).

        Args:
            support: Support set, `x` and `y` of shape `(..., K, 1)`.
            x: New inputs, `(..., M, 1)`.

        Returns:
            Mean and standard deviation, `(..., M, 1)` float64.
        """
        support_x, y, x = support.x.double(), support.y.double(), x.double()
        root = torch.linalg.cholesky(self._covariance(support_x))
        cross = self._kernel(support_x, x)
        mean = cross.mT @ torch.cholesky_solve(y, root)
        explained = torch.linalg.solve_triangular(root, cross, upper=False).square().sum(-2).unsqueeze(-1)
        return mean, (self.amplitude**2 + self.noise**2 - explained).sqrt()

    def _covariance(self, x: Tensor) -> Tensor:
        """Return the covariance `(..., n, n)` of noisy targets at inputs `(..., n, 1)`."""
        return self._kernel(x, x) + self.noise**2 * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """Return k between inputs `(..., n, 1)` and `(..., m, 1)`, `(..., n, m)`."""
        return self.amplitude**2 * (-((a - b.mT) / self.length_scale).square() / 2).exp()
