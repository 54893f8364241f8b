"""Scores of evaluation tasks, each counted once for any number of ranks, with confidence intervals over tasks."""

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
    """The recorded scores, on the CPU, sorted by the tasks' unique numbers.

    Not a tuple, since torchmetrics would squeeze the columns of a table with one task.

    Attributes:
        tasks: Numbers of the tasks, `(n,)`.
        loss: Query losses after the last inner step, `(n,)` float64.
        scores: Metric after 0, ..., S inner steps, `(n, S + 1)` float64.
        outputs: Outputs after the last inner step, `(n, M, outputs)`, padded with NaN if their sizes differ; or empty.
        targets: Targets `(n, M, ...)`, padded with -1; or empty.
        queries: Number of query examples of each task, `(n,)`.
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
        if metric == "mse":  # a few diverging tasks dominate the mean; NaN counts as infinite
            errors = self.scores[:, -1].nan_to_num(nan=math.inf, posinf=math.inf)
            values[f"{metric}_median"] = float(np.median(errors.numpy()))  # torch's is the smaller of the middle two
        if self.scores.shape[1] > 1:
            for step, column in enumerate(self.scores.unbind(1)):
                mean, interval = mean_and_interval(column, step_of_score)
                values[f"{metric}_step_{step}"], values[f"{metric}_step_{step}_ci95"] = mean, interval
        return values


class TaskScores(Metric):
    """Gathers the scores of tasks over batches and ranks.

    Args:
        keep_outputs: Whether to keep outputs and targets as well.
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
        self._of_target: tuple[int, ...] = ()  # the shape of one target, the same in all tasks
        for name in COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, tasks: Tensor, loss: Tensor, scores: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Record T tasks; shapes as in `TaskTable` with n = T."""
        queries = torch.full_like(tasks, outputs.shape[1])
        if not self.keep_outputs:
            outputs, targets = outputs[:, :0], targets[:, :0]
        sizes = torch.stack([torch.full_like(tasks, size) for size in outputs.shape[1:]], 1)
        self._of_target = tuple(targets.shape[2:])
        # Copies, since a view would keep its base tensor in memory for the whole epoch, such as the outputs after every
        # inner step. Flat, since the tasks of an epoch may differ in their number of queries and classes.
        for name, column in zip(COLUMNS, (tasks, loss, scores, sizes, outputs, targets, queries), strict=True):
            copied = column.detach().clone()
            getattr(self, name).append(copied.flatten() if name in ("outputs", "targets") else copied)

    def compute(self) -> TaskTable:
        """The table over all ranks; a task that was seen twice counts once."""
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
    """Chosen rows of a flat tensor, padded to a common shape.

    Args:
        flat: The entries of n rows, one row after the other.
        sizes: Shapes of the rows, `(n, d)`.
        chosen: Numbers of the chosen rows, `(m,)`.
        fill: Value of the padding.

    Returns:
        Rows `(m, ...)` with the largest size in each of the d dimensions.
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
    r"""The mean over n tasks and the half-width of its 95 % confidence interval, $t_{n-1}\, s / \sqrt{n}$.

    t is the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom: 12.7 for two tasks, 1.96 for many.
    Equal scores do not mean that the mean is known exactly. So s is at least $d / \sqrt{n}$, the standard deviation if
    a single task differed by one example, with scores in steps of d.

    Args:
        values: One score per task, `(n,)`.
        step: Smallest difference d >= 0 between two scores, such as 1 / Q for the accuracy on Q queries; 0 if there is
            none.

    Returns:
        The mean and the half-width, which is NaN for a single task.
    """
    from scipy.special import stdtrit  # imported here, since it takes 0.2 s

    values, n = values.cpu().double(), len(values)
    if n < 2:
        return float(values.mean()), float("nan")
    deviation = max(float(values.std(correction=1)), step / n**0.5)
    return float(values.mean()), float(stdtrit(n - 1, 0.975)) * deviation / n**0.5


def _exact(values: Tensor) -> Tensor:
    """Values as float64; float32 is converted by its decimals, so 0.8 stays 0.8 and not 0.800000011920929."""
    if values.dtype == torch.float64:
        return values
    return torch.from_numpy(values.numpy().astype(str).astype(np.float64))
