"""The gradients of tasks by the features that they share, in one step of the optimiser."""

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
    """Features of a batch `(B, ...)`, and those that each task looks at, `(n, ...)`, with the rows in `features`."""

    features: Tensor
    of_tasks: Tensor
    rows: Mapping[str, Tensor]


class StepFeatures:
    """Collects the tasks' gradients by the shared features of the batches since the last step.

    Each task gets a copy of the features. A loss depends on its task's copy alone, so that one backward pass of the sum
    of the losses, through the heads, gives the gradients of all tasks. The features of a batch are kept with the graph
    that made them, until the step sends one gradient back through it.

    Attributes:
        records: Whether a forward pass is recorded.
        used: For each shared parameter, whether the features of the step depend on it.

    Args:
        method: What the user calls the module.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self.records = False
        self.used: list[bool] = []
        self.means = StepLosses()
        self.clear()

    def clear(self) -> None:
        """Forget what was added since the last step."""
        self._copies: list[_Copies] = []  # of the batch at hand
        self._features: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self.means.clear()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within the context, the forward pass of a batch that `add` takes in next."""
        self._copies, self.records = [], True
        try:
            yield
        finally:
            self.records = False

    def copies(self, features: Tensor, rows: Mapping[str, Tensor]) -> tuple[Tensor, Consecutive]:
        """The features of the tasks, one task after the other, and the rows of each task in them.

        Args:
            features: `(B, ...)`.
            rows: By name of the task, `(n_i,)` int64.
        """
        counts, cut = [len(i) for i in rows.values()], features.detach()
        if isinstance(rows, Common):
            of_tasks = cut.repeat(len(rows), *[1] * (cut.dim() - 1))
        else:
            of_tasks = cut[torch.cat(list(rows.values()))]
        of_tasks.requires_grad_()
        self._copies.append(_Copies(features, of_tasks, rows))
        places = torch.arange(len(of_tasks), device=features.device).split(counts)
        return of_tasks, Consecutive(zip(rows, places, strict=True))

    def add(
        self,
        losses: Tensor,
        means: Tensor,
        present: Tensor,
        names: Sequence[str],
        shared: Sequence[Tensor],
        own: Sequence[Sequence[Tensor]],
        scale: Tensor | None,
        share: int,
    ) -> list[list[Tensor | None]]:
        """Take in the batch that was recorded.

        Args:
            losses: Those of this rank's batch, any number of them.
            means: The means over all ranks, `(T,)`, 0 for a task that is absent.
            present: Which tasks are in the batch of any rank, `(T,)` bool.
            names: Those of the T tasks.
            shared: The shared parameters.
            own: For each task, its own parameters.
            scale: As in `task_gradients`.
            share: By which the Trainer divides losses, as batches are accumulated.

        Returns:
            For each task, the gradients of its loss by its own parameters, None where it does not depend on them.

        Raises:
            UserError: The features were not recorded, are those of one task each, or are not all that is shared.
        """
        copies, self._copies = self._copies, []
        if not copies:
            raise UserError(
                f"weighting: rep_grad needs features that all tasks share, and {self._method} gives each task others; "
                "leave rep_grad out, or use MultiHead, MixtureOfExperts or CGC"
            )
        if len(names) > 1 and any(isinstance(c.rows, Consecutive) for c in copies):
            raise UserError(
                "weighting: rep_grad compares the tasks' gradients by the features of the same inputs, and here each "
                "task has inputs of its own, so that all inner products are 0; leave rep_grad out"
            )
        flat = [p for parameters in own for p in parameters]
        with without_autocast(losses.device.type):
            total = losses.sum() if scale is None else losses.sum() * scale
            scaled = torch.autograd.grad(total, [*(c.of_tasks for c in copies), *flat, *shared], allow_unused=True)
        found = [g if g is None or scale is None else at_least_float32(g) / scale for g in scaled]
        if any(g is not None for g in found[len(copies) + len(flat) :]):
            raise UserError(
                "weighting: rep_grad needs features that all shared parameters act through, and some of "
                f"{self._method} are used behind them; leave rep_grad out"
            )
        self.means.add(means, present)
        for c, gradient in zip(copies, found, strict=False):
            if gradient is None:
                gradient = torch.zeros_like(c.of_tasks)
            self._features.append(c.features)
            wide = at_least_float32(gradient)
            self._gradients.append(_by_task(wide / share if share > 1 else wide, c, names))
        of_own = iter(found[len(copies) : len(copies) + len(flat)])
        return [[next(of_own) for _ in parameters] for parameters in own]

    def direction(self, aggregator: Aggregator, shared: Sequence[Tensor], scale: Tensor | None) -> Tensor | None:
        """The gradient of the shared parameters, on all ranks alike, `(P,)`; nothing is left for the next step.

        The aggregator sees the features of all batches of the step and of all ranks.

        Args:
            aggregator: What combines the gradients by the features.
            shared: The shared parameters, P numbers in all.
            scale: Multiplies the gradient.

        Returns:
            The gradient; None where no batch was added; NaN where the gradients of the tasks are not finite: a gradient
            scaler then skips the step, and the aggregator never sees them.

        Raises:
            UserError: The aggregator's answer has another shape.
        """
        if not self._gradients:
            return None
        here, ranks = self._gradients, world_size()
        of_rank = torch.cat(here, 1) if len(here) > 1 else here[0]
        gradients, own = columns_of_ranks(of_rank / ranks if ranks > 1 else of_rank)
        features, self._features, self._gradients = self._features, [], []
        if not all_finite(gradients):
            self.used = [True] * len(shared)
            return torch.cat([p.new_full((p.numel(),), torch.nan) for p in shared])
        direction = combined(aggregator, gradients, self.means, "feature")[own]
        pieces = (direction if scale is None else direction * scale).split([f.numel() for f in features])
        back = [piece.view_as(f).to(f.dtype) for piece, f in zip(pieces, features, strict=True)]
        found = torch.autograd.grad(features, shared, back, allow_unused=True)
        self.used = [g is not None for g in found]
        flat = [p.new_zeros(p.numel()) if g is None else g.flatten() for p, g in zip(shared, found, strict=True)]
        return sum_over_ranks(torch.cat(flat))


def _by_task(gradient: Tensor, copies: _Copies, names: Sequence[str]) -> Tensor:
    """The gradients of T tasks by features `(B, ...)`, `(T, B * ...)`: 0 in rows that a task does not look at.

    Args:
        gradient: By the copies, `(n, ...)`.
        copies: They, and whose they are.
        names: Those of the T tasks.
    """
    rows, count = copies.rows, len(copies.features)
    if isinstance(rows, Common) and list(rows) == list(names):
        return gradient.reshape(len(names), -1)
    numbers = {name: i for i, name in enumerate(names)}
    places = torch.cat([numbers[name] * count + i for name, i in rows.items()])
    of_all = gradient.new_zeros(len(names) * count, *gradient.shape[1:])
    return of_all.index_add_(0, places, gradient).reshape(len(names), -1)
