"""Scores of evaluation tasks: each counted once at any number of ranks, with an interval over tasks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_meta.functional.precision import at_least_float32

COLUMNS = ("tasks", "loss", "scores", "outputs", "targets")


class TaskTable:
    """What was recorded, on the CPU, in the order of the tasks' numbers, which are unique.

    It is no tuple, since torchmetrics would squeeze the columns of a table of one task.

    Attributes:
        tasks: `(n,)`.
        loss: `(n,)` float64, the query loss after the last inner step.
        scores: `(n, S + 1)` float64, the metric after 0, ..., S inner steps.
        outputs: `(n, M, outputs)` after the last inner step, or empty.
        targets: `(n, M, ...)`, or empty.
    """

    def __init__(self, tasks: Tensor, loss: Tensor, scores: Tensor, outputs: Tensor, targets: Tensor) -> None:
        self.tasks, self.loss, self.scores = tasks, loss, scores
        self.outputs, self.targets = outputs, targets

    def summary(self, metric: str) -> dict[str, float]:
        """Means over tasks by name: the loss, the metric with its interval, and the metric after each inner step."""
        mean, interval = mean_and_interval(self.scores[:, -1])
        values = {"loss": float(self.loss.mean()), metric: mean, f"{metric}_ci95": interval}
        if metric == "mse":  # a few tasks that blow up decide the mean
            values[f"{metric}_median"] = float(self.scores[:, -1].median())
        if self.scores.shape[1] > 1:
            for step, column in enumerate(self.scores.unbind(1)):
                values[f"{metric}_step_{step}"], values[f"{metric}_step_{step}_ci95"] = mean_and_interval(column)
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
    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(self, keep_outputs: bool = False) -> None:
        super().__init__()
        self.keep_outputs = keep_outputs
        for name in COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, tasks: Tensor, loss: Tensor, scores: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Record T tasks; shapes as in `TaskTable` with n = T."""
        if not self.keep_outputs:
            outputs, targets = outputs[:, :0], targets[:, :0]
        # Copies: a view would keep what it is a view of, such as the outputs after every inner step, for the epoch.
        for name, column in zip(COLUMNS, (tasks, loss, scores, outputs, targets), strict=True):
            getattr(self, name).append(column.detach().clone())

    def compute(self) -> TaskTable:
        """The table over all ranks; a task that was seen twice stands once."""
        columns = [at_least_float32(dim_zero_cat(getattr(self, name)).cpu()) for name in COLUMNS]
        order = columns[0].argsort(stable=True)
        tasks = columns[0][order]
        first = torch.cat([tasks.new_ones(1, dtype=torch.bool), tasks[1:] != tasks[:-1]])
        tasks, loss, scores, outputs, targets = (column[order[first]] for column in columns)
        return TaskTable(tasks, _exact(loss), _exact(scores), outputs, targets)


def mean_and_interval(values: Tensor) -> tuple[float, float]:
    r"""The mean over n tasks and the half-width of its 95 % interval, $1.96\, s / \sqrt{n}$.

    Args:
        values: `(n,)`, one a task.

    Returns:
        The mean and the half-width; NaN where there is but one task.
    """
    values = values.cpu().double()
    interval = 1.96 * values.std(correction=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return float(values.mean()), float(interval)


def _exact(values: Tensor) -> Tensor:
    """Numbers as float64: those of float32 by their decimals, so that 0.8 is 0.8 and not 0.800000011920929."""
    if values.dtype == torch.float64:
        return values
    return torch.from_numpy(values.numpy().astype(str).astype(np.float64))
