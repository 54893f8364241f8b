"""Weights that the user gives."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.tasks import Task
from lightning_meta.weightings.base import Weighting


class Fixed(Weighting):
    r"""A weighted sum of the losses, $\sum_i w_i L_i$, with the weights as they are given.

    Run it:
        `python scripts/fit.py --config configs/multi_head_multi_mnist.yaml --model.weighting Fixed
        --model.weighting.weights '{left: 1.5, right: 0.5}'`.

    Logged:
        `train/weight/<task>`: as given.

    Args:
        weights: The weight of every task, by its name: at least 0, and not all 0. They are not normalised: the scale
            of `Equal` is a mean of 1.

    Raises:
        UserError: A weight is negative or not finite, or all are 0.
    """

    weight: Tensor

    def __init__(self, weights: dict[str, float]) -> None:
        super().__init__()
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"weights: a weight is a number of at least 0, {name!r} has {weight}")
        if not any(weights.values()):
            raise UserError(f"weights: at least one task needs a weight above 0, got {weights}")
        self.given = dict(weights)

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Put the weights in the order of the tasks.

        Raises:
            UserError: A name is unknown, or a task has no weight.
        """
        unknown = [name for name in self.given if name not in tasks]
        missing = [name for name in tasks if name not in self.given]
        if unknown:
            raise UserError(f"weights: no task is named {unknown[0]!r}; the tasks are {', '.join(tasks)}")
        if missing:
            raise UserError(f"weights: every task needs one, none is given for {', '.join(missing)}")
        self.register_buffer("weight", torch.tensor([float(self.given[name]) for name in tasks]), persistent=False)

    def weights(self) -> Tensor:
        """The weights given, `(T,)`."""
        return self.weight
