"""Constant weights chosen by the user."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_meta.tasks import Task
from lightning_meta.weightings.base import Weighting
from lightning_meta.weightings.by_name import check_weights, in_order


class Fixed(Weighting):
    r"""A weighted sum of the losses, $\sum_i w_i L_i$, with constant weights chosen by the user.

    Run it:
        `python scripts/fit.py --config configs/multi_head_multi_mnist.yaml --model.weighting Fixed
        --model.weighting.weights '{left: 1.5, right: 0.5}'`.

    Logged:
        `train/weight/<task>`: the constant $w_i$.

    Args:
        weights: Weight of every task by name, >= 0 and not all 0. Weights are not normalised; with a mean of 1 they
            have the scale of `Equal`.

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
        """The constant weights, `(T,)`, in the order of the tasks."""
        return self.weight
