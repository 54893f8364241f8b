"""Weights that the user gives."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_meta.tasks import Task
from lightning_meta.weightings.base import Weighting
from lightning_meta.weightings.by_name import check_weights, in_order


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
        check_weights("weights", weights)
        self.given = dict(weights)

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Put the weights in the order of the tasks.

        Raises:
            UserError: A name is unknown, or a task has no weight.
        """
        self.register_buffer("weight", in_order("weights", self.given, tasks), persistent=False)

    def weights(self) -> Tensor:
        """The weights given, `(T,)`."""
        return self.weight
