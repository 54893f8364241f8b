"""The losses of several tasks at once: those of one kind are computed as those of one task would be."""

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
    """The losses of the examples of several tasks, one task after the other.

    Attributes:
        names: The tasks.
        counts: How many examples each has.
        values: `(sum(counts),)`.
    """

    names: list[str]
    counts: list[int]
    values: Tensor

    def sums(self) -> Tensor:
        """The sum over each task's examples, `(T,)`."""
        return self._reduced(Tensor.sum)

    def means(self) -> Tensor:
        """The mean over each task's examples, `(T,)`; 0 without any."""
        return self._reduced(Tensor.mean if min(self.counts) else _mean_or_0)

    def _reduced(self, reduce: Callable[[Tensor, int], Tensor]) -> Tensor:
        count = self.counts[0]
        if self.counts == [count] * len(self.counts):
            return reduce(self.values.view(-1, count) if count else self.values.view(len(self.counts), 0), 1)
        return torch.stack([reduce(of_task, 0) for of_task in self.values.split(self.counts)])


def _mean_or_0(values: Tensor, dim: int) -> Tensor:
    return values.sum(dim) / max(values.shape[dim], 1)


class LossesTogether:
    """Computes losses of tasks, with the numbers that it needs in tensors where the losses are.

    Args:
        tasks: The tasks by name.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self.tasks = tasks
        self._standards: dict[Hashable, tuple[dict[str, int], Tensor]] = {}

    def __call__(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[Losses]:
        """The losses of all examples.

        Args:
            outputs: By name of the task, `(n_i, outputs_i)`.
            targets: By name, `(n_i, ...)`.

        Returns:
            Those of tasks of one kind together.
        """
        alike: dict[Hashable, list[str]] = {}
        for name in outputs:
            alike.setdefault(_kind(self.tasks[name], targets[name]) or name, []).append(name)
        return [self._of(names, [outputs[n] for n in names], [targets[n] for n in names]) for names in alike.values()]

    def _of(self, names: list[str], outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Losses:
        counts, task = [len(y) for y in outputs], self.tasks[names[0]]
        if len(names) == 1:
            return Losses(names, counts, task.losses(outputs[0], targets[0]))
        y, wanted = at_least_float32(torch.cat(list(outputs))), torch.cat(list(targets))
        if isinstance(task, Regression):
            wanted = at_least_float32(wanted)
            wanted = standardised(wanted, counts, self._standards_of(names, wanted, task.outputs)).to(y.dtype)
            errors = F.mse_loss(y, wanted, reduction="none")
            values = errors.mean(-1) if task.outputs > 1 else errors.view(-1)
        else:
            values = task.losses(y, wanted)
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
    """μ and σ of T regressions of equally many outputs, `(2, T, outputs)`; 0 and 1 where they are not known."""
    pairs = []
    for task in tasks:
        assert isinstance(task, Regression)
        pairs.append((task.mean, task.scale) if task.scale else ((0.0,) * task.outputs, (1.0,) * task.outputs))
    return like.new_tensor(pairs).transpose(0, 1)


def standardised(targets: Tensor, counts: Sequence[int], standards: Tensor) -> Tensor:
    """`Regression.standardised` of the real targets of T tasks, one task after the other.

    Args:
        targets: `(M, outputs)`.
        counts: How many of the M targets each task has.
        standards: Of `standards_of`, in the targets' dtype.

    Returns:
        `(M, outputs)`, in the targets' dtype.
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
    """What tasks have in common whose losses can be computed together; None for a task by itself."""
    kind = type(task)  # not one that is derived, whose losses may be others
    weighted = kind is not Regression and getattr(task, "weighted", True)
    if kind not in (Regression, Classification, Binary, Multilabel) or weighted:
        return None
    if kind is Regression and not targets.is_floating_point():  # whole numbers lose digits in any other way
        return None
    return kind, task.outputs, targets.dtype
