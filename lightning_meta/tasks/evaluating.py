"""Metrics of many tasks at once: tasks of the same kind are evaluated together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import nan
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.tasks.base import Task
from lightning_meta.tasks.classification import Binary, Classification, Multilabel
from lightning_meta.tasks.few_rows import FEWEST_ROWS
from lightning_meta.tasks.regression import Regression
from lightning_meta.tasks.together import standards_of

Rows = npt.NDArray[np.float64]
Joined = dict[Hashable, tuple["_Segments", Rows, Rows]]
"""Joint outputs and targets of several tasks, which several metrics need."""

LARGE = 10_000
"""Tasks with more examples are evaluated one by one: it is as fast, and `mean` adds pairwise, which is more exact."""


class Evaluation(NamedTuple):
    """A metric to evaluate.

    Attributes:
        outputs: Network outputs, `(n, outputs)`, on the CPU.
        targets: Targets, `(n, ...)`.
        task: The task.
        metric: One of its `names`, or its `selection`.
    """

    outputs: Tensor
    targets: Tensor
    task: Task
    metric: str


def evaluated(evaluations: Sequence[Evaluation]) -> list[float]:
    """Return `task.evaluate(outputs, targets, metric)` of each in double precision, equal up to rounding."""
    values = [nan] * len(evaluations)
    alike: dict[Hashable, list[int]] = {}
    of_last: Hashable = None
    for i, one in enumerate(evaluations):
        last = evaluations[i - 1]
        if not i or one.task is not last.task or one.outputs is not last.outputs:  # several metrics follow each other
            of_last = _kind_of_task(one)
        kind = None if of_last is None else _kind(one, of_last)
        if kind is None:
            values[i] = one.task.evaluate(one.outputs.double(), one.targets, one.metric)
        else:
            alike.setdefault(kind, []).append(i)
    joined: Joined = {}
    for numbers in alike.values():
        of_kind = [evaluations[i] for i in numbers]
        for i, value in zip(numbers, _METRICS[of_kind[0].metric](of_kind, joined).tolist(), strict=True):
            values[i] = value
    return values


def means_of(values: Sequence[Tensor]) -> list[float]:
    """Return the mean of each of several vectors in double precision; NaN for an empty one."""
    counts = [vector.shape[0] for vector in values]
    means = [float(v.double().mean()) if count > LARGE else nan for v, count in zip(values, counts, strict=True)]
    small = [i for i, count in enumerate(counts) if 0 < count <= LARGE]
    if small:
        joined = torch.cat([values[i] for i in small]).double().numpy()
        for i, mean in zip(small, _Segments([counts[i] for i in small]).means(joined).tolist(), strict=True):
            means[i] = mean
    return means


def _kind_of_task(one: Evaluation) -> Hashable:
    """Return a key shared by tasks that can be evaluated together; None if the task must evaluate itself."""
    task, targets, kind, chosen = one.task, one.targets, type(one.task), one.task.chosen
    if not (chosen is None or isinstance(chosen, str)) or not 0 < one.outputs.shape[0] <= LARGE:
        return None
    if kind in (Classification, Binary, Multilabel):
        return kind, task.outputs
    if kind is Regression and targets.is_floating_point():
        return kind, task.outputs, targets.dtype, one.outputs.dtype
    return None


def _kind(one: Evaluation, of_task: Hashable) -> Hashable:
    """Return a key shared by evaluations that can be computed together, given that of the task; None if it cannot."""
    metric = one.metric
    if metric not in _METRICS or (metric == "accuracy") is (type(one.task) is Regression):
        return None
    if metric == "r2" and one.outputs.shape[0] < FEWEST_ROWS:
        return None
    return metric, of_task


def _accuracy(of_kind: Sequence[Evaluation], joined: Joined) -> Rows:
    task = of_kind[0].task
    assert isinstance(task, Classification | Binary | Multilabel)
    outputs, targets = (torch.cat([one[i] for one in of_kind]) for i in (0, 1))  # type: ignore[misc]
    right = task.right(outputs.double(), targets).numpy()
    return _Segments([one.outputs.shape[0] for one in of_kind]).means(right)


def _r2(of_kind: Sequence[Evaluation], joined: Joined) -> Rows:
    segments, outputs, targets = _standardised(of_kind, joined)
    variance = segments.means(np.square(targets - segments.rows(segments.means(targets))))
    error = segments.means(np.square(outputs - targets))
    # R² is undefined if all targets of a task are equal; rounding can leave their computed variance above 0.
    raw = torch.cat([one.targets for one in of_kind]).numpy()
    equal = np.logical_and.reduceat(raw == raw[segments.starts].repeat(segments.counts, 0), segments.starts)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_columns: Rows = np.where(equal, np.nan, 1 - error / variance)
    means: Rows = of_columns.mean(-1)
    return means


def _mae(of_kind: Sequence[Evaluation], joined: Joined) -> Rows:
    segments, outputs, targets = _standardised(of_kind, joined)
    scales = [getattr(one.task, "scale", ()) or (1.0,) * one.task.outputs for one in of_kind]
    return segments.means((np.abs(outputs - targets) * segments.rows(np.array(scales))).mean(-1))


_METRICS: dict[str, Callable[[Sequence[Evaluation], Joined], Rows]] = {"accuracy": _accuracy, "r2": _r2, "mae": _mae}


def _standardised(of_kind: Sequence[Evaluation], joined: Joined) -> tuple[_Segments, Rows, Rows]:
    """Return outputs and targets in standard units, in double precision, once for all metrics of the same tasks."""
    which = tuple((id(one.outputs), id(one.targets), id(one.task)) for one in of_kind)
    if which not in joined:
        segments = _Segments([one.outputs.shape[0] for one in of_kind])
        outputs = torch.cat([one.outputs for one in of_kind]).double()
        targets = torch.cat([one.targets for one in of_kind])
        mean, scale = (segments.rows(of.numpy()) for of in standards_of([one.task for one in of_kind], targets))
        in_units: Rows = ((targets.numpy() - mean) / scale).astype(np.float64)  # in the dtype of the targets first
        joined[which] = segments, outputs.numpy(), in_units
    return joined[which]


class _Segments:
    """Rows of several tasks, grouped by task; every task has at least one row."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = np.array(counts)
        self.starts = self.counts.cumsum() - self.counts

    def means(self, values: Rows) -> Rows:
        """Return the mean over the rows of each task, `(T, ...)`."""
        sums = np.add.reduceat(values, self.starts)
        means: Rows = sums / self.counts.reshape(-1, *[1] * (sums.ndim - 1))
        return means

    def rows(self, of_tasks: Rows) -> Rows:
        """Repeat the value of each task for its rows."""
        return of_tasks.repeat(self.counts, 0)
