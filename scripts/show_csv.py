"""Print columns of a CSV file as a table in Markdown, such as the verdicts of a ladder.

    python scripts/show_csv.py runs/ladder/report/verdicts.csv --columns rung test_score delta verdict

Numbers below 10 have at most four decimals, others one.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from reproducing.page import table


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
        with options.file.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        print(f"show_csv: error: {options.file}: {error}", file=sys.stderr)
        return 2
    chosen = options.columns or names
    if unknown := [name for name in chosen if name not in names]:
        print(f"show_csv: error: {options.file} has no column {unknown[0]}; it has {', '.join(names)}", file=sys.stderr)
        return 2
    print(table(chosen, [[rounded(row[name] or "") for name in chosen] for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
