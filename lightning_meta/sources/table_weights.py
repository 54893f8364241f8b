"""The column of a table with the weights of rows in the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_meta.batches import Split
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.sources.columns import Column

FLOAT32 = torch.finfo(torch.float32).max


def row_weights(column: Column) -> Tensor:
    """Return the weights of all rows, `(n,)` float64.

    Raises:
        UserError: A weight is not a number, or is negative.
    """
    weights = column.numbers
    if (weights < 0).any():
        raise column.wrong(int((weights < 0).argmax()), "expected a weight of at least 0")
    return torch.from_numpy(weights)


def with_weights(data: TaskSet, weights: Tensor) -> TaskSet:
    """Return a set in which the targets of each task have the weights of their inputs.

    Args:
        data: Set with n inputs.
        weights: Weights of the inputs, `(n,)`.
    """
    return replace(data, weights={name: weights[rows] for name, rows in data.rows.items()})


def with_mean_1(sets: Mapping[Split, TaskSet]) -> dict[Split, TaskSet]:
    """Divide the weights of each task, in all splits, by the mean of those above 0 in the training rows of the task.

    Weights that are all 0 in the training rows of a task stay so; the data module refuses them if the task is used.

    Args:
        sets: Sets with float64 weights, of any size.

    Returns:
        Sets with float32 weights.

    Raises:
        UserError: A weight is too large for float32 after the division.
    """
    weights = {split: data.weights or {} for split, data in sets.items()}
    largest = {name: of_task.max() for name, of_task in weights["train"].items() if len(of_task)}
    largest = {name: of_task for name, of_task in largest.items() if of_task > 0}
    # Divided by the largest weight first, as the sum of all may be infinite.
    relative = {name: weights["train"][name] / of_task for name, of_task in largest.items()}
    means = {name: of_task[of_task > 0].mean() for name, of_task in relative.items()}

    def scaled(name: str, split: Split) -> Tensor:
        of_task = weights[split][name]
        if name not in means:
            return of_task.clamp(max=FLOAT32).float()
        of_task = (of_task / largest[name] / means[name]).float()
        if not bool(of_task.isfinite().all()):
            raise UserError(
                f"Table weights: in the {split} split, a weight of {name!r} is more than {FLOAT32:.0e} times the mean "
                "weight of the training rows; correct it"
            )
        return of_task

    return {split: replace(data, weights={n: scaled(n, split) for n in weights[split]}) for split, data in sets.items()}
