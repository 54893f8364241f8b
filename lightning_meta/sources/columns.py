"""The columns of a user's table: read from CSV or Parquet, and what is in them as numbers or as text."""

from __future__ import annotations

import csv
import difflib
import re
from collections import Counter
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_meta.errors import UserError

if TYPE_CHECKING:
    import pyarrow

LARGEST = 100_000_000  # values of a Parquet file, or a hundred for each byte: a few bytes can stand for billions
DIVIDERS = {".csv": ",", ".tsv": "\t"}
EXACT = {"halffloat": 2.0**11, "float": 2.0**24, "double": 2.0**53}
"""Where whole numbers begin to merge, by Arrow's name of a floating-point type."""
WHOLE = re.compile(r"[+-]?[0-9]+")


class Column:
    """One column, parsed when it is first asked for; what is wrong in it is an error that names the row, from 1.

    Args:
        where: The file and the column, for messages.
        array: The column as read.

    Attributes:
        where: As given.
        array: As given.
    """

    def __init__(self, where: str, array: pyarrow.ChunkedArray) -> None:
        self.where, self.array = where, array

    @cached_property
    def _cells(self) -> pyarrow.ChunkedArray:
        """The column as integers, floating-point numbers or trimmed text; null where missing."""
        from pyarrow import compute, scalar, string, types

        array, kind = self.array, self.array.type
        if types.is_dictionary(kind):
            array, kind = array.cast(kind.value_type), kind.value_type
        if types.is_boolean(kind):
            return array.cast("int8")
        if types.is_integer(kind) or types.is_floating(kind):
            return array
        if types.is_null(kind):
            return array.cast("float64")
        texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_decimal)
        dates = (types.is_date, types.is_timestamp, types.is_time)  # read as a CSV file spells them
        if not any(is_kind(kind) for is_kind in (*texts, *dates)):
            raise UserError(f"{self.where} is of type {kind}, expected numbers or text; leave it out, or convert it")
        trimmed = compute.utf8_trim_whitespace(array.cast(string()))
        return compute.if_else(compute.equal(trimmed, ""), scalar(None, string()), trimmed)

    @cached_property
    def _values(self) -> NDArray[np.float64] | list[str | None]:
        """Numbers, NaN where missing; text where not all that is present are numbers."""
        from pyarrow import ArrowInvalid, float64, types

        cells = self._cells
        try:
            return np.array(cells.cast(float64(), safe=types.is_string(cells.type)).to_numpy())  # Arrow's is read-only
        except ArrowInvalid:
            return cells.to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def whole(self) -> NDArray[np.int64] | NDArray[np.uint64] | None:
        """Whole numbers of 64 bits as they are, 0 where missing; None where a number has a fraction, or there is text.

        They never pass through floating point, which merges those beyond 2^53.
        """
        from pyarrow import ArrowInvalid, types

        cells = self._cells
        if types.is_floating(cells.type) or not isinstance(self._values, np.ndarray):
            return None
        for integers in ("int64", "uint64"):
            try:
                return np.array(cells.cast(integers).fill_null(0).to_numpy())
            except ArrowInvalid:
                continue
        return None

    @cached_property
    def beyond_float64(self) -> bool:
        """Whether these are whole numbers, some of which float64 cannot tell from their neighbours."""
        return self.whole is not None and bool((np.abs(self.numbers) >= EXACT["double"])[~self.missing].any())

    @cached_property
    def missing(self) -> NDArray[np.bool_]:
        """`(n,)` which rows have no value."""
        values = self._values
        return np.isnan(values) if isinstance(values, np.ndarray) else np.array([v is None for v in values], np.bool_)

    @cached_property
    def first_text(self) -> int | None:
        """The first row that holds no number; None where all that is present are numbers."""
        if isinstance(self._values, np.ndarray):
            return None
        return next((row for row, v in enumerate(self._values) if v is not None and not _is_number(v)), None)

    @property
    def mixed(self) -> bool:
        """Whether some rows hold numbers and others text."""
        return self.first_text is not None and any(isinstance(v, str) and _is_number(v) for v in self._values)

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The numbers, NaN where missing.

        Raises:
            UserError: A row holds text, or infinity.
        """
        if self.first_text is not None:
            raise self.wrong(self.first_text, "expected a number")
        values = self._values
        if not isinstance(values, np.ndarray):  # numbers to Python that Arrow does not read, as +1
            values = np.array([np.nan if v is None else float(v) for v in values], np.float64)
        numbers = values + 0.0  # no −0
        if np.isinf(numbers).any():
            raise self.wrong(int(np.isinf(numbers).argmax()), "expected a finite number")
        return numbers

    @cached_property
    def offset(self) -> int:
        """What is taken off whole numbers so that float64 tells them apart: the first, where some are beyond 2^53."""
        if self.whole is None or not self.beyond_float64:
            return 0
        present = self.whole[~self.missing]
        return int(present[0]) if int(present.max()) - int(present.min()) < 2**63 else 0

    @cached_property
    def centred(self) -> NDArray[np.float64]:
        """The numbers less `offset`, NaN where missing."""
        return self.less(self.offset)

    def less(self, offset: int) -> NDArray[np.float64]:
        """The numbers less an offset, NaN where missing; whole ones exactly, before float64 would merge them."""
        if not offset or self.whole is None:
            return self.numbers - offset
        apart = np.array([float(number - offset) for number in self.whole.tolist()])
        return np.where(self.missing, np.nan, apart)

    @cached_property
    def labels(self) -> list[str]:
        """The values as text, "" where missing; equal numbers are the same text, as in 1 and 1.0.

        Raises:
            UserError: A number has so many digits that its neighbours may have become the same.
        """
        if self.first_text is not None:
            return ["" if v is None else str(v) for v in self._values]
        if self.whole is not None:
            return ["" if m else str(v) for v, m in zip(self.whole.tolist(), self.missing, strict=True)]
        numbers = self.numbers
        labels = ["" if np.isnan(v) else f"{v:.0f}" if v == np.rint(v) else repr(v) for v in numbers.tolist()]
        for row in np.flatnonzero(np.abs(numbers) >= EXACT.get(str(self._cells.type), EXACT["double"])).tolist():
            text = str(self._cells[row])
            if not WHOLE.fullmatch(text):
                raise self.wrong(
                    row, "floating-point numbers as large merge their neighbours; write whole ones, or text"
                )
            labels[row] = str(int(text))
        return labels

    @property
    def spelled(self) -> list[str]:
        """The text of each cell as it stands, "" where missing: 01 is not 1. Numbers of Parquet are as in `labels`."""
        from pyarrow import types

        cells = self._cells
        return [cell or "" for cell in cells.to_pylist()] if types.is_string(cells.type) else self.labels

    def texts(self, of_numbers: bool) -> list[str]:
        """The cells as the texts of another column, "" where missing.

        Args:
            of_numbers: Whether that column held numbers, of which equal ones are the same text.

        Raises:
            UserError: These are booleans, which are text in CSV files and numbers in others.
        """
        if of_numbers and self.first_text is None:
            return self.labels
        if of_numbers:
            return [_number_as_text(text) for text in self.spelled]
        if self.boolean:
            raise UserError(f"{self.where} holds booleans, in training text; give the texts of training")
        return self.spelled

    @property
    def boolean(self) -> bool:
        """Whether a file said that these are booleans; here they are 0 and 1."""
        from pyarrow import types

        return bool(types.is_boolean(self.array.type))

    def classes(self) -> list[str]:
        """The different labels, numbers by value and text by code point."""
        present = {label for label, missing in zip(self.labels, self.missing, strict=True) if not missing}
        return sorted(present, key=Decimal) if self.first_text is None else sorted(present)

    def shown(self, row: int) -> str:
        """A value in a message."""
        return repr(None if self.missing[row] else str(self._cells[row]))

    def wrong(self, row: int, problem: str) -> UserError:
        """The error for a value."""
        return UserError(f"{self.where}, row {row + 1} is {self.shown(row)}: {problem}")


def read_columns(path: Path, argument: str = "Table path=") -> dict[str, Column]:
    """Read a table: all columns by name, in order. Values are parsed and nothing in the file is run.

    Args:
        path: `.csv` or `.tsv` (UTF-8, a header, missing values empty, NA, N/A, NaN or null) or `.parquet`.
        argument: What named the path, as errors begin.

    Raises:
        UserError: The file is missing, damaged, empty or of another kind, or two columns have one name.
    """
    import pyarrow  # here, for no other source needs it

    if not path.is_file():
        there = "it is a folder; name a file in it" if path.is_dir() else "there is no such file; name yours"
        raise UserError(f"{argument}{path}: {there}")
    suffix = path.suffix.lower()
    if suffix not in (*DIVIDERS, ".parquet"):
        raise UserError(f"{path}: expected a table in a file named .csv, .tsv or .parquet")
    try:
        table = _read_parquet(path) if suffix == ".parquet" else _read_csv(path, DIVIDERS[suffix])
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the table is not in UTF-8 ({error.reason}); save it anew as UTF-8") from error
    except (pyarrow.ArrowException, csv.Error, OSError, MemoryError) as error:
        raise UserError(f"{path}: the table cannot be read ({' '.join(str(error).split())})") from error
    return columns_of(table, str(path))


def columns_of(table: pyarrow.Table, where: str) -> dict[str, Column]:
    """All columns of a table by name, in order.

    Args:
        table: As Arrow has it.
        where: Its name in messages.

    Raises:
        UserError: It is empty, or two columns have one name.
    """
    _check_header(where, table.column_names)
    if not table.num_rows:
        raise UserError(f"{where}: the table has no rows")
    return {name: Column(f"{where}: column {name!r}", table.column(name)) for name in table.column_names}


def _read_csv(path: Path, divider: str) -> pyarrow.Table:
    from pyarrow import csv as arrow_csv
    from pyarrow import string

    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(filter(None, csv.reader(file, delimiter=divider)), [])
    _check_header(path, header)
    # Every column as text: guesses by the first rows would make errors of later ones, and lose their row.
    parse = arrow_csv.ParseOptions(delimiter=divider, newlines_in_values=True)
    convert = arrow_csv.ConvertOptions(column_types=dict.fromkeys(header, string()), strings_can_be_null=True)
    return arrow_csv.read_csv(path, parse_options=parse, convert_options=convert)


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


def instead_of(name: str, columns: list[str]) -> str:
    """What to name instead of a column that is not there."""
    if len(columns) == 1 and (divider := next((d for d in (";", "\t", "|") if d in columns[0]), None)):
        return f"its columns are divided by {divider!r}, expected commas, or tabs in a .tsv file"
    close = difflib.get_close_matches(name, columns, n=1)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(repr, columns))}"


def _number_as_text(text: str) -> str:
    """A number as `Column.labels` has it; other text as it is."""
    if WHOLE.fullmatch(text):
        return str(int(text))
    number = float(text) if _is_number(text) else np.inf
    return text if not np.isfinite(number) else f"{number:.0f}" if number == np.rint(number) else repr(number)


def _is_number(text: str) -> bool:
    """Whether a person would call it a number: without the underscores that Python allows."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text
