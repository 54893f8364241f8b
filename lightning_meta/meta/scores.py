"""Scores of evaluation tasks: each counted once at any number of ranks, with an interval over tasks."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_meta.functional.precision import at_least_float32

COLUMNS = ("tasks", "loss", "scores", "sizes", "outputs", "targets", "queries")


class TaskTable:
    """What was recorded, on the CPU, in the order of the tasks' numbers, which are unique.

    It is no tuple, since torchmetrics would squeeze the columns of a table of one task.

    Attributes:
        tasks: `(n,)`.
        loss: `(n,)` float64, the query loss after the last inner step.
        scores: `(n, S + 1)` float64, the metric after 0, ..., S inner steps.
        outputs: `(n, M, outputs)` after the last inner step, or empty. Of tasks that differ in size the smaller are
            filled up with NaN.
        targets: `(n, M, ...)`, or empty; filled up with -1.
        queries: `(n,)` how many query examples each task has.
    """

    def __init__(
        self, tasks: Tensor, loss: Tensor, scores: Tensor, outputs: Tensor, targets: Tensor, queries: Tensor
    ) -> None:
        self.tasks, self.loss, self.scores = tasks, loss, scores
        self.outputs, self.targets, self.queries = outputs, targets, queries

    def summary(self, metric: str) -> dict[str, float]:
        """Means over tasks by name: the loss, the metric with its interval, and the metric after each inner step."""
        step_of_score = float(1 / self.queries.double().mean()) if metric == "accuracy" else 0.0
        mean, interval = mean_and_interval(self.scores[:, -1], step_of_score)
        values = {"loss": float(self.loss.mean()), metric: mean, f"{metric}_ci95": interval}
        if metric == "mse":  # a few tasks that diverge decide the mean; those that are not a number count as infinite
            values[f"{metric}_median"] = float(self.scores[:, -1].nan_to_num(nan=math.inf, posinf=math.inf).median())
        if self.scores.shape[1] > 1:
            for step, column in enumerate(self.scores.unbind(1)):
                mean, interval = mean_and_interval(column, step_of_score)
                values[f"{metric}_step_{step}"], values[f"{metric}_step_{step}_ci95"] = mean, interval
        return values


class TaskScores(Metric):
    """Gathers what each task gave, over batches and ranks.

    Args:
        keep_outputs: Whether outputs and targets are kept, too.
    """

    full_state_update = False
    tasks: list[Tensor]
    loss: list[Tensor]
    scores: list[Tensor]
    sizes: list[Tensor]
    outputs: list[Tensor]
    targets: list[Tensor]
    queries: list[Tensor]

    def __init__(self, keep_outputs: bool = False) -> None:
        super().__init__()
        self.keep_outputs = keep_outputs
        self._of_target: tuple[int, ...] = ()  # the shape of one, the same in all tasks
        for name in COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, tasks: Tensor, loss: Tensor, scores: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Record T tasks; shapes as in `TaskTable` with n = T."""
        queries = torch.full_like(tasks, outputs.shape[1])
        if not self.keep_outputs:
            outputs, targets = outputs[:, :0], targets[:, :0]
        sizes = torch.stack([torch.full_like(tasks, size) for size in outputs.shape[1:]], 1)
        self._of_target = tuple(targets.shape[2:])
        # Copies: a view would keep what it is a view of, such as the outputs after every inner step, for the epoch.
        # They are flat, as tasks of a list may differ in their number of queries and classes.
        for name, column in zip(COLUMNS, (tasks, loss, scores, sizes, outputs, targets, queries), strict=True):
            copied = column.detach().clone()
            getattr(self, name).append(copied.flatten() if name in ("outputs", "targets") else copied)

    def compute(self) -> TaskTable:
        """The table over all ranks; a task that was seen twice stands once."""
        columns = [at_least_float32(dim_zero_cat(getattr(self, name)).cpu()) for name in COLUMNS]
        order = columns[0].argsort(stable=True)
        tasks = columns[0][order]
        first = torch.cat([tasks.new_ones(1, dtype=torch.bool), tasks[1:] != tasks[:-1]])
        chosen = order[first]
        tasks, loss, scores, _ = (column[chosen] for column in columns[:4])
        outputs = _rows(columns[4], columns[3], chosen, torch.nan)
        shapes = columns[3][:, :1] * math.prod(self._of_target)
        targets = _rows(columns[5], shapes, chosen, -1).reshape(len(tasks), -1, *self._of_target)
        return TaskTable(tasks, _exact(loss), _exact(scores), outputs, targets, columns[6][chosen])


def _rows(flat: Tensor, sizes: Tensor, chosen: Tensor, fill: float) -> Tensor:
    """Chosen rows of different sizes out of a flat tensor, the smaller ones filled up.

    Args:
        flat: All numbers of n rows, one row after the other.
        sizes: `(n, d)` their shapes.
        chosen: `(m,)` numbers of rows.
        fill: What smaller ones are filled up with.

    Returns:
        `(m, ...)` with the largest size in each of the d dimensions.
    """
    largest = sizes.max(0).values.tolist()
    if bool((sizes == sizes[:1]).all()):
        rows = flat.view(len(sizes), *largest)
        return rows if torch.equal(chosen, torch.arange(len(sizes))) else rows[chosen]
    ends = sizes.prod(1).cumsum(0).tolist()
    filled = flat.new_full((len(chosen), *largest), fill)
    for row, number in zip(filled, chosen.tolist(), strict=True):
        size = sizes[number].tolist()
        row[tuple(slice(n) for n in size)] = flat[ends[number] - math.prod(size) : ends[number]].view(size)
    return filled


def mean_and_interval(values: Tensor, step: float = 0.0) -> tuple[float, float]:
    r"""The mean over n tasks and the half-width of its 95 % interval, $t_{n-1}\, s / \sqrt{n}$.

    t is the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom: 12.7 for two tasks, 1.96 for many.
    Equal scores do not show that the mean is known exactly, so that s is at least what it would be with one example
    more or less right in one of the tasks, $d / \sqrt{n}$ for scores in steps of d.

    Args:
        values: `(n,)`, one a task.
        step: d >= 0, the smallest difference between two scores, 1 / Q for the accuracy of Q query examples; 0 where
            there is none.

    Returns:
        The mean and the half-width; NaN where there is but one task.
    """
    from scipy.special import stdtrit  # here: 0.2 s that an import of a method does not need

    values, n = values.cpu().double(), len(values)
    if n < 2:
        return float(values.mean()), float("nan")
    deviation = max(float(values.std(correction=1)), step / n**0.5)
    return float(values.mean()), float(stdtrit(n - 1, 0.975)) * deviation / n**0.5


def _exact(values: Tensor) -> Tensor:
    """Numbers as float64: those of float32 by their decimals, so that 0.8 is 0.8 and not 0.800000011920929."""
    if values.dtype == torch.float64:
        return values
    return torch.from_numpy(values.numpy().astype(str).astype(np.float64))
