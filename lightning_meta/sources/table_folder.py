"""A folder of tables with the same columns, one file a task, as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_meta.errors import UserError
from lightning_meta.sources.columns import Column
from lightning_meta.sources.table_files import DELIMITERS, PLAIN, Spelling, read_columns

if TYPE_CHECKING:
    import pyarrow


class JoinedColumn(Column):
    """The columns of one name of several files, one after the other; errors name the file and the row in it.

    Args:
        columns: Of each file.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        arrays, as_text = [column.array for column in columns], None
        if all(column.as_text is not None for column in columns):
            as_text = partial(_texts, columns)
            if len({array.type for array in arrays}) > 1:  # whole numbers in one CSV file, fractions or text in another
                arrays = [as_text()]
        kinds = {str(array.type): column for array, column in zip(arrays, columns, strict=False)}
        if len(kinds) > 1:
            (one, a), (other, b), *_ = kinds.items()
            raise UserError(f"{a.where} is of type {one}, but {b.where} of type {other}; give both one type")
        super().__init__(columns[0].where, _one(arrays), as_text, columns[0].decimal)
        self._parts, self._ends = columns, np.cumsum([len(column.array) for column in columns])

    def wrong(self, row: int, problem: str) -> UserError:
        """The error for a value, with its own file and row."""
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self._parts[part].wrong(row - int(self._ends[part - 1] if part else 0), problem)


def _texts(columns: Sequence[Column]) -> pyarrow.ChunkedArray:
    return _one([column.as_text() for column in columns if column.as_text is not None])


def _one(arrays: Sequence[pyarrow.ChunkedArray]) -> pyarrow.ChunkedArray:
    """The chunks of all arrays, which are of one type."""
    from pyarrow import chunked_array

    return chunked_array([chunk for array in arrays for chunk in array.chunks], arrays[0].type)


def read_folder(folder: Path, argument: str, spelling: Spelling = PLAIN) -> tuple[dict[str, Column], list[str]]:
    """Read all tables of a folder; hidden files and those of other kinds are passed over.

    Args:
        folder: With files named .csv, .tsv or .parquet, all with the same columns in any order.
        argument: What named the folder, as errors begin.
        spelling: How its CSV files are written.

    Returns:
        The columns by name, in the order of the first file; and for each row the name of its file without the suffix.

    Raises:
        UserError: There is no table, two have one name but for the suffix, or one that cannot be read or has other
            columns.
    """
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in (*DELIMITERS, ".parquet") and not file.name.startswith(".") and file.is_file()
    ]
    if not files:
        raise UserError(f"{argument}{folder}: the folder holds no table; expected .csv, .tsv or .parquet files in it")
    names = [file.stem for file in files]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{argument}{folder}: two files are called {twice!r}; each is a task with a name of its own")
    tables = [read_columns(file, argument, spelling) for file in files]
    for file, table in zip(files, tables, strict=True):
        _check_same(files[0], tables[0], file, table)
    rows = [len(next(iter(table.values())).missing) for table in tables]
    of_row = [name for name, count in zip(names, rows, strict=True) for _ in range(count)]
    return {name: JoinedColumn([table[name] for table in tables]) for name in tables[0]}, of_row


def _check_same(first: Path, wanted: Mapping[str, Column], file: Path, columns: Mapping[str, Column]) -> None:
    for name in wanted:
        if name not in columns:
            raise UserError(f"{file}: there is no column {name!r}, which {first.name} has; give all files the same")
    for name in columns:
        if name not in wanted:
            raise UserError(f"{file}: there is a column {name!r}, which {first.name} lacks; give all files the same")
