"""New rows of a table that a model was trained on: as inputs, and what in them is unlike training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.nn.likeness import FAR
from lightning_meta.sources.columns import Column
from lightning_meta.sources.table_features import encode
from lightning_meta.sources.table_files import PLAIN, Spelling, columns_of, instead_of, read_columns
from lightning_meta.tasks.table import NumberFeature, TableSpec, TextFeature


@dataclass(frozen=True)
class Rows:
    """Rows as a model takes them.

    Attributes:
        inputs: `(n, D)` float32.
        of_task: By name of the task, its rows, `(n_i,)` int64; all of them, unless a column names each row's task.
        notes: What was missing or not seen in training, a line each.
    """

    inputs: Tensor
    of_task: dict[str, Tensor]
    notes: list[str]


def columns_in(data: Any, argument: str = "data=", spelling: Spelling = PLAIN) -> dict[str, Column]:
    """The columns of a table in a file or in memory.

    Args:
        data: The path of a CSV or Parquet file; or what `pyarrow.table` takes: a DataFrame, or lists by column.
        argument: What named the path, as errors begin.
        spelling: How a CSV file is written.

    Raises:
        UserError: It is no table.
    """
    if isinstance(data, str | PathLike):
        return read_columns(Path(data).expanduser(), argument, spelling)
    import pyarrow

    try:
        table = pyarrow.table(data)
    except (pyarrow.ArrowException, TypeError, ValueError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"data: expected a path, a DataFrame or lists by column, got {type(data).__name__}: {said}"
        ) from error
    return columns_of(table, "data")


def rows_of(spec: TableSpec, tasks: Sequence[str], columns: Mapping[str, Column], largest: float = np.inf) -> Rows:
    """Turn new rows into inputs as those of training were.

    Args:
        spec: What the model knows of its table.
        tasks: The names of its tasks.
        columns: Of the new rows; targets and columns that the model does not know are not looked at.
        largest: The largest absolute input of training, in standard units.

    Raises:
        UserError: A column is missing, or a value cannot become an input; the column, the row and the value.
    """
    needed = [feature.name for feature in spec.features] + [spec.task_column] * bool(spec.task_column)
    _check_there(needed, columns)
    inputs = encode(columns, spec.features)
    notes = list(_notes(spec, columns))
    if given := [repr(target.name) for target in spec.targets if target.name in columns]:
        notes.append(f"targets in the table are not looked at: {', '.join(given)}")
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
        if lost := int(column.missing.sum()):
            becomes = "a category of their own" if _coded(feature) else "none of the texts of training"
            if isinstance(feature, NumberFeature):
                becomes = "the training median" if feature.quantiles else "the training mean"
            missing = f"column {feature.name!r}: {lost} of {count} values are missing, the first in row {first + 1}"
            if feature.missed is False:  # None if it is not known
                untrained = ", which was never trained" if _coded(feature) else ""
                yield f"{missing}, while no training row misses one; they count as {becomes}{untrained}"
            else:
                yield f"{missing}; {'as in training ' if feature.missed else ''}they count as {becomes}"
        if isinstance(feature, TextFeature) and (new := _not_in(feature, column)).any():
            row, (texts, codes) = int(new.argmax()), column.texts(feature.of_numbers)
            kinds = [texts[code] for code in dict.fromkeys(codes[new].tolist())]
            others = f" (and {len(kinds) - 1} more texts)" if kinds[1:] else ""
            yield (
                f"column {feature.name!r}: {int(new.sum())} of {count} values were not seen in training, the first in "
                f"row {row + 1}, {kinds[0]!r}{others}; they count as none of the texts of training"
            )


def _far(spec: TableSpec, columns: Mapping[str, Column], inputs: Tensor, limit: float) -> Iterator[str]:
    for at, (name, codes) in enumerate(zip(spec.inputs, spec.codes, strict=True)):
        far = (inputs[:, at].abs() > limit).numpy()
        if far.any() and not codes:  # a number: the other inputs are 0 or 1
            row = int(far.argmax())
            yield (
                f"column {name!r}: {int(far.sum())} of {len(far)} values are more than {FAR} times as far from the "
                f"mean as any input in training, the first in row {row + 1}, {columns[name].shown(row)}"
            )


def _coded(feature: NumberFeature | TextFeature) -> bool:
    return isinstance(feature, TextFeature) and feature.coded


def _not_in(feature: TextFeature, column: Column) -> NDArray[np.bool_]:
    known = set(feature.texts)
    texts, codes = column.texts(feature.of_numbers)
    return np.array([*(text not in known for text in texts), False])[codes]


def _of_tasks(spec: TableSpec, tasks: Sequence[str], columns: Mapping[str, Column], count: int) -> dict[str, Tensor]:
    if not spec.task_column:
        return {name: torch.arange(count) for name in tasks}
    column = columns[spec.task_column]
    if column.missing.any():
        raise column.wrong(int(column.missing.argmax()), "every row needs a value here")
    coded, known = column.texts(spec.task_of_numbers), set(tasks)
    if (row := coded.first(lambda name: name not in known)) is not None:
        some = ", ".join(map(repr, tasks[:10])) + (f" and {len(tasks) - 10} more" if len(tasks) > 10 else "")
        raise column.wrong(row, f"the model has no such task; it has {some}")
    order = dict.fromkeys(coded.codes.tolist())  # by their first rows
    return {coded.texts[code]: torch.from_numpy(np.flatnonzero(coded.codes == code)) for code in order}
