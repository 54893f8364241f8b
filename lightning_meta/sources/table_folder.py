"""A folder of tables with the same columns, one file per task, read as one table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
    """Columns of several files with the same name, concatenated; errors name the file and the row in it.

    Args:
        columns: Column of each file.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        arrays, as_text = [column.array for column in columns], None
        if all(column.as_text is not None for column in columns):
            as_text = partial(_texts, columns)
            if len({array.type for array in arrays}) > 1:  # such as numbers in one CSV file, text in another
                arrays = [as_text(())]
        by_type = {str(array.type): column for array, column in zip(arrays, columns, strict=False)}
        if len(by_type) > 1:
            (one, a), (other, b), *_ = by_type.items()
            raise UserError(f"{a.where} is of type {one}, but {b.where} of type {other}; give both the same type")
        of_index, first = all(column.of_index for column in columns), columns[0]
        super().__init__(first.where, _one(arrays), as_text, first.decimal, None, first.first_texts, of_index)
        self._parts, self._ends = columns, np.cumsum([len(column.array) for column in columns])

    def wrong(self, row: int, problem: str) -> UserError:
        """Return the error for the value of a row, which names the file of the value and the row in it."""
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self._parts[part].wrong(row - int(self._ends[part - 1] if part else 0), problem)


def _texts(columns: Sequence[Column], kept: Collection[str]) -> pyarrow.ChunkedArray:
    return _one([column.as_text(kept) for column in columns if column.as_text is not None])


def _one(arrays: Sequence[pyarrow.ChunkedArray]) -> pyarrow.ChunkedArray:
    """Join the chunks of all arrays, which have the same type."""
    from pyarrow import chunked_array

    return chunked_array([chunk for array in arrays for chunk in array.chunks], arrays[0].type)


def tables_in(folder: Path) -> list[Path]:
    """Return the tables of a folder, sorted by name; hidden files and those with other suffixes are skipped."""
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in (*DELIMITERS, ".parquet") and not file.name.startswith(".") and file.is_file()
    ]


def read_folder(folder: Path, argument: str, spelling: Spelling = PLAIN) -> tuple[dict[str, Column], list[str]]:
    """Read all tables of a folder; hidden files and those with other suffixes are skipped.

    Args:
        folder: Folder with files named .csv, .tsv or .parquet, all with the same columns in any order.
        argument: Argument that named the folder, at the beginning of messages.
        spelling: Notation of its CSV files.

    Returns:
        Columns by name, in the order of the first file; and the name of the file of each row, without the suffix.

    Raises:
        UserError: There is no table, two tables have the same name apart from the suffix, or a table cannot be read or
            has other columns.
    """
    files = tables_in(folder)
    if not files:
        raise UserError(f"{argument}{folder}: the folder holds no table; expected .csv, .tsv or .parquet files in it")
    names = [file.stem for file in files]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{argument}{folder}: two files have the name {twice!r}; each is a task and needs its own name")
    tables = [read_columns(file, argument, spelling) for file in files]
    counts = [len(next(iter(table.values())).array) for table in tables]
    tables = _without_other_indexes(tables)
    for file, table in zip(files, tables, strict=True):
        _check_same(files[0], tables[0], file, table)
    file_of_row = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    return {name: JoinedColumn([table[name] for table in tables]) for name in tables[0]}, file_of_row


def _without_other_indexes(tables: Sequence[dict[str, Column]]) -> list[dict[str, Column]]:
    """Leave out indexes of DataFrames that some files do not have, or have with another type."""
    types = {
        name: {str(table[name].array.type) if name in table else "" for table in tables}
        for name in {name for table in tables for name, column in table.items() if column.of_index}
    }
    differ = {name for name, of_tables in types.items() if len(of_tables) > 1}
    return [
        {name: column for name, column in table.items() if not (column.of_index and name in differ)} for table in tables
    ]


def _check_same(first: Path, expected: Mapping[str, Column], file: Path, columns: Mapping[str, Column]) -> None:
    for name in expected:
        if name not in columns:
            raise UserError(
                f"{file}: there is no column {name!r}, which {first.name} has; give all files the same columns"
            )
    for name in columns:
        if name not in expected:
            raise UserError(
                f"{file}: there is a column {name!r}, which {first.name} lacks; give all files the same columns"
            )
