"""Metrics of many tasks at once: tasks of the same kind are evaluated together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import nan
from typing import Any, NamedTuple

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

LARGE = 10_000
"""Tasks with more examples are evaluated one by one: it is as fast, and `mean` adds pairwise, which is more exact."""


class Evaluation(NamedTuple):
    """Predictions for a task, and the metrics to evaluate.

    Attributes:
        outputs: Network outputs, `(n, outputs)`, on the CPU.
        targets: Targets, `(n, ...)`.
        task: The task.
        metrics: Some of its `names`, or its `selection`.
    """

    outputs: Tensor
    targets: Tensor
    task: Task
    metrics: Sequence[str]


def evaluated(evaluations: Sequence[Evaluation]) -> list[dict[str, float]]:
    """Return `task.evaluate(outputs, targets, metric)` of each by metric, in double precision, equal up to rounding."""
    values: list[dict[str, float]] = [{} for _ in evaluations]
    alike: dict[Hashable, list[int]] = {}
    for i, one in enumerate(evaluations):
        alike.setdefault(_kind(one), []).append(i)
    for kind, numbers in alike.items():
        of_kind = [evaluations[i] for i in numbers]
        together = {metric: column.tolist() for metric, column in _together(kind, of_kind).items()}
        for place, (i, one) in enumerate(zip(numbers, of_kind, strict=True)):
            for metric in one.metrics:
                if metric in together:
                    values[i][metric] = together[metric][place]
                else:
                    values[i][metric] = one.task.evaluate(one.outputs.double(), one.targets, metric)
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


def _kind(one: Evaluation) -> Hashable:
    """Return a key shared by tasks that can be evaluated together; None if the task must evaluate itself."""
    task, kind, rows = one.task, type(one.task), one.outputs.shape[0]
    if not 0 < rows <= LARGE or not (task.chosen is None or isinstance(task.chosen, str)):
        return None
    if kind in (Classification, Binary, Multilabel):
        return kind, task.outputs
    if kind is Regression and one.targets.is_floating_point():
        return kind, task.outputs, one.targets.dtype, one.outputs.dtype, rows < FEWEST_ROWS
    return None


def _together(kind: Hashable, of_kind: Sequence[Evaluation]) -> dict[str, Rows]:
    """Return the metrics that are computed for all tasks of a kind at once, `(T,)` each."""
    if kind is None:
        return {}
    segments = _Segments([one.outputs.shape[0] for one in of_kind])
    outputs = torch.cat([one.outputs for one in of_kind]).double()
    targets = torch.cat([one.targets for one in of_kind])
    task = of_kind[0].task
    if isinstance(task, Classification | Binary | Multilabel):
        return {"accuracy": segments.means(task.right(outputs, targets).numpy())}
    mean, scale = np.array(standards_of([one.task for one in of_kind]), dtype=np.float64).swapaxes(0, 1)
    raw = targets.numpy()
    # Standardised in the dtype of the targets first, as in the losses.
    in_units: Rows = (raw - segments.rows(mean.astype(raw.dtype))) / segments.rows(scale.astype(raw.dtype))
    in_units = in_units.astype(np.float64)
    errors = outputs.numpy() - in_units
    found = {"mae": segments.means(np.abs(errors) * segments.rows(scale)).mean(-1)}
    if of_kind[0].outputs.shape[0] >= FEWEST_ROWS:
        # R² is undefined if all targets of a task are equal; rounding can leave their computed variance above 0.
        equal = np.logical_and.reduceat(raw == segments.rows(raw[segments.starts]), segments.starts)
        variance = segments.means(np.square(in_units - segments.rows(segments.means(in_units))))
        with np.errstate(divide="ignore", invalid="ignore"):
            of_columns: Rows = np.where(equal, np.nan, 1 - segments.means(np.square(errors)) / variance)
        found["r2"] = of_columns.mean(-1)
    return found


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

    def rows(self, of_tasks: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Repeat the value of each task for its rows."""
        return of_tasks.repeat(self.counts, 0)
