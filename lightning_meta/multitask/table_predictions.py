"""Predictions for new rows of a table, as columns named after its targets."""

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

from lightning_meta.batches import Common, TaskBatch
from lightning_meta.checks import whole
from lightning_meta.data.task_batches import evaluated_at_once
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
    batch_size: int | None = None,
    argument: str = "data=",
    delimiter: str | None = None,
    decimal: Decimal | None = None,
    calibration: TableCalibration | None = None,
    keep: Sequence[str] = (),
) -> Predictions:
    """Predict the targets of new rows of a table; see `MultiTaskModule.predict_table`.

    Args:
        module: A model that was trained on a table.
        data: A path, a DataFrame, or lists by column.
        batch_size: Number of rows per forward pass, at least 1; by default `evaluated_at_once`.
        argument: Name of the argument that gave the path, with which errors begin.
        delimiter: Delimiter of the columns of a CSV file; by default as in training.
        decimal: Decimal mark of the numbers of a CSV file; by default as in training.
        calibration: Calibration of the model, which adds prediction sets, abstention and intervals.
        keep: Names of columns of the table that come first in the result, with their cells as text.

    Returns:
        Columns by name, each with one value per row.

    Raises:
        UserError: The model does not store how to encode rows, the table does not match that of training, or a column
            to keep is missing or has the name of a prediction.
    """
    from lightning_meta.sources.table_files import instead_of
    from lightning_meta.sources.table_rows import columns_in, rows_of  # reads files, which few modules need

    whole(1, batch_size=batch_size)
    spec = module.spec.table
    if spec is None:
        raise UserError(
            "the model does not store how to encode the rows of a table: it was trained by an earlier version, or not "
            "on a lightning_meta.sources.Table; train it again on one"
        )
    calibrations = {} if calibration is None else calibration.tasks
    if calibration is not None and (unknown := next((name for name in module.names if name not in calibrations), None)):
        raise UserError(f"calibration: it has no task {unknown!r}, which the model has; calibrate this model")
    columns = columns_in(data, argument, spelling_of(spec, data, delimiter, decimal))
    reach = [max(-low, high) for low, high, *_ in module.spec.input_statistics.values()]
    rows = rows_of(spec, module.names, columns, max(reach, default=np.inf))
    for name in keep:
        if name not in columns:
            raise UserError(f"--keep: the table has no column {name!r}; {instead_of(name, list(columns))}")
    shapes = set(map(tuple, module.spec.input_shapes.values()))
    if shapes != {rows.inputs.shape[1:]}:
        raise UserError(
            f"the model takes inputs of shape {shapes}, but its description of the table gives {rows.inputs.shape[1]}; "
            "the checkpoint may be damaged"
        )
    for note in rows.notes:
        _log.warning("%s", note)
    outputs = outputs_of(module, rows, batch_size)
    predictions: Predictions = {}
    if spec.task_column:
        predictions[spec.task_column] = np.array(_names_of(rows), dtype=object)
        by_row = _by_row(spec.targets[0], module.spec.tasks, outputs, rows, calibrations)
        predictions = _joined(predictions, by_row)
    else:
        for target in spec.targets:
            if target.name in outputs:
                arguments = module.spec.tasks[target.name], outputs[target.name], calibrations.get(target.name)
                predictions = _joined(predictions, columns_for(target, *arguments))
    kept: Predictions = {name: np.array(columns[name].spelled.of_rows(), dtype=object) for name in keep}
    if both := [name for name in kept if name in predictions]:
        raise UserError(f"--keep: {both[0]!r} is the name of a column of the predictions; rename it in the table")
    return kept | predictions


def _joined(predictions: Predictions, more: Predictions) -> Predictions:
    """Add columns, whose names must be new; a `Table` refuses others before training, earlier versions did not."""
    if twice := [name for name in more if name in predictions]:
        raise UserError(
            f"two columns of the predictions are called {twice[0]!r}; rename a target of the table, and train again"
        )
    return predictions | more


def spelling_of(spec: TableSpec, data: Any, delimiter: str | None, decimal: Decimal | None) -> Spelling:
    """The delimiter and decimal mark of a file of new rows: as given, otherwise as in training.

    The delimiter of training is only used for `.csv` files. Parquet files and tables in memory have neither.
    """
    from lightning_meta.sources.table_files import Spelling

    if not isinstance(data, str | PathLike):
        return Spelling()
    path = Path(data)
    Spelling(delimiter, decimal or ".").check("predict", path)
    in_training = spec.delimiter if path.suffix.lower() == ".csv" else ""
    spelling = Spelling(delimiter or in_training or None, decimal or spec.decimal)  # type: ignore[arg-type]
    return Spelling() if path.suffix.lower() == ".parquet" else spelling


def columns_for(
    target: TableTarget, task: Task, outputs: Tensor, calibration: LabelCalibration | NumberCalibration | None = None
) -> Predictions:
    """The columns of one target: numbers in the unit of the target, or the label and the probability of each class.

    With a calibration, also the interval of a number, or the set of labels and whether the model abstains.

    Args:
        target: The target: its name, its unit and the names of its classes.
        task: The task of the target.
        outputs: Outputs of the network for n rows, `(n, outputs)`.
        calibration: Calibration of the task; None for no further columns.

    Returns:
        Columns `(n,)` by name.
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
        label = (outputs[:, 0] > 0).long()  # as in accuracy; the probability may be rounded to ½
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
def outputs_of(module: MultiTaskModule, rows: Rows, batch_size: int | None = None) -> dict[str, Tensor]:
    """Compute the outputs of each task for its rows, `(n_i, outputs)`, with the weights that a test uses.

    Args:
        module: The model.
        rows: The rows.
        batch_size: Number of rows per forward pass; by default `evaluated_at_once`.
    """
    count = len(rows.inputs)
    size = batch_size or evaluated_at_once(rows.inputs, sum(map(len, rows.of_task.values())))
    parts: dict[str, list[Tensor]] = {name: [] for name in rows.of_task}
    bounds: dict[str, list[int]] = {}  # by task: where the rows of each batch begin and end among its rows
    if any(len(indices) < count for indices in rows.of_task.values()):
        starts = torch.arange(0, count + size, size)
        bounds = {name: torch.searchsorted(indices, starts).tolist() for name, indices in rows.of_task.items()}
    with in_evaluation_mode(module), untouched(module):
        for batch, start in enumerate(range(0, count, size)):
            x = rows.inputs[start : start + size].to(module.device)
            here: dict[str, Tensor] = {}
            if not bounds:
                here = Common.fromkeys(rows.of_task, torch.arange(len(x), device=x.device))
            for name, of_batches in bounds.items():
                first, end = of_batches[batch : batch + 2]
                if first < end:
                    here[name] = (rows.of_task[name][first:end] - start).to(x.device)
            inputs = dict.fromkeys(here, x) if len(module.stems) else x
            for name, y in module.selected_outputs(TaskBatch(inputs, {}, here, {})).items():
                parts[name].append(check_outputs(y))
    return {name: torch.cat(batches) for name, batches in parts.items()}


def _names_of(rows: Rows) -> list[str]:
    """The name of each row's task."""
    names = [""] * len(rows.inputs)
    for name, indices in rows.of_task.items():
        for row in indices.tolist():
            names[row] = name
    return names


def _labels_in(sets: Tensor, classes: Sequence[str]) -> NDArray[Any]:
    """The labels in each set, as a tuple for each row; sets are `(n, N)` bool."""
    labels = np.empty(len(sets), dtype=object)  # np.array would make a matrix of tuples of equal length
    for row, members in enumerate(sets.tolist()):
        labels[row] = tuple(name for name, is_member in zip(classes, members, strict=True) if is_member)
    return labels


def _by_row(
    target: TableTarget,
    tasks: Mapping[str, Task],
    outputs: Mapping[str, Tensor],
    rows: Rows,
    calibrations: Mapping[str, LabelCalibration | NumberCalibration | None],
) -> Predictions:
    """The columns of the only target, in which each row is predicted by its own task.

    If any task of the model is calibrated, there are columns for it whatever the rows: those of a task that is not
    calibrated have no set and do not say whether the model abstains, None, or have the interval NaN.
    """
    parts = [columns_for(target, tasks[name], y, calibrations.get(name)) for name, y in outputs.items()]
    order = torch.cat(list(rows.of_task.values())).argsort().numpy()
    calibration = next((of_task for of_task in calibrations.values() if of_task is not None), None)
    first, y = next(iter(outputs.items()))
    every = columns_for(target, tasks[first], y[:1], calibration)
    empty = {name: np.nan if column.dtype.kind == "f" else None for name, column in every.items()}
    cells = {
        name: [part.get(name, np.full(len(y), missing)) for part, y in zip(parts, outputs.values(), strict=True)]
        for name, missing in empty.items()
    }
    return {name: np.concatenate(columns)[order] for name, columns in cells.items()}
