"""The gradients of tasks in one step of the optimiser: collected batch by batch, then made into a direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_meta.functional.precision import all_finite
from lightning_meta.functional.ranks import mean_over_ranks
from lightning_meta.weightings import Aggregator
from lightning_meta.weightings.aggregator import check_shape


class StepLosses:
    """The mean loss of each task over the batches since the last step that had it."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._batches = torch.zeros(0)

    def clear(self) -> None:
        """Forget what was added since the last step."""
        self._sums = None

    def add(self, losses: Tensor, present: Tensor) -> None:
        """Take in a batch.

        Args:
            losses: The means over all ranks, `(T,)`, 0 for a task that is absent.
            present: Which tasks are in the batch of any rank, `(T,)` bool.
        """
        if self._sums is None:
            self._sums, self._batches = losses.clone(), present.long()
        else:
            self._sums += losses
            self._batches += present

    @property
    def present(self) -> Tensor:
        """Which tasks were in a batch, `(T,)` bool."""
        return self._batches > 0

    @property
    def values(self) -> Tensor:
        """The means, `(T,)`, 0 for a task that no batch had."""
        assert self._sums is not None
        return self._sums / self._batches.clamp(min=1)


def combined(aggregator: Aggregator, gradients: Tensor, losses: StepLosses, of: str) -> Tensor:
    """The direction that an aggregator makes of a step, `(P,)`.

    Args:
        aggregator: What combines.
        gradients: Those of the tasks, `(T, P)`, the same on all ranks.
        losses: Those of the step.
        of: What P counts, for the error.

    Raises:
        UserError: The aggregator's answer has another shape.
    """
    with torch.no_grad():
        direction = aggregator.direction(gradients, losses.values, losses.present)
    check_shape(f"{type(aggregator).__name__}.direction", direction, gradients[0], of)
    return direction.to(gradients)


class StepGradients:
    """Sums the T x P gradients of the batches since the last step.

    They are no buffers of the module: DDP would overwrite them with those of rank 0.

    Attributes:
        combined: The gradients that `direction` has combined, `(T, P)`, until `clear` is called.
        used: For each shared parameter, whether a loss of the step depends on it; kept until the next step begins.
    """

    def __init__(self) -> None:
        self._gradients: Tensor | None = None
        self.combined: Tensor | None = None
        self.used: list[bool] = []
        self.means = StepLosses()

    def clear(self) -> None:
        """Forget what was added since the last step, and what was combined in it."""
        self._gradients = self.combined = None
        self.means.clear()

    def add(self, gradients: Tensor, losses: Tensor, present: Tensor, used: Sequence[bool]) -> None:
        """Take in a batch.

        Args:
            gradients: Those of this rank's batch, as they count in the step, `(T, P)`; they may be kept.
            losses: The means over all ranks, `(T,)`, 0 for a task that is absent.
            present: Which tasks are in the batch of any rank, `(T,)` bool.
            used: For each shared parameter, whether a loss of this rank's batch depends on it.
        """
        if self._gradients is None:
            self._gradients, self.used = gradients, list(used)
        else:
            self._gradients += gradients
            self.used = [before or now for before, now in zip(self.used, used, strict=True)]
        self.means.add(losses, present)

    def direction(self, aggregator: Aggregator) -> Tensor | None:
        """What the aggregator makes of the step, on all ranks alike, `(P,)`; nothing is left for the next step.

        Returns:
            The direction; None where no batch was added; the sum of the gradients where some are not finite, which
            is not finite either: a gradient scaler then skips the step, and the aggregator never sees it.

        Raises:
            UserError: The aggregator's answer has another shape.
        """
        if self._gradients is None:
            return None
        gradients = mean_over_ranks(self._gradients)
        self._gradients, self.combined = None, gradients
        if not all_finite(gradients):
            return gradients.sum(0)
        return combined(aggregator, gradients, self.means, "shared parameter")


def write_gradients(parameters: Sequence[nn.Parameter], gradient: Tensor, used: Sequence[bool]) -> None:
    """Put a flat gradient `(P,)` into `.grad` of the parameters, one after the other, in place of what is there.

    Where a parameter was not used and has no gradient, it gets none: the optimiser would move it, by weight decay or
    momentum. On several ranks all have one.
    """
    for p, piece, needed in zip(parameters, gradient.split([p.numel() for p in parameters]), used, strict=True):
        if p.grad is None:
            if not needed:
                continue
            p.grad = torch.empty_like(p)
        p.grad.copy_(piece.view_as(p))
