"""Text in CSV files that a spreadsheet would take for a formula.

A cell that begins with `=`, `+`, `-`, `@`, a tab or a line break is run by spreadsheets when the file is opened, so
names are written with an apostrophe before it, as is the custom. What is read here loses it again.

>>> as_cell("=HYPERLINK(1)"), as_cell(-0.5), as_cell("-0.5"), as_text("'=HYPERLINK(1)")
("'=HYPERLINK(1)", -0.5, '-0.5', '=HYPERLINK(1)')
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_meta.errors import UserError
from lightning_meta.reading import LARGEST_TABLE, read_text

_FORMULA = re.compile(r"'?[=+\-@\t\r\n]|''")  # an apostrophe before one of these must not be taken for ours
_ESCAPED = re.compile(r"'(?:'?[=+\-@\t\r\n]|'')")
_NUMBER = re.compile(r"[+-](?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-](?:inf|nan)")


def as_cell(value: Any) -> Any:
    """A value as it is written: text that begins like a formula gets an apostrophe, numbers stay."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def as_cells(values: Iterable[Any]) -> list[Any]:
    """A row as it is written."""
    return [as_cell(value) for value in values]


def as_text(cell: str) -> str:
    """A cell as it was meant."""
    return cell[1:] if _ESCAPED.match(cell) else cell


def read_table(file: Path) -> list[list[str]]:
    """All rows of a CSV file, its header the first, as they were meant; in bounded memory.

    Raises:
        UserError: It is damaged, too large, or no regular file.
        FileNotFoundError: There is none.
    """
    try:
        text = io.StringIO(read_text(file, LARGEST_TABLE), newline="")
        return [list(map(as_text, row)) for row in csv.reader(text)]
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is damaged: {said}; remove it, or put the run's own in its place") from error
