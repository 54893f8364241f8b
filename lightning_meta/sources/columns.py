"""Columns of a user's table, parsed as numbers or as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_meta.errors import UserError

if TYPE_CHECKING:
    import pyarrow

EXACT = {"halffloat": 2.0**11, "float": 2.0**24, "double": 2.0**53}
"""Magnitude from which a floating-point type cannot distinguish all whole numbers, by Arrow's name of the type."""
WHOLE = re.compile(r"[+-]?[0-9]+")
BOOLEANS = {"false": "0", "true": "1"}
"""Texts of booleans in CSV files, in lower case, and their numbers in other files."""
MISSING = (
    *("", "NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "NULL", "null", "NaN", "nan", "-NaN", "-nan"),
    *("1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN"),
)
"""Texts that mean a missing value in CSV files, as in Arrow."""
NUMBER_WITH_UNIT = re.compile(r"([+-]?)([A-Z]{3}\s|[^\w\s+.,:;()-]?)\s?([+-]?\d[\d.,]*)\s?([^\d\s_+.,:;()-]*)")
"""A number and its unit: a currency before it, or letters or symbols after it. Names such as Q1 are not numbers."""
SWAPPED = str.maketrans(",.", ".,")


class Coded(NamedTuple):
    """Texts of n rows, stored as distinct texts and codes, so that a million rows do not need a million Python objects.

    Attributes:
        texts: The distinct texts that occur, in no particular order.
        codes: Index of each row's text, `(n,)` int64; -1 where it is missing.
    """

    texts: Sequence[str]
    codes: NDArray[np.int64]

    def of_rows(self) -> list[str]:
        """Return the text of each row, "" where it is missing."""
        texts = [*self.texts, ""]
        return [texts[code] for code in self.codes.tolist()]

    def changed(self, texts: Iterable[str | None]) -> Coded:
        """Replace the distinct texts by new ones, in the same order.

        Args:
            texts: New texts; equal ones are merged, and None or "" means missing.
        """
        code_of: dict[str, int] = {}
        new = [code_of.setdefault(text, len(code_of)) if text else -1 for text in texts]
        return Coded(list(code_of), np.array([*new, -1])[self.codes])  # code -1, missing, selects the last element

    def first(self, wrong: Callable[[str], bool]) -> int | None:
        """Return the first row whose text satisfies a condition; None if there is none."""
        rows = np.array([*map(wrong, self.texts), False])[self.codes]
        return int(rows.argmax()) if rows.any() else None


class Column:
    """One column of n rows, parsed when it is first used; errors name the row, counted from 1 without the header.

    Args:
        where: Name of the file and the column, for messages.
        array: Column as read by Arrow.
        as_text: Function that reads the same column as text, if the file holds text and the array may hold numbers. It
            takes those texts of `MISSING` that are values.
        decimal: Decimal mark of numbers in text.
        line_of: Function that returns the line of the file in which a row begins, counted from 1, if it is a text file.
        first_texts: Function that returns the first cells as they are written in the file, if it is a text file.
        of_index: Whether it holds the index of a DataFrame, which pandas stores as a column of a Parquet file.

    Attributes:
        where: Name of the file and the column; the other arguments are attributes as well.
    """

    def __init__(
        self,
        where: str,
        array: pyarrow.ChunkedArray,
        as_text: Callable[[Collection[str]], pyarrow.ChunkedArray] | None = None,
        decimal: str = ".",
        line_of: Callable[[int], int | None] | None = None,
        first_texts: Callable[[], Sequence[str]] | None = None,
        of_index: bool = False,
    ) -> None:
        self.where, self.array, self.as_text, self.decimal, self.line_of = where, array, as_text, decimal, line_of
        self.first_texts, self.of_index = first_texts, of_index

    @cached_property
    def _cells(self) -> pyarrow.ChunkedArray | None:
        """The column as integers or floating-point numbers, null where missing; None for a column of text."""
        from pyarrow import types

        array, kind = self.array, _kind(self.array)
        if types.is_dictionary(array.type) and not (types.is_string(kind) or types.is_large_string(kind)):
            array = array.cast(kind)
        if types.is_boolean(kind):
            return array.cast("int8")
        if types.is_integer(kind) or types.is_floating(kind):
            return array
        if types.is_null(kind):
            return array.cast("float64")
        texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_decimal)
        dates = (types.is_date, types.is_timestamp, types.is_time)  # become the text that a CSV file would hold
        if not any(is_kind(kind) for is_kind in (*texts, *dates)):
            raise UserError(f"{self.where} is of type {kind}, expected numbers or text; leave it out, or convert it")
        return None

    @cached_property
    def _texts(self) -> Coded:
        """Cells of a column of text, without leading and trailing white space."""
        return _coded(self.array)

    @cached_property
    def _values(self) -> NDArray[np.float64] | None:
        """The numbers, NaN where missing; None if Arrow cannot parse all present cells as numbers."""
        from pyarrow import ArrowInvalid, array, float64, string

        if self._cells is not None:
            values = self._cells.cast(float64(), safe=False).to_numpy()
            return np.require(values, requirements="W")  # type: ignore[no-any-return]  # Arrow's may be read-only
        texts, codes = self._texts
        try:
            numbers = array(map(self._as_number, texts), string()).cast(float64()).to_numpy()
        except ArrowInvalid:
            return None
        return np.append(numbers, np.nan)[codes]

    @cached_property
    def whole(self) -> NDArray[np.int64] | NDArray[np.uint64] | None:
        """Exact 64-bit whole numbers, 0 where missing; None if a number has a fraction or a cell holds text.

        They are never converted to floating point, which cannot distinguish all whole numbers beyond 2^53.
        """
        from pyarrow import ArrowInvalid, array, string, types

        cells = self._cells
        if self._values is None or (cells is not None and types.is_floating(cells.type)):
            return None
        for integers in ("int64", "uint64"):
            try:
                if cells is not None:
                    return np.array(cells.cast(integers).fill_null(0).to_numpy())
                numbers = array(self._texts.texts, string()).cast(integers).to_numpy()
                return np.append(numbers, numbers.dtype.type(0))[self._texts.codes]
            except ArrowInvalid:
                continue
        return None

    @cached_property
    def beyond_float64(self) -> bool:
        """Whether these are whole numbers, some so large that float64 cannot distinguish them from their neighbours."""
        values = self._values
        return values is not None and bool((np.abs(values) >= EXACT["double"]).any()) and self.whole is not None

    @cached_property
    def missing(self) -> NDArray[np.bool_]:
        """Mask `(n,)` of the rows without a value."""
        return self._texts.codes < 0 if self._values is None else np.isnan(self._values)

    @cached_property
    def first_text(self) -> int | None:
        """The first row that holds text and not a number; None if all present values are numbers."""
        return None if self._values is not None else self._texts.first(lambda text: not self._is_number(text))

    @property
    def mixed(self) -> bool:
        """Whether some rows hold numbers and others text."""
        return self.first_text is not None and any(map(self._is_number, self._texts.texts))

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The numbers, NaN where missing; callers must not change the array.

        Raises:
            UserError: A row holds text or infinity.
        """
        if self.first_text is not None:
            raise self.wrong(self.first_text, f"expected a number{self.hint}")
        values = self._values
        if values is None:  # some are numbers that Python can parse, but not Arrow
            texts, codes = self._texts
            values = np.array([*(float(self._as_number(text)) for text in texts), np.nan])[codes]
        values += 0.0  # turns −0 into 0
        if np.isinf(values).any():
            raise self.wrong(int(np.isinf(values).argmax()), "expected a finite number")
        return values

    @cached_property
    def offset(self) -> int:
        """Number subtracted so that float64 can distinguish whole numbers beyond 2^53: the first value; otherwise 0."""
        if not self.beyond_float64 or self.whole is None:
            return 0
        present = self.whole[~self.missing]
        return int(present[0]) if int(present.max()) - int(present.min()) < 2**63 else 0

    @property
    def centred(self) -> NDArray[np.float64]:
        """The numbers minus `offset`, NaN where missing; callers must not change the array."""
        return self.less(self.offset)

    def less(self, offset: int) -> NDArray[np.float64]:
        """Return the numbers minus an offset, NaN where missing; for whole numbers the difference is exact."""
        if not offset:
            return self.numbers
        if self.whole is None:
            return self.numbers - offset
        differences = np.array([float(number - offset) for number in self.whole.tolist()])  # subtracts Python integers
        return np.where(self.missing, np.nan, differences)

    @cached_property
    def coded(self) -> Coded:
        """The values as text; equal numbers have the same text, such as 1 and 1.0.

        Raises:
            UserError: A floating-point number is so large that it may have been rounded to a neighbouring one.
        """
        if self.first_text is not None:
            return self._texts
        cells, numbers = self._cells, self.numbers
        present = ~np.isnan(numbers)
        if self.whole is None and cells is None:
            return self._texts.changed(map(self._exact, self._texts.texts))
        if self.whole is None and cells is not None:
            inexact = np.abs(numbers) >= EXACT.get(str(cells.type), EXACT["double"])
            if inexact.any():
                raise self.wrong(int(inexact.argmax()), MERGED)
        values, present_codes = np.unique((numbers if self.whole is None else self.whole)[present], return_inverse=True)
        codes = np.full(len(numbers), -1)
        codes[present] = present_codes
        return Coded([_as_label(v) if self.whole is None else str(v) for v in values.tolist()], codes)

    def _exact(self, text: str) -> str:
        """Return the label of a number that is written as `text` in the file."""
        number = float(self._as_number(text)) + 0.0
        if not abs(number) >= EXACT["double"]:
            return _as_label(number)
        if not WHOLE.fullmatch(text):
            row = self._texts.first(lambda other: other == text)
            assert row is not None
            raise self.wrong(row, MERGED)
        return str(int(text))

    @property
    def named(self) -> Coded:
        """The values as in `coded`, but booleans are False and True, as in a CSV file."""
        names = {"0": "False", "1": "True"}
        return self.coded.changed(names[text] for text in self.coded.texts) if self.boolean else self.coded

    @property
    def labels(self) -> list[str]:
        """The text of each row as in `named`, "" where it is missing."""
        return self.named.of_rows()

    @cached_property
    def spelled(self) -> Coded:
        """The text of each cell as written in the file: 01 is not 1. Numbers of a Parquet file are as in `coded`."""
        if self._cells is None:
            return self._texts
        return self.coded if self.as_text is None else _coded(self.as_text(()))

    def texts(self, of_numbers: bool, training: Collection[str]) -> Coded:
        """Return the cells as text that can be compared with the texts of the training column.

        Booleans are text in CSV files and 0 and 1 in other files; either is converted to the other.

        Args:
            of_numbers: Whether the training column held numbers, so that equal numbers have the same text.
            training: Texts of the training column.

        Raises:
            UserError: The column holds booleans, and the training column held other text.
        """
        if of_numbers and self.first_text is None:
            return self.coded
        if of_numbers and self._spells_booleans and {"0", "1"}.issuperset(training):
            return self.spelled.changed(str(int(text.casefold() == "true")) for text in self.spelled.texts)
        if of_numbers:
            return self.spelled.changed(map(self._number_as_text, self.spelled.texts))
        if (booleans := self._booleans_as(training)) is not None:
            return booleans
        if self.boolean:
            some = ", ".join(map(repr, sorted(training)[:5])) + (", ..." if len(training) > 5 else "")
            raise UserError(f"{self.where} holds booleans, but in training the texts {some}; use these texts")
        return self.spelled

    @property
    def _spells_booleans(self) -> bool:
        """Whether this is text, and every text is true or false in any case."""
        return self._cells is None and all(text.casefold() in BOOLEANS for text in self._texts.texts)

    @property
    def flags(self) -> Column:
        """The column with the texts true and false as 1 and 0, as if the file stored booleans; others are unchanged."""
        import pyarrow

        if not self._spells_booleans:
            return self
        texts, codes = self._texts
        values = np.array([*(text.casefold() == "true" for text in texts), False])[codes]
        return Column(self.where, pyarrow.chunked_array([pyarrow.array(values, mask=codes < 0)]), line_of=self.line_of)

    def _booleans_as(self, words: Collection[str]) -> Coded | None:
        """Return the cells with booleans as they are spelled in `words`, false and true in any case.

        Args:
            words: Texts of which each is false or true, without duplicates in any case; for others None is returned.
        """
        spelled = {word.casefold(): word for word in words}
        if len(spelled) < len(words) or not BOOLEANS.keys() >= spelled.keys():
            return None
        if self.boolean:
            names = {number: spelled.get(word, word) for word, number in BOOLEANS.items()}
            return self.coded.changed(names[text] for text in self.coded.texts)
        return self.spelled.changed(spelled.get(text.casefold(), text) for text in self.spelled.texts)

    def labels_like(self, classes: Collection[str] | None) -> Coded:
        """Return `named`, with booleans as in the stated classes: false and true in any case, or 0 and 1."""
        if classes is None or not (self.boolean or self._spells_booleans):
            return self.named
        if {"0", "1"}.issuperset(classes):
            return self.flags.coded
        booleans = self._booleans_as(classes)
        return self.named if booleans is None else booleans

    @property
    def boolean(self) -> bool:
        """Whether the file stores these values as booleans, which are read as 0 and 1."""
        from pyarrow import types

        return bool(types.is_boolean(_kind(self.array)))

    def classes(self) -> list[str]:
        """Return the distinct labels as in `named`, sorted: numbers by value, text by code point."""
        of_text = self.boolean or self.first_text is not None
        return sorted(self.named.texts, key=None if of_text else Decimal)

    @property
    def hint(self) -> str:
        """Advice for a column of text that would be numbers without their unit, or in a CSV file with another decimal
        mark or without a mark of thousands; "" for other columns.
        """
        if self.first_text is None:
            return ""
        if (unit := self._unit) is not None:
            return f"; all values are numbers with {unit!r}: for a number, remove {unit!r} from the column"
        if self.as_text is None:
            return ""
        own, other, texts = self.decimal, "." if self.decimal == "," else ",", self._texts.texts
        with_other_mark = Column(self.where, self.array, decimal=other)
        numbers = all(map(with_other_mark._is_number, texts))
        grouped = all(self._is_number(text) or _has_thousands(text, other, own) for text in texts)
        if numbers and grouped:  # 1,250 is one and a quarter, or more than a thousand
            return (
                f"; if {other!r} separates thousands, remove it from the file; if it is the decimal mark, set "
                f"decimal={other!r}"
            )
        if numbers:
            return f"; all values look like numbers with the decimal mark {other!r}: if they are, set decimal={other!r}"
        if grouped:
            return f"; {other!r} seems to separate thousands: remove it from the file"
        if all(with_other_mark._is_number(text) or _has_thousands(text, own, other) for text in texts):
            return f"; {own!r} seems to separate thousands: remove it from the file, and set decimal={other!r}"
        return ""

    @property
    def _unit(self) -> str | None:
        """The same unit after or before all numbers, such as % in 12% and 3 %, or $ in -$12; None for other texts."""
        found = [NUMBER_WITH_UNIT.fullmatch(text) for text in self._texts.texts]
        parts = [match.groups() for match in found if match is not None]
        units = {(before.strip(), after) for _, before, _, after in parts}
        numbers = all(self._is_number(f"{sign}{number}") for sign, _, number, _ in parts)
        if len(parts) < max(2, len(found)) or len(units) > 1 or not numbers:
            return None
        ((before, after),) = units
        return before or after if bool(before) != bool(after) else None

    @property
    def grouped(self) -> str | None:
        """Advice for numbers of a CSV file whose decimal mark seems to separate thousands, such as 985 and 1.250.

        That is so if each mark is followed by three digits, and numbers without a mark have at most three and not all
        of them one.
        """
        from pyarrow import types

        if self.as_text is None or self.first_texts is None or not types.is_floating(self.array.type):
            return None
        mark = self.decimal

        def may_be_grouped(text: str) -> bool:
            return _has_thousands(text, mark, mark) if mark in text else len(text.lstrip("+-")) <= 3

        if not all(may_be_grouped(text) for text in self.first_texts() if self._is_number(text)):
            return None  # as nearly always; the whole column would have to be read again as text
        texts = self.spelled.texts
        marked = [text for text in texts if mark in text]
        short = [text for text in texts if mark not in text]
        if not marked or all(len(text.lstrip("+-")) == 1 for text in short) or not all(map(may_be_grouped, texts)):
            return None
        number = float(self._as_number(marked[0]))
        return f"{marked[0]!r} is read as {number:g}; if {mark!r} separates thousands, remove it from the file"

    def shown(self, row: int) -> str:
        """Return the value of a row as messages show it."""
        if self.missing[row]:
            return repr(None)
        if self._cells is not None and self.as_text is None:
            return repr(str(self.array[row]))  # a boolean is True, as in `named`, and not 1
        return repr(self.spelled.texts[self.spelled.codes[row]])

    def complete(self) -> Column:
        """Return the column itself, which must have a value in every row.

        Raises:
            UserError: A value is missing.
        """
        if self.missing.any():
            in_text = "" if self.as_text is None else "; an empty cell, NA, N/A, NaN, null and the like mean missing"
            raise self.wrong(int(self.missing.argmax()), f"every row needs a value here{in_text}")
        return self

    def keeping(self, texts: Collection[str]) -> Column:
        """Return the column in which these texts are values, even if they mean missing in other columns.

        Raises:
            UserError: All other values are numbers, among which one of the texts is a missing number.
        """
        kept, column = [text for text in texts if text in MISSING], self
        if kept and self.as_text is not None:
            array, as_text = self.as_text(kept), self.as_text
            column = Column(
                self.where, array, lambda more: as_text([*kept, *more]), self.decimal, self.line_of, self.first_texts
            )
        if kept and column._cells is None:
            cells = column._texts
            row = cells.first(lambda text: text in kept)
            if row is not None and column.missing[row]:
                found = f"{self.where}, {self.row_name(row)} is {cells.texts[cells.codes[row]]!r}"
                raise UserError(f"{found}, which means a missing number, as all others are numbers; write another text")
        return column

    @property
    def read_as_missing(self) -> list[str]:
        """Texts that mean missing in this column, among the first cells of a text file; without empty cells."""
        first, values = self.first_texts() if self.first_texts is not None else (), set(self.named.texts)
        return [text for text in dict.fromkeys(first) if text and text in MISSING and text not in values]

    def wrong(self, row: int, problem: str) -> UserError:
        """Return the error for the value of a row; `problem` says what was expected."""
        return UserError(f"{self.where}, {self.row_name(row)} is {self.shown(row)}: {problem}")

    def row_name(self, row: int) -> str:
        """Return the number of a row for messages, counted from 1 without the header, and its line in a text file."""
        line = None if self.line_of is None else self.line_of(row)
        return f"row {row + 1}" + (f" (line {line} of the file)" if line is not None else "")

    def _as_number(self, text: str) -> str:
        """Return a text in Python's notation of numbers: with a decimal comma, points and commas are swapped."""
        return text.translate(SWAPPED) if self.decimal == "," else text

    def _is_number(self, text: str) -> bool:
        """Whether a text is a number in the usual sense, without the underscores that Python allows."""
        try:
            float(self._as_number(text))
        except ValueError:
            return False
        return "_" not in text

    def _number_as_text(self, text: str) -> str:
        """Return a number as it is written in `coded`, and other text unchanged."""
        if WHOLE.fullmatch(text):
            return str(int(text))
        number = float(self._as_number(text)) if self._is_number(text) else np.inf
        return _as_label(number) if np.isfinite(number) else text


MERGED = "floating-point numbers as large as this may be rounded; use whole numbers or text"


def _has_thousands(text: str, mark: str, decimal: str) -> bool:
    """Whether a text is a number whose thousands are separated by a mark, such as 1,250 or 1,250,000.5."""
    return re.fullmatch(rf"[+-]?[1-9][0-9]{{0,2}}(?:[{mark}][0-9]{{3}})+(?:[{decimal}][0-9]*)?", text) is not None


def _as_label(number: float) -> str:
    return "" if np.isnan(number) else f"{number:.0f}" if number == np.rint(number) else repr(number)


def _kind(array: pyarrow.ChunkedArray) -> pyarrow.DataType:
    """The type of the values, also if they are encoded by a dictionary."""
    from pyarrow import types

    return array.type.value_type if types.is_dictionary(array.type) else array.type


def _coded(array: pyarrow.ChunkedArray) -> Coded:
    """Encode cells without leading and trailing white space; an empty cell is missing."""
    from pyarrow import chunked_array, compute, string, types

    kind = _kind(array)
    if types.is_dictionary(array.type) and types.is_temporal(kind):
        array = array.cast(kind)
    if types.is_timestamp(kind) and kind.tz is not None:
        array = array.cast(_in_utc(kind))
    if not types.is_dictionary(array.type):
        array = array.cast(string()).dictionary_encode()
    chunks = array.unify_dictionaries().chunks
    codes = chunked_array([chunk.indices for chunk in chunks]).cast("int64").fill_null(-1).to_numpy()
    words = chunks[0].dictionary.cast(string())
    occurs = np.bincount(codes + 1, minlength=len(words) + 1)[1:] > 0  # a DataFrame may have unused categories
    trimmed = compute.utf8_trim_whitespace(words).to_pylist()
    if types.is_timestamp(kind) or types.is_time(kind):
        trimmed = list(map(_time_text, trimmed))
    return Coded(trimmed, codes).changed(t if used else None for t, used in zip(trimmed, occurs, strict=True))


def _in_utc(kind: pyarrow.TimestampType) -> pyarrow.TimestampType:
    import pyarrow

    return pyarrow.timestamp(kind.unit, "UTC")


def _time_text(text: str) -> str:
    """Return a time as text that does not depend on its unit in the file, without zeros after its seconds.

    Midnight without a time zone is the date alone, as in CSV files of dates.
    """
    time, zone = (text[:-1], "+00:00") if text.endswith("Z") else (text, "")
    if "." in time:
        time = time.rstrip("0").rstrip(".")
    return f"{time}{zone}" if zone else time.removesuffix(" 00:00:00")
