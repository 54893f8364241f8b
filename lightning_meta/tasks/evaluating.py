"""Metrics of many tasks of a split at once, where they are means over examples of tasks of one kind."""

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
from lightning_meta.tasks.regression import FEWEST_ROWS, Regression
from lightning_meta.tasks.together import standardised, standards_of

Rows = npt.NDArray[np.float64]

LARGE = 10_000
"""Examples of a task that is evaluated by itself: there is nothing to save, and a long sum is more exact in pairs."""


class Evaluation(NamedTuple):
    """What is to be evaluated.

    Attributes:
        outputs: `(n, outputs)`, on the CPU.
        targets: `(n, ...)`.
        task: The task.
        metric: One of its `names`, or its `selection`.
    """

    outputs: Tensor
    targets: Tensor
    task: Task
    metric: str


def evaluated(wanted: Sequence[Evaluation]) -> list[float]:
    """`task.evaluate(outputs, targets, metric)` of each, in double precision: the same up to rounding."""
    values = [nan] * len(wanted)
    alike: dict[Hashable, list[int]] = {}
    for i, one in enumerate(wanted):
        kind = _kind(one)
        if kind is None:
            values[i] = one.task.evaluate(one.outputs.double(), one.targets, one.metric)
        else:
            alike.setdefault(kind, []).append(i)
    for numbers in alike.values():
        of_kind = [wanted[i] for i in numbers]
        for i, value in zip(numbers, _METRICS[of_kind[0].metric](of_kind).tolist(), strict=True):
            values[i] = value
    return values


def means_of(values: Sequence[Tensor]) -> list[float]:
    """The mean of each of several vectors, in double precision; NaN of none."""
    means = [float(of.double().mean()) if len(of) > LARGE else nan for of in values]
    small = [i for i, of in enumerate(values) if 0 < len(of) <= LARGE]
    if small:
        joined = torch.cat([values[i] for i in small]).double().numpy()
        for i, mean in zip(small, _Segments([len(values[i]) for i in small]).means(joined).tolist(), strict=True):
            means[i] = mean
    return means


def _kind(one: Evaluation) -> Hashable:
    """What can be computed together; None for what is not known, which is left to the task."""
    task, metric, count = one.task, one.metric, len(one.outputs)
    by_name = task.chosen is None or isinstance(task.chosen, str)
    if not by_name or not 0 < count <= LARGE or metric not in _METRICS:
        return None
    if metric == "accuracy" and type(task) in (Classification, Binary, Multilabel):
        return type(task), metric, task.outputs
    real = one.targets.is_floating_point() and (metric != "r2" or count >= FEWEST_ROWS)
    if metric != "accuracy" and type(task) is Regression and real:
        return Regression, metric, task.outputs, one.targets.dtype, one.outputs.dtype
    return None


def _accuracy(of_kind: Sequence[Evaluation]) -> Rows:
    task = of_kind[0].task
    assert isinstance(task, Classification | Binary | Multilabel)
    outputs, targets = (torch.cat([one[i] for one in of_kind]) for i in (0, 1))  # type: ignore[misc]
    right = task.right(outputs.double(), targets).numpy()
    return _Segments([len(one.outputs) for one in of_kind]).means(right)


def _r2(of_kind: Sequence[Evaluation]) -> Rows:
    segments = _Segments([len(one.outputs) for one in of_kind])
    outputs, wanted = _standardised(of_kind)
    spread = segments.means(np.square(wanted - segments.rows(segments.means(wanted))))
    error = segments.means(np.square(outputs - wanted))
    targets = torch.cat([one.targets for one in of_kind]).numpy()
    equal = np.logical_and.reduceat(targets == targets[segments.starts].repeat(segments.counts, 0), segments.starts)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_columns: Rows = np.where(equal, np.nan, 1 - error / spread)
    means: Rows = of_columns.mean(-1)
    return means


def _mae(of_kind: Sequence[Evaluation]) -> Rows:
    segments = _Segments([len(one.outputs) for one in of_kind])
    outputs, wanted = _standardised(of_kind)
    scales = [getattr(one.task, "scale", ()) or (1.0,) * one.task.outputs for one in of_kind]
    return segments.means((np.abs(outputs - wanted) * segments.rows(np.array(scales))).mean(-1))


_METRICS: dict[str, Callable[[Sequence[Evaluation]], Rows]] = {"accuracy": _accuracy, "r2": _r2, "mae": _mae}


def _standardised(of_kind: Sequence[Evaluation]) -> tuple[Rows, Rows]:
    """Outputs and targets in standard units, in double precision."""
    outputs = torch.cat([one.outputs for one in of_kind]).double()
    targets = torch.cat([one.targets for one in of_kind])
    counts = [len(one.targets) for one in of_kind]
    standards = standards_of([one.task for one in of_kind], targets)
    return outputs.numpy(), standardised(targets, counts, standards).double().numpy()


class _Segments:
    """Rows of several tasks, one task after the other; each has some."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = np.array(counts)
        self.starts = self.counts.cumsum() - self.counts

    def means(self, values: Rows) -> Rows:
        """The mean over the rows of each task, `(T, ...)`."""
        sums = np.add.reduceat(values, self.starts)
        means: Rows = sums / self.counts.reshape(-1, *[1] * (sums.ndim - 1))
        return means

    def rows(self, of_tasks: Rows) -> Rows:
        """For each row, what its task has."""
        return of_tasks.repeat(self.counts, 0)
