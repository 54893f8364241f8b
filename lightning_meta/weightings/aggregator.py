"""The base classes of methods that combine the gradients of the tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.checks import switch
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks import Task
from lightning_meta.weightings.base import Weighting, check_shape


class Aggregator(Weighting, ABC):
    r"""Replaces the gradient of the shared parameters by a direction computed from the T tasks' gradients.

    Once per optimizer step, after accumulation and before clipping, `direction` receives the gradient of each task's
    loss with respect to the shared parameters θ_sh, averaged over ranks and accumulated batches, and returns the
    gradient of θ_sh for the optimizer. The other parameters get the gradient of `forward`, by default that of their
    task's loss.

    A step takes one backward pass per task in the batch, and memory for T·P numbers with P shared parameters.

    With `rep_grad`, gradients are taken with respect to the shared features of all inputs of the step, as in MGDA-UB
    (Sener and Koltun 2018, https://arxiv.org/abs/1810.04650, section 3.3): the direction is backpropagated once through
    the shared part. A step takes one backward pass, like `Equal`, and memory for T·N·F numbers with N inputs of F
    features. A weighted sum of these gradients gives the same weighted sum for θ_sh, but the weights differ, since they
    are computed from inner products of the features' gradients. The N inputs are those of all ranks and all accumulated
    batches, whose graphs are kept until the step, as for one large batch. This needs a method whose shared parameters
    act through shared features (`MultiHead`, `MixtureOfExperts` and `CGC`), and tasks with common inputs: otherwise
    inner products are 0.

    Run it:
        By its name, like any weighting, for a module that shares parameters: `python scripts/fit.py --config
        configs/multi_head_glyphs.yaml --model.weighting PCGrad`.

    Logged:
        - `train/loss`: sum of the losses; task-specific parameters follow its gradient.

    To add one, implement `direction`, or `weigh` of `GradientWeighting` if the direction is a weighted sum of the
    gradients. Keep state in buffers, so that a resumed run continues exactly. All ranks call `direction` with the same
    values and must get the same result: draw random numbers with `lightning_meta.functional.random_bits` from a key and
    the number of the step.

    Args:
        rep_grad: Whether to use gradients with respect to shared features instead of shared parameters.
    """

    own_weight: Tensor

    def __init__(self, rep_grad: bool = False) -> None:
        super().__init__()
        switch(rep_grad=rep_grad)
        self.rep_grad = rep_grad

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make buffers; subclasses with their own state also call this method."""
        self.register_buffer("own_weight", torch.ones(len(tasks)), persistent=False)

    def weights(self) -> Tensor:
        """The weights of the losses in the gradients of parameters that are not shared, `(T,)`: ones."""
        return self.own_weight

    @abstractmethod
    def direction(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The gradient of the shared parameters for the optimizer.

        Args:
            gradients: Gradients of the tasks' losses, `(T, P)`, finite; 0 for absent tasks. With `rep_grad`, P counts
                the features of all inputs of the step and varies between steps.
            losses: Mean loss of each task over the batches of the step that contain it, `(T,)`; 0 for absent tasks.
            present: Which tasks were in any batch of the step, `(T,)` bool.

        Returns:
            The direction `(P,)`; `Equal` corresponds to the sum of the rows.
        """


class GradientWeighting(Aggregator, ABC):
    r"""An aggregator whose direction is a weighted sum of the tasks' gradients, $\sum_i w_i g_i$.

    Run it:
        By its name, like any weighting:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting PCGrad`.

    Logged:
        `train/weight/<task>`: $w_i$ of the step, for each task in one of its batches.

    To add one, implement `weigh`.

    Args:
        rep_grad: Whether to use gradients with respect to shared features; see `Aggregator`.
    """

    def __init__(self, rep_grad: bool = False) -> None:
        super().__init__(rep_grad)
        self.applied = torch.zeros(0)  # the weights of the last step, for the log

    @abstractmethod
    def weigh(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The weights of the step, `(T,)`; arguments as for `direction`."""

    def direction(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The weighted sum of the gradients, `(P,)`; arguments as for `Aggregator.direction`."""
        wide = at_least_float32(gradients)  # weights may overflow float16
        weights = self.weigh(gradients, losses, present)
        check_shape(f"{type(self).__name__}.weigh", weights, losses, "task")
        self.applied = weights.to(wide)
        return self.applied @ wide
