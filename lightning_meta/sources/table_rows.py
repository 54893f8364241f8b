"""Conversion of new rows of a table to inputs of a trained model, with notes on differences from the training rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.errors import UserError, reason_of, some_of
from lightning_meta.nn.likeness import FAR
from lightning_meta.sources.columns import Column
from lightning_meta.sources.table_features import encode
from lightning_meta.sources.table_files import PLAIN, Spelling, columns_of, instead_of, read_columns
from lightning_meta.tasks.table import NumberFeature, TableSpec, TextFeature

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Rows:
    """Rows of a table as inputs of a model.

    Attributes:
        inputs: Inputs `(n, D)`, float32.
        of_task: Rows of each task by name, `(n_i,)` int64, ascending; all rows, unless a column names the task of each
            row.
        notes: Lines of text about values that are missing or do not occur in training.
    """

    inputs: Tensor
    of_task: dict[str, Tensor]
    notes: list[str]


def columns_in(data: Any, argument: str = "data=", spelling: Spelling = PLAIN) -> dict[str, Column]:
    """Return the columns of a table in a file or in memory, by name.

    Args:
        data: Path of a CSV or Parquet file, or data that `pyarrow.table` accepts: a DataFrame, or a mapping of columns
            to lists, in which None and NaN are missing.
        argument: Argument that named the path, at the beginning of messages.
        spelling: Notation of a CSV file.

    Raises:
        UserError: The data are not a table.
    """
    if isinstance(data, str | PathLike):
        return read_columns(Path(data).expanduser(), argument, spelling)
    import pyarrow

    if isinstance(data, Mapping):
        data = {name: _array(name, values) for name, values in data.items()}
    try:
        table = pyarrow.table(data)
    except (pyarrow.ArrowException, TypeError, ValueError, AttributeError) as error:
        cause = reason_of(error, 200)
        raise UserError(
            f"data: expected a path, a DataFrame or lists by column, got {type(data).__name__}: {cause}"
        ) from error
    return columns_of(table, "data")


def _array(name: Any, values: Any) -> pyarrow.Array | pyarrow.ChunkedArray:
    """Return a column of a mapping, in which None and NaN are missing, also among texts."""
    import pyarrow

    if isinstance(values, pyarrow.Array | pyarrow.ChunkedArray):
        return values
    cause = f"got {type(values).__name__}"
    try:
        if not isinstance(values, str | bytes | Mapping | Set):  # of which Arrow would take the letters or keys
            return pyarrow.array(values, from_pandas=True)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        cause = reason_of(error, 200)
    raise UserError(f"data: column {name!r}: expected a list of numbers or one of texts: {cause}")


def rows_of(spec: TableSpec, tasks: Sequence[str], columns: Mapping[str, Column], largest: float = np.inf) -> Rows:
    """Convert new rows to inputs in the same way as the training rows.

    Args:
        spec: Description of the training table.
        tasks: Names of the tasks.
        columns: Columns of the new rows; targets and columns that are not in `spec` are ignored.
        largest: Largest absolute input in training, in standard units.

    Raises:
        UserError: A column is missing, or a value cannot be converted to an input; the message names the column, the
            row and the value.
    """
    needed = [feature.name for feature in spec.features] + [spec.task_column] * bool(spec.task_column)
    _check_there(needed, columns)
    inputs = encode(columns, spec.features)
    notes = list(_notes(spec, columns))
    if targets := [repr(target.name) for target in spec.targets if target.name in columns]:
        notes.append(f"targets in the table are ignored: {', '.join(targets)}")
    notes += _far(spec, columns, inputs, FAR * largest)
    return Rows(inputs, _of_tasks(spec, tasks, columns, len(inputs)), notes)


def _check_there(needed: Sequence[str], columns: Mapping[str, Column]) -> None:
    missing = [name for name in needed if name not in columns]
    if not missing:
        return
    where = next(iter(columns.values())).where.rpartition(": column ")[0]
    more = f" (and {len(missing) - 1} more that the model needs: {', '.join(map(repr, missing[1:10]))})"
    raise UserError(
        f"{where} has no column {missing[0]!r}{more if missing[1:] else ', which the model needs'}; "
        f"{instead_of(missing[0], list(columns))}"
    )


def _notes(spec: TableSpec, columns: Mapping[str, Column]) -> Iterator[str]:
    for feature in spec.features:
        column = columns[feature.name]
        count, first = len(column.missing), int(column.missing.argmax())
        if missing := int(column.missing.sum()):
            meaning = "a separate category" if _coded(feature) else "none of the training texts"
            if isinstance(feature, NumberFeature):
                meaning = "the training median" if feature.quantiles else "the training mean"
            where = f"column {feature.name!r}: {missing} of {count} values are missing, the first in "
            where += column.row_name(first)
            if feature.missed is False:  # None if it is not known
                untrained = ", which was never trained" if _coded(feature) else ""
                yield f"{where}, while no training row misses one; they are treated as {meaning}{untrained}"
            else:
                yield f"{where}; {'as in training, ' if feature.missed else ''}they are treated as {meaning}"
        if isinstance(feature, TextFeature) and (unseen := _not_in(feature, column)).any():
            row, (texts, codes) = int(unseen.argmax()), column.texts(feature.of_numbers, feature.texts)
            unseen_texts = [texts[code] for code in dict.fromkeys(codes[unseen].tolist())]
            others = f" (and {len(unseen_texts) - 1} more texts)" if unseen_texts[1:] else ""
            yield (
                f"column {feature.name!r}: {int(unseen.sum())} of {count} values do not occur in training, the first "
                f"in {column.row_name(row)}, {unseen_texts[0]!r}{others}; they are treated as none of the training "
                "texts"
            )


def _far(spec: TableSpec, columns: Mapping[str, Column], inputs: Tensor, limit: float) -> Iterator[str]:
    for i, (name, codes) in enumerate(zip(spec.inputs, spec.codes, strict=True)):
        far = (inputs[:, i].abs() > limit).numpy()
        if far.any() and not codes:  # a number: inputs of text are codes, or 0 or 1, which are not far
            row = int(far.argmax())
            yield (
                f"column {name!r}: {int(far.sum())} of {len(far)} values are more than {FAR} times as far from the "
                f"mean as any input in training, the first in {columns[name].row_name(row)}, {columns[name].shown(row)}"
            )


def _coded(feature: NumberFeature | TextFeature) -> bool:
    return isinstance(feature, TextFeature) and feature.coded


def _not_in(feature: TextFeature, column: Column) -> NDArray[np.bool_]:
    training_texts = set(feature.texts)
    texts, codes = column.texts(feature.of_numbers, feature.texts)
    return np.array([*(text not in training_texts for text in texts), False])[codes]


def _of_tasks(spec: TableSpec, tasks: Sequence[str], columns: Mapping[str, Column], count: int) -> dict[str, Tensor]:
    if not spec.task_column:
        return {name: torch.arange(count) for name in tasks}
    column = columns[spec.task_column].complete()
    coded, task_names = column.texts(spec.task_of_numbers, tasks), set(tasks)
    if (row := coded.first(lambda name: name not in task_names)) is not None:
        raise column.wrong(row, f"the model has no such task; it has {some_of(map(repr, tasks))}")
    order = dict.fromkeys(coded.codes.tolist())  # tasks in the order of their first rows
    return {coded.texts[code]: torch.from_numpy(np.flatnonzero(coded.codes == code)) for code in order}
