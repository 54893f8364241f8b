"""What a method promises that combines the gradients of the tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.checks import switch
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks import Task
from lightning_meta.weightings.base import Weighting


class Aggregator(Weighting, ABC):
    r"""Replaces the gradient of the shared parameters by a direction that it makes of the T tasks' gradients.

    Once per optimiser step, after accumulation and before clipping, `direction` sees the gradient of each task's loss
    on the shared parameters θ_sh, averaged over ranks and accumulated batches, and returns what the optimiser takes as
    the gradient of θ_sh. The tasks' own parameters get the gradient of `forward`: each task that of its own loss, by
    default.

    A step takes a backward pass for each task in the batch, and holds T·P numbers for P shared parameters.

    With `rep_grad` the gradients are those by the shared features of every input of the step, as in MGDA-UB (Sener and
    Koltun 2018, https://arxiv.org/abs/1810.04650, section 3.3): the direction is the one gradient that is sent back
    through what is shared. A step takes one backward pass, as `Equal` does, and holds T·N·F numbers for N inputs of F
    features. A weighted sum of the gradients is the same weighted sum by θ_sh; the weights differ, as inner products
    are those of the features' gradients. The N inputs are those of all ranks and all accumulated batches, whose graphs
    are held until the step, as in one large batch. It needs a method whose shared parameters act through features that
    all tasks share (`MultiHead`, `MixtureOfExperts` and `CGC`), and tasks with inputs in common: tasks that share none
    have inner products of 0.

    Run it:
        By its name, like any weighting; it needs a module that shares parameters:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting PCGrad`.

    Logged:
        - `train/loss`: the sum of the losses, which trains each task's own parameters.

    To write one, implement `direction`; where it is a weighted sum of the gradients, implement `weigh` of
    `GradientWeighting` instead. State belongs in buffers, so that a resumed run continues exactly. All ranks call
    `direction` with the same numbers, and must get the same answer: draw random numbers with
    `lightning_meta.functional.random_bits` from a key and the number of the step.

    Args:
        rep_grad: Whether the gradients are those by the shared features, and not by the shared parameters.
    """

    own_weight: Tensor

    def __init__(self, rep_grad: bool = False) -> None:
        super().__init__()
        switch(rep_grad=rep_grad)
        self.rep_grad = rep_grad

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make buffers; a method with state of its own calls this one, too."""
        self.register_buffer("own_weight", torch.ones(len(tasks)), persistent=False)

    def weights(self) -> Tensor:
        """The weight of each task's loss in the gradient of its own parameters, `(T,)`: ones."""
        return self.own_weight

    @abstractmethod
    def direction(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """What the optimiser is given as the gradient of the shared parameters.

        Args:
            gradients: The gradient of each task's loss, `(T, P)`; 0 for a task that is absent. All are finite. With
                `rep_grad`, P counts the features of all inputs of the step, and differs from step to step.
            losses: The mean loss of each task over the batches of the step that had it, `(T,)`; 0 for an absent task.
            present: Which tasks were in any batch of the step, `(T,)` bool.

        Returns:
            `(P,)`; the sum of the rows is what `Equal` gives.
        """


def check_shape(method: str, returned: object, like: Tensor, of: str) -> None:
    """Refuse what a user's method returned, if it is not one number for each task or parameter.

    Raises:
        UserError: What was returned, and what is expected.
    """
    if not isinstance(returned, Tensor) or returned.shape != like.shape:
        got = f"a tensor of shape {tuple(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
        raise UserError(f"weighting: {method} returned {got}; expected one number for each {of}, {tuple(like.shape)}")


class GradientWeighting(Aggregator, ABC):
    r"""An aggregator whose direction is a weighted sum of the tasks' gradients, $\sum_i w_i g_i$.

    Run it:
        By its name, like any weighting:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting PCGrad`.

    Logged:
        `train/weight/<task>`: $w_i$ of the step, of each task that was in one of its batches.

    To write one, implement `weigh`.

    Args:
        rep_grad: Whether the gradients are those by the shared features; see `Aggregator`.
    """

    def __init__(self, rep_grad: bool = False) -> None:
        super().__init__(rep_grad)
        self.applied = torch.zeros(0)  # the weights of the last step, for the log

    @abstractmethod
    def weigh(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The weights of the step, `(T,)`; arguments as for `direction`."""

    def direction(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The weighted sum of the gradients, `(P,)`; arguments as in `Aggregator`."""
        wide = at_least_float32(gradients)  # weights may be larger than float16 holds
        weights = self.weigh(gradients, losses, present)
        check_shape(f"{type(self).__name__}.weigh", weights, losses, "task")
        self.applied = weights.to(wide)
        return self.applied @ wide
