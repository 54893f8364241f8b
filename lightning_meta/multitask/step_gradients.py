"""The gradients of the tasks in one optimizer step: collected batch by batch, then combined into a direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.functional.precision import all_finite
from lightning_meta.functional.ranks import mean_over_ranks
from lightning_meta.weightings import Aggregator
from lightning_meta.weightings.base import check_shape


class StepLosses:
    """The mean loss of each task over the batches since the last step that contain it."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._batches = torch.zeros(0)

    def clear(self) -> None:
        """Discard the losses added since the last step."""
        self._sums = None

    def add(self, losses: Tensor, present: Tensor) -> None:
        """Add a batch.

        Args:
            losses: Losses averaged over ranks, `(T,)`, 0 for absent tasks.
            present: Which tasks are in the batch of any rank, `(T,)` bool.
        """
        if self._sums is None:
            self._sums, self._batches = losses.clone(), present.long()  # copies, as later batches are added in place
        else:
            self._sums += losses
            self._batches += present

    @property
    def present(self) -> Tensor:
        """Which tasks were in a batch, `(T,)` bool."""
        return self._batches > 0

    @property
    def values(self) -> Tensor:
        """The mean losses, `(T,)`, 0 for tasks absent from all batches."""
        assert self._sums is not None
        return self._sums / self._batches.clamp(min=1)


def combined(aggregator: Aggregator, gradients: Tensor, losses: StepLosses, of: str) -> Tensor:
    """The direction of a step by an aggregator, `(P,)`.

    Args:
        aggregator: The aggregator.
        gradients: Gradients of the tasks, `(T, P)`, the same on all ranks.
        losses: Losses of the step; they are discarded.
        of: Name of what the P columns are, used in the error message, such as "feature".

    Raises:
        UserError: The direction has another shape; or, on a CPU, where it costs no synchronisation, it is not finite
            although the gradients are.
    """
    with torch.no_grad():
        direction = aggregator.direction(gradients, losses.values, losses.present)
    losses.clear()  # optimizers such as LBFGS run the closure of a step several times
    method = f"{type(aggregator).__name__}.direction"
    check_shape(method, direction, gradients[0], of)
    if direction.is_cpu and not direction.isfinite().all() and gradients.isfinite().all():
        raise UserError(f"weighting: {method} returned a direction that is not finite for finite gradients")
    return direction.to(gradients)


class StepGradients:
    """Sums the T x P gradients of the batches since the last step.

    They are not buffers of the module, since DDP would overwrite them by those of rank 0.

    Attributes:
        combined: Gradients that `direction` has combined, `(T, P)`, until `clear` is called.
        used: For each shared parameter, whether a loss of the step depends on it; valid until the next step begins.
    """

    def __init__(self) -> None:
        self._gradients: Tensor | None = None
        self.combined: Tensor | None = None
        self.used: list[bool] = []
        self.means = StepLosses()

    def clear(self) -> None:
        """Discard the gradients added since the last step, and the combined ones."""
        self._gradients = self.combined = None
        self.means.clear()

    def add(self, gradients: Tensor, losses: Tensor, present: Tensor, used: Sequence[bool]) -> None:
        """Add a batch.

        Args:
            gradients: Gradients of this rank's batch, scaled for accumulation, `(T, P)`; the tensor is kept.
            losses: Losses averaged over ranks, `(T,)`, 0 for absent tasks.
            present: Which tasks are in the batch of any rank, `(T,)` bool.
            used: For each shared parameter, whether a loss of this rank's batch depends on it.
        """
        if self._gradients is None:
            self._gradients, self.used = gradients, list(used)
        else:
            # In place: with gradient accumulation a second T x P tensor would double the memory.
            self._gradients += gradients
            self.used = [before or now for before, now in zip(self.used, used, strict=True)]
        self.means.add(losses, present)

    def direction(self, aggregator: Aggregator) -> Tensor | None:
        """The combined direction of the step, `(P,)`, the same on all ranks; it resets the sums.

        Returns:
            The direction; None if no batch was added. If some gradients are not finite, it is their sum, which is not
            finite either, so that a gradient scaler skips the step; the aggregator is not called.

        Raises:
            UserError: The direction has another shape.
        """
        if self._gradients is None:
            return None
        # Averaged before combining: aggregators are not linear, and all ranks must take the same step.
        gradients = mean_over_ranks(self._gradients)
        self._gradients, self.combined = None, gradients
        if not all_finite(gradients):
            return gradients.sum(0)
        return combined(aggregator, gradients, self.means, "shared parameter")


def write_gradients(parameters: Sequence[nn.Parameter], gradient: Tensor, used: Sequence[bool]) -> None:
    """Add a flat gradient `(P,)` to `.grad` of the parameters, which holds that of terms a user has added to the loss.

    Unused parameters without a gradient get none, since the optimizer would move them by weight decay or momentum; with
    several ranks all parameters have one.
    """
    for p, piece, needed in zip(parameters, gradient.split([p.numel() for p in parameters]), used, strict=True):
        if p.grad is None:
            if not needed:
                continue
            p.grad = torch.zeros_like(p)
        p.grad.add_(piece.view_as(p))
