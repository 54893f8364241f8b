"""Print a table: framed on a terminal, in Markdown otherwise."""

from __future__ import annotations

import sys

from reproducing.page import table as markdown
from rich.console import Console
from rich.table import Table


def show(table: Table) -> None:
    """Print a table, in Markdown unless the standard output is a terminal.

    Args:
        table: Table whose headers and cells are texts.
    """
    if sys.stdout.isatty():
        Console().print(table)
        return
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    print(markdown([str(column.header) for column in table.columns], zip(*columns, strict=True)))
