"""What a loss weighting promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from lightning_meta.configuration import Described
from lightning_meta.tasks import Task

LARGEST_WEIGHT = 1e4
"""The bound of weights that are learned, which would grow without end for a task whose loss falls to 0."""


class Weighting(Described, nn.Module, ABC):
    r"""Makes one objective of the losses of T tasks: $\sum_i w_i L_i$ over the tasks in the batch.

    All weightings but `TorchJD` and `DBMTL` are on the scale of `Equal`, whose weights are 1, so that a learning rate
    means the same under each.
    Whatever changes in training is a parameter or a buffer, so that a resumed run goes on exactly.

    Run it:
        By its name, in any configuration of several tasks but those of `Independent`:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml --model.weighting Uncertainty`.

    Logged:
        - `train/weight/<task>`: $w_i$ of the step; by all but `Equal`, `TorchJD` and `DBMTL`.
        - `train/loss`: the objective, so weighted. `train/loss/<task>` and everything in validation and testing is not.

    A weighting of your own gives `configure` and `weights`; one that needs the gradients of the tasks is an
    `Aggregator`, one whose weights depend on the losses of the same batch a `LossWeighting`. What it keeps of losses it
    takes in `observe`, `observe_step` and `end_epoch`, which see the same numbers on all ranks; `forward` sees those of
    its own rank.

    Attributes:
        looks_again: Whether the losses of a batch are computed once more after the optimiser's step, for
            `observe_step`. It costs a forward pass.
    """

    looks_again = False

    @abstractmethod
    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Make parameters and buffers; called once, when the tasks are known and before training.

        Args:
            tasks: The T tasks by name, in the order of every vector over tasks.

        Raises:
            UserError: The arguments do not fit the tasks.
        """

    @abstractmethod
    def weights(self) -> Tensor:
        """The weights of the present step, `(T,)`."""

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        r"""The objective $\sum_i w_i L_i$ over the tasks present; a method may add terms of its own.

        Args:
            losses: The mean loss of each task, `(T,)`, 0 for a task that is absent.
            present: Which tasks are in the batch, `(T,)` bool.

        Returns:
            A scalar.
        """
        return (self.weights().to(losses) * losses * present).sum()

    def observe(self, losses: Tensor, present: Tensor) -> None:
        """Take note of a training step that is over.

        Args:
            losses: Detached means over all ranks, `(T,)`.
            present: Which tasks were in the batch of any rank, `(T,)` bool.
        """

    def observe_step(self, losses: Tensor, present: Tensor) -> None:
        """Take note of what an optimiser step did to the losses of its last batch; called if `looks_again`.

        Args:
            losses: Detached means over all ranks after the step, `(T,)`.
            present: Which tasks were in that batch, `(T,)` bool.
        """

    def end_epoch(self) -> None:
        """Take note of a training epoch that is over."""
