"""Text in CSV files that a spreadsheet would take for a formula.

A cell that begins with `=`, `+`, `-`, `@`, a tab or a line break is run by spreadsheets when the file is opened, so
names are written with an apostrophe before it, as is the custom. What is read here loses it again.

>>> as_cell("=HYPERLINK(1)"), as_cell(-0.5), as_cell("-0.5"), as_text("'=HYPERLINK(1)")
("'=HYPERLINK(1)", -0.5, '-0.5', '=HYPERLINK(1)')
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_FORMULA = re.compile(r"'?[=+\-@\t\r\n]|''")  # an apostrophe before one of these must not be taken for ours
_ESCAPED = re.compile(r"'(?:'?[=+\-@\t\r\n]|'')")
_NUMBER = re.compile(r"[+-](?:\d+[.,]?\d*|[.,]\d+)(?:[eE][+-]?\d+)?|[+-](?:inf|nan)")


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
