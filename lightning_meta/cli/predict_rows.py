"""`lightning-meta predict --table`: predictions for new rows of a table, as a CSV file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import IO, Any

import numpy as np
from jsonargparse import Namespace
from numpy.typing import NDArray

from lightning_meta.cells import as_cells
from lightning_meta.cli.calibrating import read_table_calibration
from lightning_meta.errors import UserError
from lightning_meta.loading import find_checkpoint
from lightning_meta.meta import MetaModule
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.multitask.calibration import TableCalibration
from lightning_meta.multitask.table_predictions import Predictions, predict_table
from lightning_meta.run.directory import run_directory_of
from lightning_meta.run.files import replacing

ROW = "row"
"""The column that counts rows from 1, as messages do."""


def predict_rows(config: Namespace, model: Any) -> None:
    """Write the predictions of a model for new rows, one row for each in their order.

    Args:
        config: The options.
        model: As loaded.

    Raises:
        UserError: The model was not trained on a table, or the table is not like that of training.
    """
    if isinstance(model, MetaModule) and model.spec.task == "regression":
        raise UserError(
            f"--table: {type(model).__name__} of {config.ckpt_path} learns a new task from a few rows with targets; in "
            "Python, lightning_meta.load(run).predictor(inputs, targets) gives a function of new inputs"
        )
    if not isinstance(model, MultiTaskModule):
        raise UserError(
            f"--table: {type(model).__name__} of {config.ckpt_path} learns new tasks from a few examples; give "
            "--support a folder of labelled images"
        )
    if model.spec.table is None:
        raise UserError(
            f"--ckpt_path {config.ckpt_path}: the checkpoint does not say how a row becomes inputs: it was written by "
            "an earlier version, or the model was not trained on a lightning_meta.sources.Table; train it again on one"
        )
    calibration = _calibration(config, model) if config.calibrated else None
    spelling = config.delimiter, config.decimal
    predictions = predict_table(model, config.table, config.batch_size, "--table ", *spelling, calibration)
    try:
        with replacing(Path(config.out)) as out:
            _write(out, predictions)
    except OSError as error:
        raise UserError(f"--out {config.out}: the file cannot be written ({error.strerror})") from error
    rows = len(next(iter(predictions.values())))
    abstained = [of for of in predictions.values() if of.dtype == bool]
    if abstained:
        count = f"{sum(map(sum, abstained))} of {sum(map(len, abstained))}"
        print(f"abstained from {count} labels, whose classes are all too improbable (columns abstained)")
    print(f"{rows} rows, {len(model.names)} {'task' if len(model.names) == 1 else 'tasks'}: written to {config.out}")


def _calibration(config: Namespace, model: MultiTaskModule) -> TableCalibration:
    """The calibration that is stored in the run."""
    run = run_directory_of(find_checkpoint(config.ckpt_path))
    if run is None:
        raise UserError(f"--calibrated: {config.ckpt_path} is not in a run directory, where a calibration is stored")
    return read_table_calibration(run, config.ckpt_path, model)


def _write(out: IO[Any], predictions: Predictions) -> None:
    writer = csv.writer(out)
    numbered = ROW not in predictions  # a target may be called so
    writer.writerow(as_cells([*([ROW] if numbered else []), *predictions]))
    columns = [_as_text(values) for values in predictions.values()]
    for row, values in enumerate(zip(*columns, strict=True), 1):
        writer.writerow([*([row] if numbered else []), *as_cells(values)])


def _as_text(values: NDArray[Any]) -> list[str]:
    """Numbers by as few digits as tell them from others of their precision; labels as they are; sets as JSON lists."""
    if values.dtype == object:
        return [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    if values.dtype == bool:
        return ["true" if value else "false" for value in values]
    return [np.format_float_positional(v, trim="-") if 1e-4 <= abs(v) < 1e16 or v == 0 else str(v) for v in values]
