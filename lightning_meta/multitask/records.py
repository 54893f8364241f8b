"""Predictions for all labelled examples of all tasks, gathered so that each counts once for any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isnan, nan
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_meta.errors import UserError
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks import Task
from lightning_meta.tasks.base import one_each
from lightning_meta.tasks.evaluating import Evaluation, evaluated, means_of
from lightning_meta.tasks.together import Losses

_DTYPES = (torch.float32, torch.float64, torch.int64)  # possible dtypes of recorded targets
_MOST_DIMENSIONS = 64  # of a tensor in torch
_COLUMNS = ("task_numbers", "ids", "kinds", "losses", "outputs", "targets")


@dataclass(frozen=True)
class TaskRecord:
    """The predictions for one task in a split, on the CPU, sorted by the numbers of the examples, which are unique.

    Attributes:
        ids: Numbers of the examples, `(n,)`, ascending.
        losses: Losses of the examples, `(n,)`.
        outputs: Outputs of the network, `(n, outputs)`.
        targets: Targets as in the batches, `(n, ...)`.
    """

    ids: Tensor
    losses: Tensor
    outputs: Tensor
    targets: Tensor

    def score(self, task: Task) -> float:
        """The selection metric of the task; NaN without examples, or if the metric is undefined."""
        return task.evaluate(self.outputs.double(), self.targets)

    def ranked_score(self, task: Task) -> float:
        """The same as `score`, but infinitely bad if it is NaN because predictions are not finite.

        The mean over tasks leaves out tasks without a score, such as R² of equal targets. It must not improve because
        the predictions for a task became infinite or NaN.
        """
        return self.as_ranked(self.score(task), task)

    def as_ranked(self, score: float, task: Task) -> float:
        """Convert a value of `score` to one of `ranked_score`."""
        failed = score != score and not bool(torch.isfinite(self.outputs).all())
        return float("-inf" if task.selection_mode == "max" else "inf") if failed else score

    def constant_score(self, task: Task) -> float:
        """The selection metric of the best prediction that ignores the input; NaN if that prediction is unknown."""
        outputs = task.constant()
        return nan if outputs is None else task.evaluate(outputs.expand(len(self.ids), -1), self.targets)

    def example_scores(self, task: Task) -> Tensor:
        """The contribution of each example to the selection metric, `(n,)`; NaN if the metric is undefined."""
        outputs = self.outputs.double()
        if not len(self.ids):
            return self.losses.double()
        scores = one_each(task, "example_scores", task.example_scores(outputs, self.targets), outputs)
        return torch.full_like(scores, torch.nan) if isnan(self.score(task)) else scores

    def loss(self) -> float:
        """The mean loss; NaN without examples."""
        return float(self.losses.double().mean()) if len(self.ids) else float("nan")

    def ranked_loss(self) -> float:
        """The same as `loss`, but infinite if there are examples and it is NaN; see `ranked_score`."""
        return self.as_ranked_loss(self.loss())

    def as_ranked_loss(self, loss: float) -> float:
        """Convert a value of `loss` to one of `ranked_loss`."""
        return inf if isnan(loss) and len(self.ids) else loss

    def further(self, task: Task) -> dict[str, float]:
        """The additional metrics of a custom task (`Task.metrics`), by name; NaN without examples."""
        metrics = task.metrics()
        if not metrics or not len(self.ids):
            return dict.fromkeys(metrics, nan)
        outputs, targets = task.readable(self.outputs.double()), self.targets
        if targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        values = {name: metric(outputs, targets) for name, metric in metrics.items()}
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.numel() != 1:
                shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"{type(task).__name__}.metrics(): {name!r} gives {shape}; a single number is needed")
        return {name: float(value) for name, value in values.items()}


class TaskRecords(Metric):
    """Collects predictions over batches and gathers them over ranks.

    Args:
        tasks: The tasks by name, in order.
        joined: Whether the records are also kept as one table of all tasks, as written to `predictions.npz`.
    """

    full_state_update = False
    task_numbers: list[Tensor]
    ids: list[Tensor]
    kinds: list[Tensor]
    losses: list[Tensor]
    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(self, tasks: Mapping[str, Task], joined: bool = False) -> None:
        super().__init__()
        self.joined = joined
        self.order = {name: i for i, name in enumerate(tasks)}
        self.widths = [task.outputs for task in tasks.values()]
        for name in _COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        losses: Sequence[Losses],
        ids: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
    ) -> None:
        """Record the examples of a batch.

        Args:
            losses: Losses of the examples, grouped by kind of task.
            ids: Numbers of the examples by name of the task, `(n_i,)`.
            outputs: Outputs of the network by name of the task, `(n_i, outputs)`.
            targets: Targets by name of the task, `(n_i, ...)`.
        """
        columns = (ids, outputs, targets)
        for group in losses:
            all_ids, all_outputs, all_targets = (torch.cat([c[name] for name in group.names]) for c in columns)
            numbers, kind = _as_row(all_targets)
            task_numbers = np.repeat([self.order[name] for name in group.names], group.counts)
            self.task_numbers.append(torch.from_numpy(task_numbers).to(all_ids))
            self.ids.append(all_ids)
            self.kinds.append(torch.full_like(all_ids, kind.number))
            # These are copies, since a view would keep the whole tensor behind it in memory. Outputs are padded to the
            # same width for all tasks, and targets are one long vector, so that ranks can gather them.
            self.losses.append(group.values.detach().clone())
            self.outputs.append(_widened(all_outputs.detach(), max(self.widths)))
            self.targets.append(numbers.flatten())

    def compute(self) -> RecordTable:
        """Return the records over all ranks, each example once."""
        if not len(self.task_numbers):  # a list of tensors, or one tensor after gathering over ranks
            return RecordTable({})
        task_numbers, ids, *others, numbers = (_in_one(getattr(self, name)).cpu() for name in _COLUMNS)
        recorded_kinds, order = others[0], None
        if not _ascends(task_numbers, ids):
            # An example may occur twice: a rank without examples evaluates one that another rank evaluates as well.
            # The sort is stable, so the first record of each example is kept.
            order = torch.from_numpy(np.lexsort((ids.numpy(), task_numbers.numpy())))
            pairs = torch.stack([task_numbers, ids])[:, order]
            first = torch.ones(len(order), dtype=torch.bool)
            first[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(0)
            order = order[first]
            task_numbers, ids, *others = (column[order] for column in (task_numbers, ids, *others))
        kinds, losses, outputs = others
        counts = torch.bincount(task_numbers, minlength=len(self.order)).tolist()
        last_kinds = F.pad(kinds, (0, 1))[torch.tensor(counts).cumsum(0) - 1].tolist()
        task_kinds = [kind if count else None for kind, count in zip(last_kinds, counts, strict=True)]
        rows_of_kind = _rows_by_kind(numbers, recorded_kinds, order, {kind for kind in task_kinds if kind is not None})
        columns = {}
        if self.joined:
            columns = {"task": task_numbers, "id": ids, "output": at_least_float32(outputs)}
            columns["target"] = _as_numbers(rows_of_kind, kinds)
        wide = at_least_float32(outputs)
        by_width = {width: wide[:, :width].split(counts) for width in set(self.widths)}
        by_kind = {}
        for kind, rows in rows_of_kind.items():
            of_kind = [count if other == kind else 0 for count, other in zip(counts, task_kinds, strict=True)]
            by_kind[kind] = _Kind.of(kind).by_task(rows, of_kind)
        by_task = [column.split(counts) for column in (ids, at_least_float32(losses))]
        records = {}
        for (name, number), own_kind, width in zip(self.order.items(), task_kinds, self.widths, strict=True):
            own_ids, own_losses = (column[number] for column in by_task)
            targets = torch.zeros(0) if own_kind is None else by_kind[own_kind][number]
            records[name] = TaskRecord(own_ids, own_losses, by_width[width][number], targets)
        return RecordTable(records, columns)


class RecordTable:
    """The records of a split by name of the task.

    It is neither a mapping nor a dataclass, since torchmetrics would apply its conversions to their parts.

    Args:
        of: Record of each task by its name.
        columns: All records as one table, if `TaskRecords` keeps it: the task numbers `(n,)`, ids `(n,)`, outputs and
            targets `(n, width)`, flattened and padded with NaN to the width of the widest task.
    """

    def __init__(self, of: dict[str, TaskRecord], columns: Mapping[str, Tensor] | None = None) -> None:
        self.of, self.columns = of, columns or {}
        # Of the tasks that are asked for first: a validation asks for them several times, and always for the same.
        self._values: dict[str, dict[str, float]] = {}
        self._ranked: dict[str, float] = {}
        self.comparable: list[float] = []  # result of `tables.comparable_of`

    @cached_property
    def counts(self) -> list[int]:
        """The number of examples of each task."""
        return [record.ids.shape[0] for record in self.of.values()]

    def ranked_scores(self, tasks: Mapping[str, Task]) -> dict[str, float]:
        """`TaskRecord.ranked_score` by name."""
        if not self._ranked:
            values = self._evaluated(tasks)
            self._ranked = {n: self.of[n].as_ranked(values[n][task.selection], task) for n, task in tasks.items()}
        return self._ranked

    def metrics(self, tasks: Mapping[str, Task]) -> dict[str, dict[str, float]]:
        """The metrics of each task besides its selection metric, by name of the task and of the metric."""
        values = self._evaluated(tasks)
        return {
            name: {**{m: values[name][m] for m in task.beside if m != task.selection}, **self.of[name].further(task)}
            for name, task in tasks.items()
        }

    def ranked_losses(self) -> dict[str, float]:
        """`TaskRecord.ranked_loss` by name."""
        means = zip(self.of.items(), means_of([record.losses for record in self.of.values()]), strict=True)
        return {name: record.as_ranked_loss(mean) for (name, record), mean in means}

    def _evaluated(self, tasks: Mapping[str, Task]) -> dict[str, dict[str, float]]:
        """The selection metric of each task and those beside it, all at once, by name of the task and of the metric."""
        if not self._values:
            wanted = []
            for name, task in tasks.items():
                metrics = task.beside if task.selection in task.beside else (task.selection, *task.beside)
                wanted.append(Evaluation(self.of[name].outputs, self.of[name].targets, task, metrics))
            self._values = dict(zip(tasks, evaluated(wanted), strict=True))
        return self._values

    def example_scores(self, tasks: Mapping[str, Task]) -> Tensor:
        """`TaskRecord.example_scores` of all tasks, `(n,)`."""
        return torch.cat([self.of[name].example_scores(task) for name, task in tasks.items()])


def _in_one(batches: list[Tensor] | Tensor) -> Tensor:
    """Concatenate the records of all batches, without a copy of a single one."""
    return batches[0] if isinstance(batches, list) and len(batches) == 1 else dim_zero_cat(batches)


def _ascends(tasks: Tensor, ids: Tensor) -> bool:
    """Whether examples are already sorted by task and number, without duplicates."""
    later, same = tasks[1:] > tasks[:-1], tasks[1:] == tasks[:-1]
    return bool((later | (same & (ids[1:] > ids[:-1]))).all())


def _as_integers(targets: Tensor) -> tuple[Tensor, torch.dtype]:
    """Encode targets as int64 without loss, and return their dtype; real numbers are encoded as their bits.

    In this way one tensor, which ranks exchange, holds the classes and real numbers of all tasks in full precision, and
    the device needs no float64.
    """
    if not targets.is_floating_point():
        return targets.long(), torch.int64
    targets = at_least_float32(targets)
    bits = targets.view(torch.int64 if targets.dtype == torch.float64 else torch.int32)
    return bits.long(), targets.dtype


def _from_integers(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Decode targets that `_as_integers` encoded."""
    if dtype == torch.int64:
        return numbers
    return (numbers.int() if dtype == torch.float32 else numbers).view(dtype)


class _Kind(NamedTuple):
    """How the targets of a task are stored in a row of integers.

    Attributes:
        dtype: Place of their dtype in `_DTYPES`.
        dimensions: Number of dimensions of the targets of one example; if there are two or more, the row starts with
            their sizes.
        length: Number of integers in a row.
    """

    dtype: int
    dimensions: int
    length: int

    @classmethod
    def of(cls, number: int) -> _Kind:
        """The kind that has a `number`."""
        rest, dtype = divmod(number, len(_DTYPES))
        length, dimensions = divmod(rest, _MOST_DIMENSIONS)
        return cls(dtype, dimensions, length)

    @property
    def number(self) -> int:
        """One number for the kind, which ranks exchange."""
        return (self.length * _MOST_DIMENSIONS + self.dimensions) * len(_DTYPES) + self.dtype

    @property
    def header(self) -> int:
        """Number of integers before the targets."""
        return self.dimensions if self.dimensions > 1 else 0

    def values(self, rows: Tensor) -> Tensor:
        """Decode the targets of rows `(n, length)`, flattened."""
        numbers = rows[:, self.header :] if self.header else rows
        return _from_integers(numbers, _DTYPES[self.dtype])

    def by_task(self, rows: Tensor, counts: Sequence[int]) -> Sequence[Tensor]:
        """Decode the targets of each task, `(n_i, ...)`, from the rows of all, `(n, length)`."""
        values = self.values(rows)
        if not self.header:
            split: tuple[Tensor, ...] = (values if self.dimensions else values.flatten()).split(counts)
            return split
        parts = zip(rows.split(counts), values.split(counts), strict=True)  # sizes differ between tasks of a kind
        return [own.reshape(-1, *of[0, : self.header].tolist()) if len(of) else own for of, own in parts]


def _as_row(targets: Tensor) -> tuple[Tensor, _Kind]:
    """Encode targets `(n, ...)` as rows of integers, `(n, length)`."""
    numbers, dtype = _as_integers(targets)
    sizes = targets.shape[1:]
    if len(sizes) > 1:
        numbers = torch.cat([numbers.new_tensor(sizes).expand(len(targets), -1), numbers.flatten(1)], 1)
    length = numbers.shape[1] if sizes else 1
    return numbers, _Kind(_DTYPES.index(dtype), len(sizes), length)


def _rows_by_kind(numbers: Tensor, kinds: Tensor, order: Tensor | None, distinct: set[int]) -> dict[int, Tensor]:
    """Return the rows of each kind, `(n, length)`, from the vector of all rows.

    Args:
        numbers: All rows, one after the other.
        kinds: Numbers of their kinds.
        order: Which rows to return, in order; None for all as they are.
        distinct: The numbers of all kinds.
    """
    lengths = {kind: _Kind.of(kind).length for kind in distinct}
    wanted = kinds if order is None else kinds[order]
    if len(set(lengths.values())) == 1:
        rows = numbers.view(len(kinds), *set(lengths.values()))
        rows = rows if order is None else rows[order]
        return {kind: rows if len(distinct) == 1 else rows[wanted == kind] for kind in distinct}
    of_rows = kinds // (_MOST_DIMENSIONS * len(_DTYPES))
    starts = of_rows.cumsum(0) - of_rows
    starts = starts if order is None else starts[order]
    return {
        kind: numbers[starts[wanted == kind].unsqueeze(1) + torch.arange(length)] for kind, length in lengths.items()
    }


def _as_numbers(rows_of_kind: Mapping[int, Tensor], kinds: Tensor) -> Tensor:
    """Decode the targets of all tasks as float64, `(n, largest width)`; narrower ones are padded with NaN."""
    values = {kind: _Kind.of(kind).values(rows) for kind, rows in rows_of_kind.items()}
    numbers = torch.full((len(kinds), max(rows.shape[1] for rows in values.values())), torch.nan, dtype=torch.float64)
    for kind, rows in values.items():
        numbers[kinds == kind, : rows.shape[1]] = rows.double()
    return numbers


def _widened(rows: Tensor, width: int) -> Tensor:
    """Pad rows with NaN to a width."""
    return F.pad(rows, (0, width - rows.shape[1]), value=torch.nan)
