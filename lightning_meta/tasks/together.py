"""Losses of several tasks at once: tasks of the same kind are computed in one batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks.base import Task, one_each
from lightning_meta.tasks.classification import Binary, Classification, Multilabel
from lightning_meta.tasks.regression import Regression

_FEW = 3
"""Most tasks whose mean losses are computed one by one: more take less time in one tensor."""
_mse_loss = torch.ops.aten.mse_loss.default  # `F.mse_loss` of equal shapes; its checks take longer than a small batch
_Standards = tuple[Tensor, Tensor]  # μ and σ
_Named = list[tuple[str, torch.dtype]]  # names of tasks and their targets' dtypes


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
        self._standards: dict[Hashable, tuple[dict[str, int], _Standards]] = {}
        # By group of tasks, of its last batch: the standards of every row, and the places of the tasks in `_standards`.
        self._of_rows: dict[Hashable, tuple[list[int], _Standards]] = {}
        self._of_tasks: dict[Hashable, _Standards] = {}  # by task, dtype and device
        self._places: dict[Hashable, tuple[list[str], Tensor]] = {}
        self._grouped: tuple[_Named, list[list[str]]] = ([], [])  # the groups of the last call, and what they are of

    def __call__(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[Losses]:
        """Compute the losses of all examples.

        Args:
            outputs: Network outputs `(n_i, outputs_i)` by name of the task.
            targets: Targets `(n_i, ...)` by name.

        Returns:
            One entry for each group of tasks of the same kind.
        """
        groups = self._groups([(name, targets[name].dtype) for name in outputs])
        return [self._of(names, [outputs[n] for n in names], [targets[n] for n in names]) for names in groups]

    def means(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[tuple[list[str], Tensor]]:
        """Compute the mean losses of tasks: for each group the names, and `Losses.means`, `(T,)`."""
        means = []
        for names in self._groups([(name, targets[name].dtype) for name in outputs]):
            of_outputs, of_targets = [outputs[n] for n in names], [targets[n] for n in names]
            task, counts = self.tasks[names[0]], [y.shape[0] for y in of_outputs]
            if 1 < len(names) <= _FEW and type(task) is Regression and min(counts):
                of_each = zip(names, of_outputs, of_targets, strict=True)
                means.append((names, torch.stack([self._mean_of(*of_one) for of_one in of_each])))
            else:
                means.append((names, self._of(names, of_outputs, of_targets).means()))
        return means

    def _mean_of(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of one regression, `()`."""
        outputs, targets = at_least_float32(outputs), at_least_float32(targets)
        key = (name, targets.dtype, targets.device)
        if key not in self._of_tasks:
            with torch.inference_mode(False):  # kept from a validation for the training steps that follow
                numbers, (means, scales) = self._standards_of(targets, outputs.shape[1])
                self._of_tasks[key] = means[numbers[name]], scales[numbers[name]]
        mean, scale = self._of_tasks[key]
        loss: Tensor = _mse_loss(outputs, ((targets - mean) / scale).to(outputs.dtype))
        return loss

    def _groups(self, dtypes: _Named) -> list[list[str]]:
        """Group the names of tasks by kind, given their targets' dtypes."""
        if self._grouped[0] != dtypes:
            alike: dict[Hashable, list[str]] = {}
            for name, dtype in dtypes:
                alike.setdefault(_kind(self.tasks[name], dtype) or name, []).append(name)
            self._grouped = dtypes, list(alike.values())
        return self._grouped[1]

    def _of(self, names: list[str], outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Losses:
        counts, task = [y.shape[0] for y in outputs], self.tasks[names[0]]
        if len(names) == 1:
            return Losses(names, counts, one_each(task, "losses", task.losses(outputs[0], targets[0]), outputs[0]))
        y = at_least_float32(torch.cat(list(outputs)))
        if isinstance(task, Regression):
            joined = self._standardised(names, counts, targets, task.outputs, y.dtype)
            errors = F.mse_loss(y, joined, reduction="none")
            values = errors.mean(-1) if task.outputs > 1 else errors.view(-1)
        else:
            values = task.losses(y, torch.cat(list(targets)))
        return Losses(names, counts, values)

    def _standardised(
        self, names: list[str], counts: list[int], targets: Sequence[Tensor], outputs: int, dtype: torch.dtype
    ) -> Tensor:
        """Return the standardised targets of several regressions, `(M, outputs)`, in a dtype."""
        joined = at_least_float32(torch.cat(list(targets)))
        mean, scale = self._standards_of_rows(names, counts, joined, outputs)
        joined = (joined - mean) / scale
        return joined.to(dtype)

    def _standards_of_rows(self, names: list[str], counts: list[int], like: Tensor, outputs: int) -> _Standards:
        """Return μ and σ of every row, `(M, outputs)` each; those of the last batch if it had as many rows of each."""
        group = (outputs, like.dtype, like.device)
        of_names, places = self._places.get(group, (None, None))
        of_counts, rows = self._of_rows.get(group, (None, None))
        if places is None or rows is None or (of_names, of_counts) != (names, counts):
            with torch.inference_mode(False):  # kept from a validation for the training steps that follow
                numbers, standards = self._standards_of(like, outputs)
                if places is None or of_names != names:  # else kept, since a GPU waits while it is copied
                    places = torch.tensor([numbers[name] for name in names], device=like.device)
                    self._places[group] = names, places
                rows = _rows_of(standards, counts, places)
                self._of_rows[group] = counts, rows
        return rows

    def _standards_of(self, like: Tensor, outputs: int) -> tuple[dict[str, int], _Standards]:
        """Return the place of each regression with so many outputs, and μ and σ of all, `(T, outputs)` each."""
        which = (outputs, like.dtype, like.device)
        if which not in self._standards:
            alike = {n: t for n, t in self.tasks.items() if type(t) is Regression and t.outputs == outputs}
            numbers = {name: number for number, name in enumerate(alike)}
            mean, scale = like.new_tensor(standards_of(list(alike.values()))).unbind(1)
            self._standards[which] = numbers, (mean.contiguous(), scale.contiguous())
        return self._standards[which]


def standards_of(tasks: Sequence[Task]) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return μ and σ of T regressions with the same number of outputs, `(T, 2, outputs)`; 0 and 1 if not fitted."""
    pairs = []
    for task in tasks:
        assert isinstance(task, Regression)
        pairs.append((task.mean, task.scale) if task.scale else ((0.0,) * task.outputs, (1.0,) * task.outputs))
    return pairs


def _rows_of(standards: _Standards, counts: Sequence[int], tasks: Tensor) -> _Standards:
    """Return μ and σ of every row, given the places of its task among them, `(T,)`."""
    equal = len(set(counts)) == 1
    repeats = counts[0] if equal else torch.tensor(counts, device=tasks.device)
    rows = tasks.repeat_interleave(repeats, output_size=sum(counts))  # else a GPU is asked for the sum
    mean, scale = standards
    return mean[rows], scale[rows]


def _kind(task: Task, dtype: torch.dtype) -> Hashable:
    """Return a key shared by tasks whose losses can be computed together; None for a task computed alone."""
    kind = type(task)  # exact type: a subclass may override the losses
    weighted = kind is not Regression and getattr(task, "weighted", True)
    if kind not in (Regression, Classification, Binary, Multilabel) or weighted:
        return None
    if kind is Regression and not dtype.is_floating_point:  # `Regression.standardised` keeps the digits of integers
        return None
    return kind, task.outputs, dtype
