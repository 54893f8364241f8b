"""The columns of a user's table: read from CSV or Parquet, and what is in them as numbers or as text."""

from __future__ import annotations

import csv
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_meta.errors import UserError

if TYPE_CHECKING:
    import pyarrow

DIVIDERS = {".csv": ",", ".tsv": "\t"}


class Column:
    """One column, parsed when it is first asked for; what is wrong in it is an error that names the row, from 1.

    Args:
        where: The file and the column, for messages.
        array: The column as read.
    """

    def __init__(self, where: str, array: pyarrow.ChunkedArray) -> None:
        self.where, self._array = where, array

    @cached_property
    def _values(self) -> NDArray[np.float64] | list[str | None]:
        """Numbers, NaN where missing; text where not all that is present are numbers."""
        from pyarrow import ArrowInvalid, compute, float64, scalar, string, types

        array, kind = self._array, self._array.type
        if types.is_dictionary(kind):
            array, kind = array.cast(kind.value_type), kind.value_type
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            trimmed = compute.utf8_trim_whitespace(array.cast(string()))
            array = compute.if_else(compute.equal(trimmed, ""), scalar(None, string()), trimmed)
            try:
                return np.array(array.cast(float64()).to_numpy())
            except ArrowInvalid:
                return array.to_pylist()  # type: ignore[no-any-return]
        if types.is_boolean(kind):
            array, kind = array.cast("int8"), array.cast("int8").type
        if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
            return np.array(array.cast(float64(), safe=False).to_numpy())  # a copy, for Arrow's own is read-only
        raise UserError(f"{self.where} is of type {kind}, expected numbers or text; leave it out, or convert it")

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
    def labels(self) -> list[str]:
        """The values as text, "" where missing; equal numbers are the same text, as in 1 and 1.0."""
        if self.first_text is None:
            return ["" if np.isnan(v) else f"{v:.0f}" if v == np.rint(v) else repr(v) for v in self.numbers.tolist()]
        return ["" if v is None else str(v) for v in self._values]

    def classes(self) -> list[str]:
        """The different labels, numbers by value and text by code point."""
        present = {label for label, missing in zip(self.labels, self.missing, strict=True) if not missing}
        return sorted(present, key=float) if self.first_text is None else sorted(present)

    def wrong(self, row: int, problem: str) -> UserError:
        """The error for a value."""
        value = None if self.missing[row] else str(self._values[row])
        return UserError(f"{self.where}, row {row + 1} is {value!r}: {problem}")


def read_columns(path: Path) -> dict[str, Column]:
    """Read a table: all columns by name, in order. Values are parsed and nothing in the file is run.

    Args:
        path: `.csv` or `.tsv` (UTF-8, a header, missing values empty, NA, N/A, NaN or null) or `.parquet`.

    Raises:
        UserError: The file is missing, damaged, empty or of another kind, or two columns have one name.
    """
    import pyarrow  # here, for no other source needs it

    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    suffix = path.suffix.lower()
    if suffix not in (*DIVIDERS, ".parquet"):
        raise UserError(f"{path}: expected a table in a file named .csv, .tsv or .parquet")
    try:
        table = _read_parquet(path) if suffix == ".parquet" else _read_csv(path, DIVIDERS[suffix])
    except (pyarrow.ArrowException, csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: the table cannot be read ({' '.join(str(error).split())})") from error
    if not table.num_rows:
        raise UserError(f"{path}: the table has no rows")
    return {name: Column(f"{path}: column {name!r}", table.column(name)) for name in table.column_names}


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

    file = parquet.ParquetFile(path)
    _check_header(path, file.schema_arrow.names)
    return file.read()


def _check_header(path: Path, names: list[str]) -> None:
    if not names:
        raise UserError(f"{path}: the table has no columns; a CSV file begins with a line of their names")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: {count} columns are called {name!r}; every column needs a name of its own")


def _is_number(text: str) -> bool:
    """Whether a person would call it a number: without the underscores that Python allows."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text
