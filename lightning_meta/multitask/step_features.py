"""The gradients of the tasks with respect to shared features, in one optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.batches import Common, Consecutive
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import all_finite, at_least_float32, without_autocast
from lightning_meta.functional.ranks import columns_of_ranks, sum_over_ranks, world_size
from lightning_meta.multitask.step_gradients import StepLosses, combined
from lightning_meta.weightings import Aggregator


class _Copies(NamedTuple):
    """Features of a batch `(B, ...)`, copies of the rows that each task uses `(n, ...)`, and these rows."""

    features: Tensor
    of_tasks: Tensor
    rows: Mapping[str, Tensor]


class FeatureGradients(NamedTuple):
    """The gradients of the tasks in one batch.

    Attributes:
        features: Shared features, with their graph.
        gradients: Gradients of the T tasks with respect to each of them, `(T, B * ...)`.
        own: For each task, the gradients of its loss with respect to its own parameters, None if it does not depend on
            them.
    """

    features: list[Tensor]
    gradients: list[Tensor]
    own: list[list[Tensor | None]]


class StepFeatures:
    """Collects the tasks' gradients with respect to the shared features of the batches since the last step.

    Each task gets a copy of the features. Since a loss only depends on the copy of its task, one backward pass of the
    sum of the losses through the heads gives the gradients of all tasks. The features of a batch are kept with their
    graph until the step backpropagates one gradient through it.

    Attributes:
        records: Whether the forward pass is recorded.
        used: For each shared parameter, whether the features of the step depend on it.

    Args:
        method: Name of the module's class, used in messages.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self.records = False
        self.used: list[bool] = []
        self.means = StepLosses()
        self.clear()

    def clear(self) -> None:
        """Discard what was added since the last step."""
        self._copies: list[_Copies] = []  # of the current batch
        self._features: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self.means.clear()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """A context for the forward pass of the batch that `add` processes next."""
        self._copies, self.records = [], True
        try:
            yield
        finally:
            self.records = False

    def copies(self, features: Tensor, rows: Mapping[str, Tensor]) -> tuple[Tensor, Consecutive]:
        """Copies of the features for each task, one task after the other, and the rows of each task in them.

        Args:
            features: Features `(B, ...)`.
            rows: Indices of the rows of each task, `(n_i,)` int64, by its name.
        """
        counts, detached = [len(i) for i in rows.values()], features.detach()
        if isinstance(rows, Common):
            copies = detached.repeat(len(rows), *[1] * (detached.dim() - 1))
        else:
            copies = detached[torch.cat(list(rows.values()))]
        copies.requires_grad_()
        self._copies.append(_Copies(features, copies, rows))
        places = torch.arange(len(copies), device=features.device).split(counts)
        return copies, Consecutive(zip(rows, places, strict=True))

    def of_batch(
        self,
        losses: Tensor,
        names: Sequence[str],
        shared: Sequence[Tensor],
        own: Sequence[Sequence[Tensor]],
        scale: Tensor | None,
    ) -> FeatureGradients:
        """Differentiate the losses of the recorded batch.

        Args:
            losses: Losses of this rank's batch, any number of them.
            names: Names of the T tasks.
            shared: The shared parameters.
            own: Parameters of each task that are not shared.
            scale: Loss scale, as in `task_gradients`.

        Raises:
            UserError: No features were recorded, each task has its own inputs, or shared parameters are used after the
                features.
        """
        copies, self._copies = self._copies, []
        if not copies:
            raise UserError(
                f"weighting: rep_grad needs features that all tasks share, and {self._method} has none; "
                "leave rep_grad out, use MultiHead, MixtureOfExperts or CGC, or call `shared_features` in its forward"
            )
        if len(names) > 1 and any(isinstance(c.rows, Consecutive) for c in copies):
            raise UserError(
                "weighting: rep_grad compares the tasks' gradients on the features of the same inputs, but here each "
                "task has different inputs, so that all inner products are 0; leave rep_grad out"
            )
        flat = [p for parameters in own for p in parameters]
        with without_autocast(losses.device.type):
            total = losses.sum() if scale is None else losses.sum() * scale
            scaled = torch.autograd.grad(total, [*(c.of_tasks for c in copies), *flat, *shared], allow_unused=True)
        gradients = [g if g is None or scale is None else at_least_float32(g) / scale for g in scaled]
        if any(g is not None for g in gradients[len(copies) + len(flat) :]):
            raise UserError(
                "weighting: rep_grad needs features through which all shared parameters act, but some of "
                f"{self._method} are used after them; leave rep_grad out"
            )
        by_task = []
        for c, gradient in zip(copies, gradients, strict=False):
            of_copies = torch.zeros_like(c.of_tasks) if gradient is None else gradient
            by_task.append(_by_task(at_least_float32(of_copies), c, names))
        own_gradients = iter(gradients[len(copies) : len(copies) + len(flat)])
        return FeatureGradients(
            [c.features for c in copies], by_task, [[next(own_gradients) for _ in parameters] for parameters in own]
        )

    def add(self, of_batch: FeatureGradients, means: Tensor, present: Tensor) -> None:
        """Add a batch.

        Args:
            of_batch: Result of `of_batch`, whose gradients may have been scaled since.
            means: Losses averaged over ranks, `(T,)`, 0 for absent tasks.
            present: Which tasks are in the batch of any rank, `(T,)` bool.
        """
        self.means.add(means, present)
        self._features += of_batch.features
        self._gradients += of_batch.gradients

    def direction(self, aggregator: Aggregator, shared: Sequence[Tensor], scale: Tensor | None) -> Tensor | None:
        """The gradient of the shared parameters, `(P,)`, the same on all ranks; it resets the collected batches.

        The aggregator receives gradients for the features of all batches of the step and of all ranks.

        Args:
            aggregator: The aggregator.
            shared: The shared parameters, with P entries in total.
            scale: Loss scale, which multiplies the gradient.

        Returns:
            The gradient; None if no batch was added. NaN if gradients of the tasks are not finite, so that a gradient
            scaler skips the step; the aggregator is not called.

        Raises:
            UserError: The direction has another shape.
        """
        if not self._gradients:
            return None
        batches, ranks = self._gradients, world_size()
        local = torch.cat(batches, 1) if len(batches) > 1 else batches[0]
        # Losses are means over ranks, hence the divisor. All ranks get the columns of all ranks, and `own` selects
        # those of this rank.
        gradients, own = columns_of_ranks(local / ranks if ranks > 1 else local)
        features, self._features, self._gradients = self._features, [], []
        if not all_finite(gradients):
            self.used = [True] * len(shared)
            return torch.cat([p.new_full((p.numel(),), torch.nan) for p in shared])
        direction = combined(aggregator, gradients, self.means, "feature")[own]
        pieces = (direction if scale is None else direction * scale).split([f.numel() for f in features])
        back = [piece.view_as(f).to(f.dtype) for piece, f in zip(pieces, features, strict=True)]
        # The only backward pass through the shared part; the sum over ranks is the gradient of the whole batch.
        by_parameter = torch.autograd.grad(features, shared, back, allow_unused=True)
        self.used = [g is not None for g in by_parameter]
        flat = [p.new_zeros(p.numel()) if g is None else g.flatten() for p, g in zip(shared, by_parameter, strict=True)]
        return sum_over_ranks(torch.cat(flat))


def _by_task(gradient: Tensor, copies: _Copies, names: Sequence[str]) -> Tensor:
    """The gradients of T tasks with respect to features `(B, ...)`, `(T, B * ...)`: 0 in rows that a task does not use.

    Args:
        gradient: Gradient with respect to the copies, `(n, ...)`.
        copies: The copies and their rows.
        names: Names of the T tasks.
    """
    rows, count = copies.rows, len(copies.features)
    if isinstance(rows, Common) and list(rows) == list(names):
        return gradient.reshape(len(names), -1)
    numbers = {name: i for i, name in enumerate(names)}
    places = torch.cat([numbers[name] * count + i for name, i in rows.items()])
    all_rows = gradient.new_zeros(len(names) * count, *gradient.shape[1:])
    return all_rows.index_add_(0, places, gradient).reshape(len(names), -1)
