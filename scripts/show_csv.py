"""Print columns of a CSV file as a table in Markdown, such as the verdicts of a ladder.

    python scripts/show_csv.py runs/ladder/report/verdicts.csv --columns rung test_score delta verdict

Numbers below 10 have at most four decimals, others one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reproducing.page import table

from lightning_meta.errors import UserError
from lightning_meta.run.tables import read_table


def rounded(cell: str) -> str:
    """A number below 10 with at most four decimals, others with one; other cells as they are."""
    if "." not in cell:
        return cell
    try:
        number = float(cell)
    except ValueError:
        return cell
    digits = 1 if abs(number) >= 10 else min(4, len(cell.partition(".")[2]))
    return f"{number:.{digits}f}"


def main(args: Sequence[str] | None = None) -> int:
    """Print the table; returns 2 if the file cannot be read or lacks a column."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the CSV file")
    parser.add_argument("--columns", nargs="+", help="columns in this order; by default all")
    options = parser.parse_args(args)
    try:
        names, rows = read_table(options.file, options.columns or ())
    except UserError as error:
        print(f"show_csv: error: {error}", file=sys.stderr)
        return 2
    places = [names.index(name) for name in options.columns or names]
    print(table([names[i] for i in places], [[rounded(row[i]) for i in places] for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
