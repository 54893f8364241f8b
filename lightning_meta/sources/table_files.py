"""Reading a user's table from a CSV or Parquet file."""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lightning_meta.errors import UserError, one_of
from lightning_meta.sources.columns import EXACT, Column

if TYPE_CHECKING:
    import pyarrow

LARGEST = 100_000_000  # values of a Parquet file, or a hundred for each byte: a few bytes can stand for billions
DELIMITERS = {".csv": ",", ".tsv": "\t"}

Decimal = Literal[".", ","]


class Spelling(NamedTuple):
    """How a CSV file is written.

    Attributes:
        delimiter: What divides its columns; by default a comma, and a tab in a `.tsv` file.
        decimal: What stands before the decimals of a number.
    """

    delimiter: str | None = None
    decimal: Decimal = "."

    def check(self, owner: str, path: Path | None = None) -> None:
        """Refuse what cannot be, in the arguments of an owner.

        Raises:
            UserError: The argument, what was received, and what was expected.
        """
        one_of(f"{owner} decimal", self.decimal, Decimal)
        if self.delimiter is not None and not (
            isinstance(self.delimiter, str)
            and len(self.delimiter) == 1
            and self.delimiter.isascii()
            and self.delimiter not in '"\r\n\0'
        ):
            raise UserError(f"{owner} delimiter: expected one character, such as ';', got {self.delimiter!r}")
        if self.decimal == self.delimiter:
            raise UserError(f"{owner} delimiter and decimal are both {self.decimal!r}; a table cannot be read so")
        if path is not None and path.suffix.lower() == ".parquet" and self != PLAIN:
            raise UserError(f"{owner} delimiter and decimal are of CSV files; leave them out for {path}")


PLAIN = Spelling()


def read_columns(path: Path, argument: str = "Table path=", spelling: Spelling = PLAIN) -> dict[str, Column]:
    """Read a table: all columns by name, in order. Values are parsed and nothing in the file is run.

    Args:
        path: `.csv` or `.tsv` (UTF-8, a header, missing values empty, NA, N/A, NaN or null) or `.parquet`.
        argument: What named the path, as errors begin.
        spelling: How a CSV file is written.

    Raises:
        UserError: The file is missing, damaged, empty or of another kind, or two columns have one name.
    """
    import pyarrow  # here, for no other source needs it

    if not path.is_file():
        there = "it is a folder; name a file in it" if path.is_dir() else "there is no such file; name yours"
        raise UserError(f"{argument}{path}: {there}")
    suffix = path.suffix.lower()
    if suffix not in (*DELIMITERS, ".parquet"):
        raise UserError(f"{path}: expected a table in a file named .csv, .tsv or .parquet")
    try:
        if suffix == ".parquet":
            return columns_of(_read_parquet(path), str(path))
        return _read_csv(path, spelling._replace(delimiter=spelling.delimiter or DELIMITERS[suffix]))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the table is not in UTF-8 ({error.reason}); save it anew as UTF-8") from error
    except (pyarrow.ArrowException, csv.Error, OSError, MemoryError) as error:
        raise UserError(f"{path}: the table cannot be read ({' '.join(str(error).split())})") from error


def columns_of(
    table: pyarrow.Table,
    where: str,
    as_text: Callable[[str], pyarrow.ChunkedArray] | None = None,
    decimal: str = ".",
) -> dict[str, Column]:
    """All columns of a table by name, in order.

    Args:
        table: As Arrow has it.
        where: Its name in messages.
        as_text: Reads a column of the file as text.
        decimal: What stands before the decimals in texts of numbers.

    Raises:
        UserError: It is empty, or two columns have one name.
    """
    _check_header(where, table.column_names)
    if not table.num_rows:
        raise UserError(f"{where}: the table has no rows")
    return {
        name: Column(
            f"{where}: column {name!r}",
            table.column(name),
            None if as_text is None else partial(as_text, name),
            decimal,
        )
        for name in table.column_names
    }


def _read_csv(path: Path, spelling: Spelling) -> dict[str, Column]:
    """The columns: numbers where all cells are, which takes a quarter of the time of text; else text.

    What float64 cannot hold as the file spells it is text, too. A message or a category needs the cells of a column of
    numbers as they stand: then the column is read once more.
    """
    from pyarrow import ArrowException, ArrowInvalid, types

    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(filter(None, csv.reader(file, delimiter=spelling.delimiter or ",")), [])
    _check_header(path, header)
    read = partial(_arrow_csv, path, spelling)
    try:
        table = read(dict(zip(header, _first_types(path, spelling, len(header)), strict=True)))
    except ArrowInvalid:  # a cell far below is of another type; or the file is damaged, which text shows better
        try:
            table = _by_all_rows(read, header)
        except ArrowException as error:
            if (divider := _other_delimiter(header)) is None:
                raise
            raise UserError(f"{path}: its columns are divided by {divider!r}; give delimiter={divider!r}") from error
    _check_header(path, table.column_names)
    text = [
        name
        for name, column in zip(table.column_names, table.columns, strict=True)
        if not (types.is_string(column.type) or types.is_int64(column.type))
        and not (types.is_float64(column.type) and _exact(column))
    ]
    if text:
        as_text = _columns_as_text(read, text, len(table))
        for name in text:
            table = table.set_column(table.column_names.index(name), name, as_text.column(name))

    def column_as_text(name: str) -> pyarrow.ChunkedArray:
        return _columns_as_text(read, [name], len(table)).column(name)

    return columns_of(table, str(path), column_as_text, spelling.decimal)


def _arrow_csv(
    path: Path, spelling: Spelling, column_types: dict[str, Any], only: Sequence[str] | None = None
) -> pyarrow.Table:
    from pyarrow import csv as arrow_csv

    parse = arrow_csv.ParseOptions(delimiter=spelling.delimiter, newlines_in_values=True)
    convert = arrow_csv.ConvertOptions(
        column_types=column_types, strings_can_be_null=True, decimal_point=spelling.decimal, include_columns=only
    )
    return arrow_csv.read_csv(path, parse_options=parse, convert_options=convert)


def _first_types(path: Path, spelling: Spelling, count: int) -> list[pyarrow.DataType]:
    """What the columns hold by the first rows: whole numbers, numbers or text."""
    from pyarrow import ArrowInvalid, string, types
    from pyarrow import csv as arrow_csv

    parse = arrow_csv.ParseOptions(delimiter=spelling.delimiter, newlines_in_values=True)
    convert = arrow_csv.ConvertOptions(strings_can_be_null=True, decimal_point=spelling.decimal)
    try:
        with arrow_csv.open_csv(path, parse_options=parse, convert_options=convert) as rows:
            found = [field.type for field in rows.schema]
    except ArrowInvalid:  # said better by reading it all
        found = []
    if len(found) != count:
        return [string()] * count
    return [kind if types.is_int64(kind) or types.is_float64(kind) else string() for kind in found]


def _by_all_rows(read: Callable[..., pyarrow.Table], header: Sequence[str]) -> pyarrow.Table:
    """Types that fit all rows; as text where Arrow finds none."""
    from pyarrow import ArrowInvalid, string

    try:
        return read({})
    except ArrowInvalid:
        return read(dict.fromkeys(header, string()))


def _columns_as_text(read: Callable[..., pyarrow.Table], names: list[str], rows: int) -> pyarrow.Table:
    from pyarrow import ArrowInvalid, string

    table = read(dict.fromkeys(names, string()), names)
    if len(table) != rows:
        raise ArrowInvalid("it has changed while it was read")
    return table


def _exact(column: pyarrow.ChunkedArray) -> bool:
    """Whether float64 tells whole numbers as large from their neighbours."""
    from pyarrow import compute

    low, high = compute.min_max(column).as_py().values()
    return low is None or (-EXACT["double"] < low and high < EXACT["double"])


def _read_parquet(path: Path) -> pyarrow.Table:
    from pyarrow import parquet

    plain = parquet.ParquetFile(path)
    _check_header(path, plain.schema_arrow.names)
    about = plain.metadata
    chunks = [about.row_group(g).column(c) for g in range(about.num_row_groups) for c in range(about.num_columns)]
    values = max(sum(chunk.num_values for chunk in chunks), about.num_rows * about.num_columns)
    most = max(LARGEST, 100 * path.stat().st_size)
    if values > most:
        raise UserError(f"{path}: a file of its size holds at most {most:,} values, and this says {values:,}")
    # Texts stay numbers of a dictionary, else one long text in each of many rows would fill the memory.
    table = parquet.ParquetFile(path, read_dictionary=_texts(plain.schema_arrow)).read()
    for name in table.column_names:
        _check_texts(f"{path}: column {name!r}", table.column(name), most)
    return table


def _texts(schema: pyarrow.Schema) -> list[str]:
    from pyarrow import types

    return [f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)]


def _check_texts(where: str, column: pyarrow.ChunkedArray, most: int) -> None:
    from pyarrow import compute, types

    kind = column.type.value_type if types.is_dictionary(column.type) else None
    if kind is not None and (types.is_string(kind) or types.is_large_string(kind)):
        longest = max((compute.max(compute.binary_length(c.dictionary)).as_py() or 0 for c in column.chunks), default=0)
        if longest * len(column) > 10 * most:
            raise UserError(f"{where} has texts of up to {longest:,} bytes in {len(column):,} rows, too many to hold")


def _check_header(path: Path | str, names: list[str]) -> None:
    if not names:
        raise UserError(f"{path}: the table has no columns; a CSV file begins with a line of their names")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: {count} columns are called {name!r}; every column needs a name of its own")


def _other_delimiter(names: list[str]) -> str | None:
    """What divides the columns of a file that was read as a single one."""
    return next((d for d in (";", "\t", "|", ",") if d in names[0]), None) if len(names) == 1 else None


def instead_of(name: str, columns: list[str]) -> str:
    """What to name instead of a column that is not there."""
    if (divider := _other_delimiter(columns)) is not None:
        return f"its columns are divided by {divider!r}; give delimiter={divider!r}"
    close = difflib.get_close_matches(name, columns, n=1)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(repr, columns))}"
