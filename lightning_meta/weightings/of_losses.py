"""The base class of weightings whose weights are a function of the losses of the same batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.functional.precision import at_least_float32
from lightning_meta.functional.ranks import mean_over_ranks
from lightning_meta.tasks import Task
from lightning_meta.weightings.base import Weighting, check_shape, weighted

EPSILON = 1e-8
"""Added to a loss before its logarithm is taken, in FAMO and DB-MTL."""


class LossWeighting(Weighting, ABC):
    r"""A weighting that minimises a function f of the losses, with the weights $w_i = \partial f / \partial L_i$.

    The weights are computed from the mean losses over all ranks, so that training on several ranks equals training in
    one process, and are constants in the backward pass.

    Run it:
        By its name, like any weighting: `python scripts/fit.py --config configs/multi_head_glyphs.yaml
        --model.weighting GeometricMean`.

    Logged:
        - `train/weight/<task>`: $w_i$ of the step.
        - `train/loss`: $\sum_i w_i L_i$.

    To add one, implement `weigh`. If a method takes logarithms of losses, training stops with an error at a negative
    loss.
    """

    def __init__(self) -> None:
        super().__init__()
        self.applied = torch.zeros(0)  # the weights of the last step

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Start with weights of 1; subclasses with their own state also call this method."""
        self.applied = torch.ones(len(tasks))

    @abstractmethod
    def weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        """The weights of the step, `(T,)`.

        Args:
            losses: Mean loss of each task over all ranks, `(T,)`, 0 for absent tasks; at least float32, without a
                gradient.
            present: Which tasks are in the batch, `(T,)` bool; at least one.
        """

    def weights(self) -> Tensor:
        """The weights of the last step, `(T,)`; ones before the first step."""
        return self.applied

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The weighted sum of the losses; arguments as in `Weighting`."""
        with torch.no_grad():
            weights = self.weigh(at_least_float32(mean_over_ranks(losses)), present)
            check_shape(method := f"{type(self).__name__}.weigh", weights, losses, "task")  # before it is kept
            self.applied = kept(self.applied, weights)
        return weighted(weights, losses, present, method)


@torch.no_grad()
def kept(place: Tensor, values: Tensor) -> Tensor:
    """Store values in an attribute for use after the step, in place if shape, dtype and device are the same.

    A captured CUDA graph writes to the same memory in every replay, so the attribute must keep its memory.

    Args:
        place: Current value of the attribute.
        values: Values of this step.

    Returns:
        New value of the attribute: `place`, overwritten, or a copy of `values`.
    """
    fits = (place.shape, place.dtype, place.device) == (values.shape, values.dtype, values.device)
    if fits and place.is_inference() == torch.is_inference_mode_enabled():
        return place.copy_(values)
    return values.detach().clone()


def not_negative(losses: Tensor) -> Tensor:
    """Replace negative losses, which have no logarithm, by NaN, which stops training."""
    return torch.where(losses < 0, torch.nan, losses)
