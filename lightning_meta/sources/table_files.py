"""Reading a user's table from a CSV or Parquet file."""

from __future__ import annotations

import csv
import difflib
import json
import logging
from array import array
from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lightning_meta.errors import UserError, one_of, reason_of
from lightning_meta.sources.columns import EXACT, MISSING, Column
from lightning_meta.sources.table_messages import say

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import csv as arrow_csv

# Most values of a Parquet file, or 100 per byte if that is more: a few bytes can encode billions of values.
LARGEST = 100_000_000
FIRST_ROWS = 1000  # rows that show how the numbers of a column are written
DELIMITERS = {".csv": ",", ".tsv": "\t"}

Decimal = Literal[".", ","]

_log = logging.getLogger(__name__)


class Spelling(NamedTuple):
    """Notation of a CSV file.

    Attributes:
        delimiter: Separator of the columns, one character; by default a comma, or a tab in a `.tsv` file.
        decimal: Decimal mark of numbers, a point or a comma.
    """

    delimiter: str | None = None
    decimal: Decimal = "."

    def check(self, owner: str, path: Path | None = None) -> None:
        """Check the arguments.

        Args:
            owner: Name of the class that takes these arguments, for messages.
            path: Path of the table, if it is known.

        Raises:
            UserError: An argument is invalid, or both contradict each other or the suffix of the file.
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
            raise UserError(f"{owner} delimiter and decimal are both {self.decimal!r}; they must differ")
        if path is not None and path.suffix.lower() == ".parquet" and self != PLAIN:
            raise UserError(f"{owner} delimiter and decimal apply only to CSV files; leave them out for {path}")


PLAIN = Spelling()


def read_columns(path: Path, argument: str = "Table path=", spelling: Spelling = PLAIN) -> dict[str, Column]:
    """Read a table from a file, without running any code that the file may contain.

    Args:
        path: Path of a `.csv` or `.tsv` file (in UTF-8, with a header, missing values as in `columns.MISSING`) or a
            `.parquet` file.
        argument: Argument that named the path, at the beginning of messages.
        spelling: Notation of a CSV file.

    Returns:
        Columns by name, in the order of the file.

    Raises:
        UserError: The file is missing, damaged, empty or of another kind, or two columns have the same name.
    """
    import pyarrow  # here, as only tables need it

    if not path.is_file():
        problem = "it is a folder; name a file in it" if path.is_dir() else "there is no such file; name yours"
        raise UserError(f"{argument}{path}: {problem}")
    suffix = path.suffix.lower()
    if suffix not in (*DELIMITERS, ".parquet"):
        raise UserError(f"{path}: expected a table in a file named .csv, .tsv or .parquet")
    try:
        if suffix == ".parquet":
            return columns_of(_read_parquet(path), str(path))
        return _read_csv(path, spelling._replace(delimiter=spelling.delimiter or DELIMITERS[suffix]))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the table is not in UTF-8 ({error.reason}); save it as UTF-8") from error
    except (pyarrow.ArrowException, csv.Error, OSError, MemoryError) as error:
        raise UserError(f"{path}: the table cannot be read ({reason_of(error)})") from error


def columns_of(table: pyarrow.Table, where: str) -> dict[str, Column]:
    """Return all columns of a table by name, in order.

    Args:
        table: Table in memory.
        where: Name of the table in messages.

    Raises:
        UserError: The table is empty, or two columns have the same name.
    """
    _check_table(where, table)
    index = _index_of(table.schema)
    return {
        name: Column(f"{where}: column {name!r}", table.column(name), of_index=name in index)
        for name in table.column_names
    }


def _index_of(schema: pyarrow.Schema) -> set[str]:
    """Return the names of the columns in which pandas has stored the index of a DataFrame; other metadata has none."""
    try:
        metadata = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    except (ValueError, RecursionError):  # not from pandas
        return set()
    index = metadata.get("index_columns") if isinstance(metadata, dict) else None
    # An index of consecutive numbers is described by a dictionary, and has no column.
    return {name for name in index if isinstance(name, str)} if isinstance(index, list) else set()


def _read_csv(path: Path, spelling: Spelling) -> dict[str, Column]:
    """Read the columns of a CSV file.

    A column is read as numbers if all its cells are, which takes a quarter of the time of text, and otherwise as text.
    Columns of numbers that float64 cannot represent exactly are read as text, too. If a message or a category needs the
    cells of a column of numbers as written, the column is read again as text.
    """
    from pyarrow import ArrowException, ArrowInvalid, types
    from pyarrow import csv as arrow_csv

    with closing(_records(path, spelling.delimiter or ",")) as records:
        _, header = next(records, (0, []))
    _check_header(path, header)
    first_types = dict(zip(header, _first_types(path, spelling, len(header)), strict=True))
    try:
        table = arrow_csv.read_csv(path, None, *_csv_options(spelling, first_types))
    except ArrowInvalid:  # a later cell has another type, or the file is damaged, for which text gives a better message
        try:
            table = _by_all_rows(path, spelling, header)
        except ArrowException as error:
            if (other := other_delimiter(header)) is None:
                if (uneven := _uneven(path, spelling.delimiter or ",")) is not None:
                    raise uneven from error
                raise
            raise UserError(f"{path}: its columns are separated by {other!r}; set delimiter={other!r}") from error
    _check_table(path, table)
    text = [
        name
        for name, column in zip(table.column_names, table.columns, strict=True)
        if not (types.is_string(column.type) or types.is_int64(column.type))
        and not (types.is_float64(column.type) and _exact(column))
    ]
    if text:
        as_text = _columns_as_text(path, spelling, text, len(table))
        for name in text:
            table = table.set_column(table.column_names.index(name), name, as_text.column(name))

    def column_as_text(name: str, kept: Collection[str]) -> pyarrow.ChunkedArray:
        return _columns_as_text(path, spelling, [name], len(table), kept).column(name)

    written = _Written(path, spelling.delimiter or ",")
    return {
        name: Column(
            f"{path}: column {name!r}",
            table.column(name),
            partial(column_as_text, name),
            spelling.decimal,
            written.line_of,
            partial(written.first_texts, index),
        )
        for index, name in enumerate(table.column_names)
    }


class _Written:
    """A CSV file as it is written, which is read again only for messages, and its first rows for warnings.

    A cell may contain line breaks, and empty lines are skipped.
    """

    def __init__(self, path: Path, delimiter: str) -> None:
        self._path, self._delimiter, self._known = path, delimiter, array("q")

    @cached_property
    def _first(self) -> list[list[str]]:
        try:
            with closing(_records(self._path, self._delimiter)) as records:
                return [cells for _, cells in islice(records, 1, FIRST_ROWS + 1)]  # the first is the header
        except (OSError, UnicodeDecodeError, csv.Error):
            return []

    def first_texts(self, index: int) -> list[str]:
        """Return the cells of a column in the first rows."""
        return [cells[index].strip() for cells in self._first if index < len(cells)]

    def line_of(self, row: int) -> int | None:
        """Return the line of a row, both counted in the usual way: lines from 1, rows from 0; None if it is unknown."""
        if row >= len(self._known):
            try:
                with closing(_records(self._path, self._delimiter)) as records:
                    end = max(row + 2, 2 * len(self._known))  # more than asked for, since messages come by row
                    self._known = array("q", (line for line, _ in islice(records, 1, end)))
            except (OSError, UnicodeDecodeError, csv.Error):  # such as a cell that is longer than csv accepts
                return None
        return self._known[row] if row < len(self._known) else None


def _records(path: Path, delimiter: str) -> Generator[tuple[int, list[str]], None, None]:
    """Yield the line in which each record of a CSV file begins, and its cells; empty lines are skipped."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader, end = csv.reader(file, delimiter=delimiter), 0
        for cells in reader:
            if cells:
                yield end + 1, cells
            end = reader.line_num


def _uneven(path: Path, delimiter: str) -> UserError | None:
    """Return the error for the first row that has not as many cells as the header; None if there is none."""
    with closing(_records(path, delimiter)) as records:
        first, header = next(records)
        uneven = next(((line, cells) for line, cells in records if len(cells) != len(header)), None)
    if uneven is None:
        return None
    line, cells = uneven
    count = f"{len(cells)} cell{'s' * (len(cells) != 1)}"
    fix = "correct the line, or remove lines above the header"
    if any("\n" in cell for cell in cells):
        fix = "a cell in it has line breaks: a quotation mark may not be closed"
    return UserError(f"{path}: line {line} has {count}, but the header in line {first} has {len(header)}; {fix}")


def _csv_options(
    spelling: Spelling,
    column_types: dict[str, pyarrow.DataType] | None = None,
    only: Sequence[str] | None = None,
    kept: Collection[str] = (),
) -> tuple[arrow_csv.ParseOptions, arrow_csv.ConvertOptions]:
    """Return how Arrow parses and converts a CSV file.

    Args:
        spelling: Notation of the file.
        column_types: Types by column; others are inferred.
        only: Names of the columns to read; by default all.
        kept: Texts that do not mean missing, although `MISSING` lists them.
    """
    from pyarrow import csv as arrow_csv

    return (
        arrow_csv.ParseOptions(delimiter=spelling.delimiter, newlines_in_values=True),
        arrow_csv.ConvertOptions(
            column_types=column_types,
            null_values=[text for text in MISSING if text not in kept],
            strings_can_be_null=True,
            decimal_point=spelling.decimal,
            include_columns=only,
        ),
    )


def _first_types(path: Path, spelling: Spelling, count: int) -> list[pyarrow.DataType]:
    """Return the types of the columns in the first rows of the file: int64, float64 or string."""
    from pyarrow import ArrowInvalid, string, types
    from pyarrow import csv as arrow_csv

    try:
        with arrow_csv.open_csv(path, None, *_csv_options(spelling)) as rows:
            kinds = [field.type for field in rows.schema]
    except ArrowInvalid:  # reading the whole file gives a better message
        kinds = []
    if len(kinds) != count:
        return [string()] * count
    return [kind if types.is_int64(kind) or types.is_float64(kind) else string() for kind in kinds]


def _by_all_rows(path: Path, spelling: Spelling, header: Sequence[str]) -> pyarrow.Table:
    """Read the table with types that fit all rows, as Arrow infers them, or as text if Arrow finds none."""
    from pyarrow import ArrowInvalid, string
    from pyarrow import csv as arrow_csv

    try:
        return arrow_csv.read_csv(path, None, *_csv_options(spelling))
    except ArrowInvalid:
        return arrow_csv.read_csv(path, None, *_csv_options(spelling, dict.fromkeys(header, string())))


def _columns_as_text(
    path: Path, spelling: Spelling, names: list[str], rows: int, kept: Collection[str] = ()
) -> pyarrow.Table:
    from pyarrow import ArrowInvalid, string
    from pyarrow import csv as arrow_csv

    table = arrow_csv.read_csv(path, None, *_csv_options(spelling, dict.fromkeys(names, string()), names, kept))
    if len(table) != rows:
        raise ArrowInvalid("it changed while it was read")
    return table


def _exact(column: pyarrow.ChunkedArray) -> bool:
    """Whether all numbers are small enough for float64 to represent every whole number of their magnitude."""
    from pyarrow import compute

    low, high = compute.min_max(column).as_py().values()
    return low is None or (-EXACT["double"] < low and high < EXACT["double"])


def _read_parquet(path: Path) -> pyarrow.Table:
    """Read the columns without nested values; the others have none in the result, since tables cannot use them.

    A few bytes of a file may declare any number of values. Those of nested columns are not looked up, because pyarrow
    ends the process if the description of a column is damaged.
    """
    from pyarrow import list_, null, nulls, parquet

    plain = parquet.ParquetFile(path)
    schema, metadata = plain.schema_arrow, plain.metadata
    _check_header(path, schema.names)
    rows = sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    values = max(rows, metadata.num_rows) * metadata.num_columns
    most = max(LARGEST, 100 * path.stat().st_size)
    if values > most:
        raise UserError(f"{path}: a file of its size may hold at most {most:,} values, but it declares {values:,}")
    flat = [field.name for field in schema if not _is_nested(field.type)]
    nested = {field.name: field.type for field in schema if _is_nested(field.type)}
    for name in flat:
        if any(name.startswith(f"{other}.") for other in nested):  # pyarrow would read both
            raise UserError(f"{path}: column {name!r} has the name of a part of another column; rename it")
    # Texts stay encoded by a dictionary; otherwise one long text in each of many rows would fill the memory.
    table = parquet.ParquetFile(path, read_dictionary=_texts(schema)).read(columns=flat)
    table.validate(full=True)  # such as texts that are not UTF-8
    for name in flat:
        _check_texts(f"{path}: column {name!r}", table.column(name), most)
    for name, kind in nested.items():
        empty = nulls(len(table), kind if _is_list(kind) else list_(null()))  # other types may have a size
        table = table.add_column(schema.get_field_index(name), name, empty)
    return table


def _is_list(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind))


def _is_nested(kind: pyarrow.DataType) -> bool:
    """Whether a column of this type may hold several values in a row."""
    from pyarrow import BaseExtensionType, types

    return bool(types.is_nested(kind.storage_type if isinstance(kind, BaseExtensionType) else kind))


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


def _check_table(path: Path | str, table: pyarrow.Table) -> None:
    _check_header(path, table.column_names)
    if not table.num_rows:
        raise UserError(f"{path}: the table has no rows")


def _check_header(path: Path | str, names: list[str]) -> None:
    if not names:
        raise UserError(f"{path}: the table has no columns; a CSV file must begin with a line of column names")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: {count} columns have the name {name!r}; every column needs its own name")


def other_delimiter(names: list[str]) -> str | None:
    """Return the likely separator of a file that was read as a single column; None if there is none."""
    return next((d for d in (";", "\t", "|", ",") if d in names[0]), None) if len(names) == 1 else None


def instead_of(name: str, columns: list[str]) -> str:
    """Return advice for a message: what to name instead of a missing column."""
    if (other := other_delimiter(columns)) is not None:
        return f"its columns are separated by {other!r}; set delimiter={other!r}"
    close = difflib.get_close_matches(name, columns, n=1)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(repr, columns))}"


def with_columns_of(source: Any, columns: dict[str, Column], options: Sequence[str]) -> dict[str, Column]:
    """Return the columns of a source's table, and refuse options that name a column which is not there."""
    for option in options:
        value = getattr(source, option)
        for name in [value] if isinstance(value, str) else value or ():
            if name not in columns:
                instead = instead_of(name, list(columns))
                raise UserError(f"{type(source).__name__} {option}: {source.path} has no column {name!r}; {instead}")
    return columns


def features_of(source: Any, columns: Mapping[str, Column], other_roles: Collection[str | None]) -> dict[str, Column]:
    """Return the columns of a source's features: those that it names, or all that have no other role.

    The index of a DataFrame in a Parquet file is a feature only if the source names it.
    """
    names = source.features
    if names is None:
        free = [name for name in columns if name not in other_roles]
        index = [name for name in free if columns[name].of_index and name not in source.categorical]
        names = [name for name in free if name not in index]
        if index:
            message = "%s: the index of the DataFrame is not a feature, unless `features` names it: %s"
            say(_log, logging.INFO, message, type(source).__name__, ", ".join(map(repr, index)))
    if not names:
        raise UserError(f"{source.path}: no column is left for a feature; name some in `features`")
    if wrong := [name for name in source.categorical if name not in names]:
        raise UserError(f"{type(source).__name__} categorical: {wrong[0]!r} is not a feature")
    return {name: columns[name] for name in names}
