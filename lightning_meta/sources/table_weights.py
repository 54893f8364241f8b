"""The column of a table with the weights of rows in the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_meta.batches import Split
from lightning_meta.data.task_set import TaskSet
from lightning_meta.sources.columns import Column


def row_weights(column: Column) -> Tensor:
    """Return the weights of all rows, `(n,)` float32.

    Raises:
        UserError: A weight is not a number, or is negative.
    """
    weights = column.numbers
    if (weights < 0).any():
        raise column.wrong(int((weights < 0).argmax()), "expected a weight of at least 0")
    return torch.from_numpy(weights).float()


def with_weights(data: TaskSet, weights: Tensor) -> TaskSet:
    """Return a set in which the targets of each task have the weights of their inputs.

    Args:
        data: Set with n inputs.
        weights: Weights of the inputs, `(n,)`.
    """
    return replace(data, weights={name: weights[rows] for name, rows in data.rows.items()})


def with_mean_1(sets: Mapping[Split, TaskSet]) -> dict[Split, TaskSet]:
    """Divide the weights of each task, in all splits, by their mean over the training rows of the task.

    Weights that are all 0 in the training rows of a task stay so; the data module refuses them if the task is used.
    """
    weights = {split: data.weights or {} for split, data in sets.items()}
    means = {name: of_task.mean() for name, of_task in weights["train"].items() if len(of_task)}
    means = {name: mean for name, mean in means.items() if mean > 0}
    return {
        split: replace(data, weights={n: w / means[n] if n in means else w for n, w in weights[split].items()})
        for split, data in sets.items()
    }
