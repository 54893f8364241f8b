"""The predictions of a test in the units of the targets, as written to `predictions.npz`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_meta.multitask.records import RecordTable
from lightning_meta.tasks import Binary, Classification, Multilabel, Task


def predictions_of(table: RecordTable, tasks: Mapping[str, Task]) -> Tensor:
    """Return the prediction for each example, in the order of `RecordTable.columns`.

    Args:
        table: Records of a split.
        tasks: The tasks by name, in order.

    Returns:
        Predictions `(n, width)` float64, where those of narrower tasks are padded with NaN: numbers in the unit of the
        target, the number of the class, or 0 and 1 for binary labels; NaN if the outputs are.
    """
    parts = [_of_task(task, table.of[name].outputs, table.of[name].targets) for name, task in tasks.items()]
    width = max((part.shape[1] for part in parts), default=0)
    padded = [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=torch.nan) for part in parts]
    return torch.cat(padded) if padded else torch.empty(0, 0, dtype=torch.float64)


def _of_task(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    if isinstance(task, Classification):
        unknown = outputs.isnan().any(1, keepdim=True)  # argmax would return the class of the NaN
        return outputs.argmax(1, keepdim=True).double().masked_fill(unknown, torch.nan)
    if isinstance(task, Binary | Multilabel):
        return (outputs > 0).double().masked_fill(outputs.isnan(), torch.nan)
    numbers = task.readable(outputs).double()
    numbers = numbers.unsqueeze(1) if numbers.dim() == 1 else numbers.flatten(1)
    return numbers[:, : targets[:1].numel()] if len(outputs) else numbers  # without standard deviations
