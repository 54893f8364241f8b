"""`lightning-meta predict --table`: predictions for new rows of a table, as a CSV file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from numpy.typing import NDArray

from lightning_meta.cli.calibrating import read_table_calibration
from lightning_meta.cli.predict_options import OF_REGRESSION, delimiter_of
from lightning_meta.errors import UserError
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.multitask.table_predictions import predict_table, spelling_of
from lightning_meta.run.tables import write_table
from lightning_meta.sources.table_files import DELIMITERS

ROW = "row"
"""The column that counts rows from 1, as messages do."""


def predict_rows(config: Namespace, model: Any) -> None:
    """Write the predictions of a model for new rows, one row for each in their order.

    Raises:
        UserError: The model was not trained on a table, or the table is not like that of training.
    """
    if not isinstance(model, MultiTaskModule):
        fix = "give --support a folder of labelled images" if model.spec.task == "classification" else OF_REGRESSION
        raise UserError(
            f"--table: {type(model).__name__} of {config.ckpt_path} learns new tasks from a few examples; {fix}"
        )
    if model.spec.table is None:
        raise UserError(
            f"--ckpt_path {config.ckpt_path}: the model was not trained on a lightning_meta.sources.Table; train it "
            "again on one"
        )
    calibration = read_table_calibration(config.ckpt_path, model) if config.calibrated else None
    given, kept = (config.delimiter, config.decimal), config.keep or []
    if ROW in kept:
        raise UserError(
            f"--keep: {ROW!r} is the column that counts the rows of the predictions; rename it in the table"
        )
    predictions = predict_table(model, config.table, config.batch_size, "--table ", *given, calibration, kept)
    spelling = spelling_of(model.spec.table, config.table, *given)
    rows = len(next(iter(predictions.values())))
    columns = [[name, *_as_text(values, spelling.decimal)] for name, values in predictions.items()]
    if ROW not in predictions:  # a target may be called so
        columns.insert(0, [ROW, *map(str, range(1, rows + 1))])
    of_table = spelling.delimiter or DELIMITERS.get(Path(config.table).suffix.lower(), ",")
    write_table(Path(config.out), zip(*columns, strict=True), delimiter_of(config.out) or of_table)
    columns_of_targets = (predictions.get(f"abstained({target.name})", ()) for target in model.spec.table.targets)
    abstained = [cell for cells in columns_of_targets for cell in cells if cell is not None]
    if abstained:
        count = f"{sum(abstained)} of {len(abstained)}"
        print(f"abstained from {count} labels, for which no class is probable enough (columns abstained)")
    print(f"{rows} rows, {len(model.names)} {'task' if len(model.names) == 1 else 'tasks'}: written to {config.out}")


def _as_text(values: NDArray[Any], decimal: str) -> list[str]:
    """Numbers by as few digits as tell them from others of their precision; labels as they are; sets as JSON lists.

    None and NaN, of rows whose task is not calibrated, become "".
    """
    if values.dtype == object:
        return ["" if v is None else v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    if values.dtype == bool:
        return ["true" if value else "false" for value in values]
    texts = [np.format_float_positional(v, trim="-") if 1e-4 <= abs(v) < 1e16 or v == 0 else str(v) for v in values]
    return ["" if text == "nan" else text.replace(".", decimal) for text in texts]
