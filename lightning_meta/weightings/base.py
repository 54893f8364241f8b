"""The base class of loss weightings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from lightning_meta.describing import Described
from lightning_meta.errors import UserError
from lightning_meta.tasks import Task

LARGEST_WEIGHT = 1e4
"""Upper bound of learned weights, which would diverge for a task whose loss approaches 0."""


class Weighting(Described, nn.Module, ABC):
    r"""Combines the losses of T tasks into one objective: $\sum_i w_i L_i$ over the tasks in the batch.

    All weightings except `TorchJD` and `DBMTL` have the scale of `Equal`, whose weights are 1, so that a learning rate
    means the same for each. Everything that changes in training is a parameter or a buffer, so that a resumed run
    continues exactly.

    Run it:
        By its name, in any multi-task configuration except those of `Independent`: `python scripts/fit.py --config
        configs/multi_head_glyphs.yaml --model.weighting Uncertainty`.

    Logged:
        - `train/weight/<task>`: $w_i$ of the step; logged by all but `Equal`, `TorchJD` and `DBMTL`.
        - `train/loss`: the weighted objective. `train/loss/<task>` and all losses in validation and testing are
          unweighted.

    To add a weighting, implement `configure` and `weights`. If it needs the gradients of the tasks, subclass
    `Aggregator`; if the weights depend on the losses of the same batch, `LossWeighting`. Update state only in
    `observe`, `observe_step` and `end_epoch`, which receive the same values on all ranks; `forward` receives the losses
    of its own rank.

    Attributes:
        looks_again: Whether to compute the losses of a batch again after the optimizer step, for `observe_step`. This
            costs a forward pass.
    """

    looks_again = False

    @abstractmethod
    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make parameters and buffers; called once, before training, when the tasks are known.

        Args:
            tasks: The T tasks by name, in the order of all vectors over tasks.

        Raises:
            UserError: The arguments do not fit the tasks.
        """

    @abstractmethod
    def weights(self) -> Tensor:
        """The weights of the current step, `(T,)`; another shape is refused."""

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        r"""The objective $\sum_i w_i L_i$ over the present tasks; subclasses may add terms.

        Args:
            losses: Mean loss of each task, `(T,)`, 0 for absent tasks.
            present: Which tasks are in the batch, `(T,)` bool.

        Returns:
            The objective, a scalar.
        """
        return weighted(self.weights(), losses, present, f"{type(self).__name__}.weights")

    def observe(self, losses: Tensor, present: Tensor) -> None:
        """Update state after the losses of a batch are computed, before its backward pass.

        Args:
            losses: Detached losses averaged over ranks, `(T,)`.
            present: Which tasks were in the batch of any rank, `(T,)` bool.
        """

    def observe_step(self, losses: Tensor, present: Tensor) -> None:
        """Update state from the losses of the last batch after the optimizer step; called if `looks_again`.

        Args:
            losses: Detached losses after the step, averaged over ranks, `(T,)`.
            present: Which tasks were in that batch, `(T,)` bool.
        """

    def end_epoch(self) -> None:
        """Update state after a training epoch."""


def weighted(weights: Tensor, losses: Tensor, present: Tensor, method: str) -> Tensor:
    r"""The objective $\sum_i w_i L_i$ over the present tasks.

    Args:
        weights: Weight of each task, `(T,)`.
        losses: Mean loss of each task, `(T,)`.
        present: Which tasks are in the batch, `(T,)` bool.
        method: What returned the weights, such as `MyWeighting.weights`, for the error.

    Raises:
        UserError: The weights have another shape.
    """
    check_shape(method, weights, losses, "task")
    if not weights.requires_grad:  # `observe` may change them in place before the backward pass, which needs them
        weights = weights.clone()
    return (weights.to(losses) * losses * present).sum()


def check_shape(method: str, returned: object, like: Tensor, of: str) -> None:
    """Refuse a result of a user's method with a wrong shape.

    Raises:
        UserError: The received and the expected shape.
    """
    if not isinstance(returned, Tensor) or returned.shape != like.shape:
        got = f"a tensor of shape {tuple(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
        raise UserError(f"weighting: {method} returned {got}; expected one number for each {of}, {tuple(like.shape)}")
