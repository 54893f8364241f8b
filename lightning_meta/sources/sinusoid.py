"""Sine waves: the regression tasks of MAML."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_meta.batches import Examples
from lightning_meta.data.source import TaskGenerator
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import uniform


class Sinusoid(TaskGenerator):
    """Regression tasks y = A sin(x − φ) with an amplitude and a phase per task (Finn et al. 2017, section 5.1).

    The paper states the ranges but not the sign of φ; the minus sign is that of its published code.

    At a glance:
        - Classes: any number of sine waves (regression).
        - Examples: any number.
        - From: generated on demand.

    Args:
        amplitude: Range of the amplitude A, drawn uniformly.
        phase: Range of the phase φ in radians, drawn uniformly.
        x_range: Range of the inputs x, drawn uniformly.

    Raises:
        UserError: The lower end of a range is above its upper end.
    """

    input_shape = (1,)
    outputs = 1

    def __init__(
        self,
        amplitude: tuple[float, float] = (0.1, 5.0),
        phase: tuple[float, float] = (0.0, math.pi),
        x_range: tuple[float, float] = (-5.0, 5.0),
    ) -> None:
        for name, bounds in (("amplitude", amplitude), ("phase", phase), ("x_range", x_range)):
            if not bounds[0] <= bounds[1]:
                raise UserError(f"Sinusoid: {name} is {bounds}, expected (low, high) with low <= high")
        self.amplitude, self.phase, self.x_range = amplitude, phase, x_range

    def generate(self, keys: Tensor, shots: int, queries: int) -> tuple[Examples, Examples]:
        """Draw T waves and K + Q points on each: `x` and `y` are `(T, K, 1)` and `(T, Q, 1)`, float32."""
        numbers = uniform(keys, 2 + shots + queries)

        def scale(u: Tensor, bounds: tuple[float, float]) -> Tensor:
            return bounds[0] + (bounds[1] - bounds[0]) * u

        amplitude, phase = scale(numbers[:, :1], self.amplitude), scale(numbers[:, 1:2], self.phase)
        x = scale(numbers[:, 2:], self.x_range)
        y = amplitude * torch.sin(x - phase)
        x, y = x.unsqueeze(-1).float(), y.unsqueeze(-1).float()
        return Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:])
