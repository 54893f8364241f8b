"""Write the CSV files of a run directory, and read them, which may be damaged or malicious."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightning_meta.cells import as_cells, as_text
from lightning_meta.errors import UserError, reason_of, some_of
from lightning_meta.reading import LARGEST_TABLE, read_bytes
from lightning_meta.run.files import replacing

_log = logging.getLogger(__name__)

_BINARY = re.compile("[\0\udc80-\udcff]")  # NUL, and bytes that are not UTF-8, as `surrogateescape` reads them


def write_table(file: Path, rows: Iterable[Iterable[Any]], delimiter: str = ",") -> None:
    """Write a CSV file atomically, with text that a spreadsheet would run as a formula escaped."""
    with replacing(file) as target:
        csv.writer(target, delimiter=delimiter).writerows(map(as_cells, rows))


def read_table(file: Path, required: Sequence[str] = (), rows: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Read a CSV file and check that its rows are complete.

    A last row without an end of line was left by a killed process and is left out.

    Args:
        file: The file.
        required: Columns that it must have.
        rows: Number of rows to read; by default all. Later rows are not checked.

    Returns:
        The names of the columns, and the rows.

    Raises:
        UserError: The file cannot be read, is not text, lacks a column, has too few rows, or an incomplete row.
    """
    try:
        text = read_bytes(file, LARGEST_TABLE).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error
    whole = text[: text.rfind("\n") + 1]
    reader = csv.reader(io.StringIO(whole, newline=""), strict=True)
    try:
        columns, table = next(reader, []), list(islice(reader, rows))
    except csv.Error as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if wrong := _wrong(columns, table, required, rows, [text] if not whole else []):
        raise UserError(f"{file} is damaged: {wrong}")
    if whole != text and (rows is None or len(table) < rows):
        _log.warning("%s: the last row is not whole, and is left out", file)
    return list(map(as_text, columns)), [list(map(as_text, row)) for row in table]


def read_columns(file: Path, required: Sequence[str] = ()) -> dict[str, list[str]]:
    """Read a CSV file as `read_table` does, and return its values by column."""
    columns, rows = read_table(file, required)
    return {name: [row[i] for row in rows] for i, name in enumerate(columns)}


def numbers_of(file: Path, column: str, values: Sequence[str]) -> list[float]:
    """Convert the values of a column to numbers; empty values become NaN.

    Raises:
        UserError: A value is not a number.
    """
    try:
        return [float(value or "nan") for value in values]
    except ValueError as error:
        raise UserError(f"{file} is damaged, in column {column!r}: {reason_of(error, 100)}") from error


def _wrong(
    columns: list[str], table: list[list[str]], required: Sequence[str], rows: int | None, torn: list[str]
) -> str | None:
    if any(_BINARY.search(cell) for row in (columns, *table, torn) for cell in row):
        return "it is not a text file"
    names = list(map(as_text, columns))
    if len(set(names)) < len(names):
        return "two of its columns have one name"
    if missing := [name for name in required if name not in names]:
        return f"it has no column {missing[0]!r}, only {some_of(names, 6)[:200] or 'nothing'}"
    for number, row in enumerate(table, 1):
        if len(row) != len(columns):
            return f"row {number} has {len(row)} values, and there are {len(columns)} columns"
    return f"it has {len(table)} rows, and {rows} were written" if rows and len(table) < rows else None
