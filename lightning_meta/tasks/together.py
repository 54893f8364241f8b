"""Losses of several tasks at once: tasks of the same kind are computed in one batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks.base import Task
from lightning_meta.tasks.classification import Binary, Classification, Multilabel
from lightning_meta.tasks.regression import Regression


class Losses(NamedTuple):
    """Losses of the examples of several tasks, grouped by task.

    Attributes:
        names: Names of the tasks.
        counts: Number of examples of each task.
        values: Losses of all examples, `(sum(counts),)`.
    """

    names: list[str]
    counts: list[int]
    values: Tensor

    def sums(self) -> Tensor:
        """Return the sum over the examples of each task, `(T,)`."""
        return self._reduced(Tensor.sum)

    def means(self) -> Tensor:
        """Return the mean over the examples of each task, `(T,)`; 0 for a task without examples."""
        return self._reduced(Tensor.mean if min(self.counts) else _mean_or_0)

    def _reduced(self, reduce: Callable[[Tensor, int], Tensor]) -> Tensor:
        count = self.counts[0]
        if self.counts == [count] * len(self.counts):
            return reduce(self.values.view(-1, count) if count else self.values.view(len(self.counts), 0), 1)
        return torch.stack([reduce(of_task, 0) for of_task in self.values.split(self.counts)])


def _mean_or_0(values: Tensor, dim: int) -> Tensor:
    return values.sum(dim) / max(values.shape[dim], 1)


class LossesTogether:
    """Computes the losses of several tasks; standardisation constants are cached as tensors on the device.

    Args:
        tasks: Tasks by name.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self.tasks = tasks
        self._standards: dict[Hashable, tuple[dict[str, int], Tensor]] = {}

    def __call__(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[Losses]:
        """Compute the losses of all examples.

        Args:
            outputs: Network outputs `(n_i, outputs_i)` by name of the task.
            targets: Targets `(n_i, ...)` by name.

        Returns:
            One entry for each group of tasks of the same kind.
        """
        alike: dict[Hashable, list[str]] = {}
        for name in outputs:
            alike.setdefault(_kind(self.tasks[name], targets[name]) or name, []).append(name)
        return [self._of(names, [outputs[n] for n in names], [targets[n] for n in names]) for names in alike.values()]

    def _of(self, names: list[str], outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Losses:
        counts, task = [len(y) for y in outputs], self.tasks[names[0]]
        if len(names) == 1:
            return Losses(names, counts, task.losses(outputs[0], targets[0]))
        y, joined = at_least_float32(torch.cat(list(outputs))), torch.cat(list(targets))
        if isinstance(task, Regression):
            joined = at_least_float32(joined)
            joined = standardised(joined, counts, self._standards_of(names, joined, task.outputs)).to(y.dtype)
            errors = F.mse_loss(y, joined, reduction="none")
            values = errors.mean(-1) if task.outputs > 1 else errors.view(-1)
        else:
            values = task.losses(y, joined)
        return Losses(names, counts, values)

    def _standards_of(self, names: list[str], like: Tensor, outputs: int) -> Tensor:
        which = (outputs, like.dtype, like.device)
        if which not in self._standards:
            alike = {n: t for n, t in self.tasks.items() if type(t) is Regression and t.outputs == outputs}
            order = {name: number for number, name in enumerate(alike)}
            self._standards[which] = order, standards_of(list(alike.values()), like)
        order, standards = self._standards[which]
        return standards if names == list(order) else standards[:, [order[name] for name in names]]


def standards_of(tasks: Sequence[Task], like: Tensor) -> Tensor:
    """Return μ and σ of T regressions with the same number of outputs, `(2, T, outputs)`; 0 and 1 if not fitted."""
    pairs = []
    for task in tasks:
        assert isinstance(task, Regression)
        pairs.append((task.mean, task.scale) if task.scale else ((0.0,) * task.outputs, (1.0,) * task.outputs))
    return like.new_tensor(pairs).transpose(0, 1)


def standardised(targets: Tensor, counts: Sequence[int], standards: Tensor) -> Tensor:
    """Standardise the floating-point targets of T tasks, grouped by task; equals `Regression.standardised`.

    Args:
        targets: Targets of all tasks, `(M, outputs)`.
        counts: Number of targets of each task.
        standards: μ and σ from `standards_of`, in the dtype of the targets.

    Returns:
        Standardised targets `(M, outputs)`, in the dtype of the targets.
    """
    if len(set(counts)) == 1:
        mean, scale = standards.unsqueeze(2)
        of_tasks: Tensor = (targets.view(len(counts), counts[0], targets.shape[1]) - mean) / scale
        return of_tasks.view_as(targets)
    repeats = torch.tensor(counts, device=targets.device)
    mean, scale = standards.repeat_interleave(repeats, 1, output_size=len(targets))
    of_rows: Tensor = (targets - mean) / scale
    return of_rows


def _kind(task: Task, targets: Tensor) -> Hashable:
    """Return a key shared by tasks whose losses can be computed together; None for a task computed alone."""
    kind = type(task)  # exact type: a subclass may override the losses
    weighted = kind is not Regression and getattr(task, "weighted", True)
    if kind not in (Regression, Classification, Binary, Multilabel) or weighted:
        return None
    if kind is Regression and not targets.is_floating_point():  # `Regression.standardised` keeps the digits of integers
        return None
    return kind, task.outputs, targets.dtype
