"""Predictions for new rows of a table, as columns with the names of its targets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.batches import TaskBatch
from lightning_meta.checks import whole
from lightning_meta.errors import UserError
from lightning_meta.multitask.calibration import (
    LabelCalibration,
    NumberCalibration,
    TableCalibration,
    class_logits,
)
from lightning_meta.nn.likeness import check_outputs
from lightning_meta.nn.stateless import in_evaluation_mode, untouched
from lightning_meta.tasks import Binary, Task
from lightning_meta.tasks.table import TableSpec, TableTarget

if TYPE_CHECKING:
    from lightning_meta.multitask.base import MultiTaskModule
    from lightning_meta.sources.table_files import Decimal, Spelling
    from lightning_meta.sources.table_rows import Rows

Predictions = dict[str, NDArray[Any]]

_log = logging.getLogger(__name__)


def predict_table(
    module: MultiTaskModule,
    data: Any,
    batch_size: int,
    argument: str = "data=",
    delimiter: str | None = None,
    decimal: Decimal | None = None,
    calibration: TableCalibration | None = None,
) -> Predictions:
    """What `MultiTaskModule.predict_table` returns.

    Args:
        module: A model that was trained on a table.
        data: A path, a DataFrame, or lists by column.
        batch_size: Rows that are predicted at once.
        argument: What named the path, as errors begin.
        delimiter: What divides the columns of a CSV file; by default as in training.
        decimal: What stands before the decimals of its numbers; by default as in training.
        calibration: Adds sets, abstention and intervals.

    Raises:
        UserError: The model does not know how a row becomes inputs, or the table is not like that of training.
    """
    from lightning_meta.sources.table_rows import columns_in, rows_of  # reads files, which few modules need

    whole(1, batch_size=batch_size)
    spec = module.spec.table
    if spec is None:
        raise UserError(
            "the model does not know how a row becomes inputs: it was trained by an earlier version, or not on a "
            "lightning_meta.sources.Table; train it anew on one"
        )
    of_tasks = {} if calibration is None else calibration.tasks
    if calibration is not None and (unknown := next((name for name in module.names if name not in of_tasks), None)):
        raise UserError(f"calibration: it has no task {unknown!r}, which the model has; calibrate this model")
    columns = columns_in(data, argument, _spelling(spec, data, delimiter, decimal))
    reach = [max(-low, high) for low, high, *_ in module.spec.input_statistics.values()]
    rows = rows_of(spec, module.names, columns, max(reach, default=np.inf))
    shapes = set(map(tuple, module.spec.input_shapes.values()))
    if shapes != {rows.inputs.shape[1:]}:
        raise UserError(
            f"the model takes inputs of shape {shapes}, and its table gives {rows.inputs.shape[1]}; damaged?"
        )
    for note in rows.notes:
        _log.warning("%s", note)
    outputs = outputs_of(module, rows, batch_size)
    predictions: Predictions = {}
    if spec.task_column:
        predictions[spec.task_column] = np.array(_names_of(rows), dtype=object)
        predictions |= _by_row(spec.targets[0], module.spec.tasks, outputs, rows, of_tasks)
    else:
        for target in spec.targets:
            if target.name in outputs:
                of_task = module.spec.tasks[target.name], outputs[target.name], of_tasks.get(target.name)
                predictions |= columns_for(target, *of_task)
    return predictions


def _spelling(spec: TableSpec, data: Any, delimiter: str | None, decimal: Decimal | None) -> Spelling:
    """How a file of new rows is written: as is said, else as the table of training where it is a file of its kind."""
    from lightning_meta.sources.table_files import Spelling

    if not isinstance(data, str | PathLike):
        return Spelling()
    path = Path(data)
    Spelling(delimiter, decimal or ".").check("predict", path)
    of_training = spec.delimiter if path.suffix.lower() == ".csv" else ""
    found = Spelling(delimiter or of_training or None, decimal or spec.decimal)  # type: ignore[arg-type]
    return Spelling() if path.suffix.lower() == ".parquet" else found


def columns_for(
    target: TableTarget, task: Task, outputs: Tensor, calibration: LabelCalibration | NumberCalibration | None = None
) -> Predictions:
    """The columns of one target: numbers in its unit; or the label, and the probability of each class.

    With a calibration also the interval of a number, or the set of labels and whether the model abstains.

    Args:
        target: Its names.
        task: Its kind.
        outputs: `(n, outputs)`.
        calibration: That of the task.
    """
    if not target.classes:
        unit = f" [{target.unit}]" if target.unit else ""
        numbers = task.readable(outputs)[:, 0].cpu()
        columns: Predictions = {f"{target.name}{unit}": numbers.numpy()}
        if isinstance(calibration, NumberCalibration):
            for name, radius in (("lower", -calibration.radius), ("upper", calibration.radius)):
                columns[f"{name}({target.name}){unit}"] = (numbers + radius).numpy()
        return columns
    probabilities = task.for_classes(outputs).float().cpu()
    if isinstance(task, Binary):
        probabilities = torch.stack([1 - probabilities, probabilities], 1)
        label = (outputs[:, 0] > 0).long()  # as accuracy has it: a probability of ½ may be rounded
    else:
        label = outputs.argmax(1)
    columns = {target.name: np.array(target.classes, dtype=object)[label.cpu().numpy()]}
    if isinstance(calibration, LabelCalibration):
        logits = class_logits(task, outputs.cpu())
        probabilities = calibration.probabilities(logits).float()
        columns[f"set({target.name})"] = _labels_in(calibration.sets(logits), target.classes)
        columns[f"abstained({target.name})"] = calibration.abstained(logits).numpy()
    return columns | {f"p({target.name}={c})": p.numpy() for c, p in zip(target.classes, probabilities.T, strict=True)}


@torch.no_grad()
def outputs_of(module: MultiTaskModule, rows: Rows, batch_size: int) -> dict[str, Tensor]:
    """The outputs of each task for its rows, `(n_i, outputs)`, of the weights that a test uses."""
    count = len(rows.inputs)
    parts: dict[str, list[Tensor]] = {name: [] for name in rows.of_task}
    with in_evaluation_mode(module), untouched(module):
        for start in range(0, count, batch_size):
            x = rows.inputs[start : start + batch_size].to(module.device)
            here = {}
            for name, of in rows.of_task.items():
                inside = of[(of >= start) & (of < start + batch_size)] - start
                if len(inside):
                    here[name] = inside.to(module.device)
            inputs = dict.fromkeys(here, x) if len(module.stems) else x
            for name, y in module.selected_outputs(TaskBatch(inputs, {}, here, {})).items():
                parts[name].append(check_outputs(y))
    return {name: torch.cat(of) for name, of in parts.items()}


def _names_of(rows: Rows) -> list[str]:
    names = [""] * len(rows.inputs)
    for name, of in rows.of_task.items():
        for row in of.tolist():
            names[row] = name
    return names


def _labels_in(sets: Tensor, classes: Sequence[str]) -> NDArray[Any]:
    """The labels of each set, a tuple for each row."""
    labels = np.empty(len(sets), dtype=object)  # NumPy would make a matrix of tuples of one length
    for row, inside in enumerate(sets.tolist()):
        labels[row] = tuple(name for name, here in zip(classes, inside, strict=True) if here)
    return labels


def _by_row(
    target: TableTarget,
    tasks: Mapping[str, Task],
    outputs: Mapping[str, Tensor],
    rows: Rows,
    calibrations: Mapping[str, LabelCalibration | NumberCalibration],
) -> Predictions:
    """The columns of the one target, each row from its own task."""
    parts = [columns_for(target, tasks[name], y, calibrations.get(name)) for name, y in outputs.items()]
    order = torch.cat(list(rows.of_task.values())).argsort().numpy()
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
