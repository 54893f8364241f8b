"""The columns of a user's table: what is in them as numbers or as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_meta.errors import UserError

if TYPE_CHECKING:
    import pyarrow

EXACT = {"halffloat": 2.0**11, "float": 2.0**24, "double": 2.0**53}
"""Where whole numbers begin to merge, by Arrow's name of a floating-point type."""
WHOLE = re.compile(r"[+-]?[0-9]+")
SWAPPED = str.maketrans(",.", ".,")


class Coded(NamedTuple):
    """Texts of n rows, each different one once: a million rows need no million Python objects.

    Attributes:
        texts: The different texts that occur, in no order.
        codes: `(n,)` int64, the place of each row's text; -1 where missing.
    """

    texts: Sequence[str]
    codes: NDArray[np.int64]

    def of_rows(self) -> list[str]:
        """The text of each row, "" where missing."""
        texts = [*self.texts, ""]
        return [texts[code] for code in self.codes.tolist()]

    def changed(self, texts: Iterable[str | None]) -> Coded:
        """Other texts in place of these, in their order; equal ones become one, and None or "" is missing."""
        place: dict[str, int] = {}
        new = [place.setdefault(text, len(place)) if text else -1 for text in texts]
        return Coded(list(place), np.array([*new, -1])[self.codes])

    def first(self, wrong: Callable[[str], bool]) -> int | None:
        """The first row with such a text; None where there is none."""
        rows = np.array([*map(wrong, self.texts), False])[self.codes]
        return int(rows.argmax()) if rows.any() else None


class Column:
    """One column, parsed when it is first asked for; what is wrong in it is an error that names the row, from 1.

    Args:
        where: The file and the column, for messages.
        array: The column as read.
        as_text: Reads the same column as text, where the file holds text and the array numbers.
        decimal: What stands before the decimals in texts of numbers.

    Attributes:
        where: As given, and so are the others.
    """

    def __init__(
        self,
        where: str,
        array: pyarrow.ChunkedArray,
        as_text: Callable[[], pyarrow.ChunkedArray] | None = None,
        decimal: str = ".",
    ) -> None:
        self.where, self.array, self.as_text, self.decimal = where, array, as_text, decimal

    @cached_property
    def _cells(self) -> pyarrow.ChunkedArray | None:
        """The column as integers or floating-point numbers, null where missing; None where it is text."""
        from pyarrow import types

        array, kind = self.array, self.array.type
        if types.is_dictionary(kind):
            kind = kind.value_type
            array = array if types.is_string(kind) or types.is_large_string(kind) else array.cast(kind)
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
        return None

    @cached_property
    def _texts(self) -> Coded:
        """The trimmed cells of a column of text."""
        return _coded(self.array)

    @cached_property
    def _values(self) -> NDArray[np.float64] | None:
        """Numbers, NaN where missing; None where not all that is present are numbers to Arrow."""
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
        """Whole numbers of 64 bits as they are, 0 where missing; None where a number has a fraction, or there is text.

        They never pass through floating point, which merges those beyond 2^53.
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
        """Whether these are whole numbers, some of which float64 cannot tell from their neighbours."""
        values = self._values
        return values is not None and bool((np.abs(values) >= EXACT["double"]).any()) and self.whole is not None

    @cached_property
    def missing(self) -> NDArray[np.bool_]:
        """`(n,)` which rows have no value."""
        return self._texts.codes < 0 if self._values is None else np.isnan(self._values)

    @cached_property
    def first_text(self) -> int | None:
        """The first row that holds no number; None where all that is present are numbers."""
        return None if self._values is not None else self._texts.first(lambda text: not self._is_number(text))

    @property
    def mixed(self) -> bool:
        """Whether some rows hold numbers and others text."""
        return self.first_text is not None and any(map(self._is_number, self._texts.texts))

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The numbers, NaN where missing; not to be changed.

        Raises:
            UserError: A row holds text, or infinity.
        """
        if self.first_text is not None:
            raise self.wrong(self.first_text, f"expected a number{self.hint}")
        values = self._values
        if values is None:  # numbers to Python that Arrow does not read
            texts, codes = self._texts
            values = np.array([*(float(self._as_number(text)) for text in texts), np.nan])[codes]
        values += 0.0  # no −0
        if np.isinf(values).any():
            raise self.wrong(int(np.isinf(values).argmax()), "expected a finite number")
        return values

    @cached_property
    def offset(self) -> int:
        """What is taken off whole numbers so that float64 tells them apart: the first, where some are beyond 2^53."""
        if not self.beyond_float64 or self.whole is None:
            return 0
        present = self.whole[~self.missing]
        return int(present[0]) if int(present.max()) - int(present.min()) < 2**63 else 0

    @property
    def centred(self) -> NDArray[np.float64]:
        """The numbers less `offset`, NaN where missing; not to be changed."""
        return self.less(self.offset)

    def less(self, offset: int) -> NDArray[np.float64]:
        """The numbers less an offset, NaN where missing; whole ones exactly, before float64 would merge them."""
        if not offset:
            return self.numbers
        if self.whole is None:
            return self.numbers - offset
        apart = np.array([float(number - offset) for number in self.whole.tolist()])
        return np.where(self.missing, np.nan, apart)

    @cached_property
    def coded(self) -> Coded:
        """The values as text; equal numbers are the same text, as in 1 and 1.0.

        Raises:
            UserError: A number has so many digits that its neighbours may have become the same.
        """
        if self.first_text is not None:
            return self._texts
        cells, numbers = self._cells, self.numbers
        there = ~np.isnan(numbers)
        if self.whole is None and cells is None:
            return self._texts.changed(map(self._exact, self._texts.texts))
        if self.whole is None and cells is not None:
            merged = np.abs(numbers) >= EXACT.get(str(cells.type), EXACT["double"])
            if merged.any():
                raise self.wrong(int(merged.argmax()), MERGED)
        values, codes = np.unique((numbers if self.whole is None else self.whole)[there], return_inverse=True)
        of_rows = np.full(len(numbers), -1)
        of_rows[there] = codes
        return Coded([_as_label(v) if self.whole is None else str(v) for v in values.tolist()], of_rows)

    def _exact(self, text: str) -> str:
        """The label of a number that a file spells so."""
        number = float(self._as_number(text)) + 0.0
        if not abs(number) >= EXACT["double"]:
            return _as_label(number)
        if not WHOLE.fullmatch(text):
            row = self._texts.first(lambda other: other == text)
            assert row is not None
            raise self.wrong(row, MERGED)
        return str(int(text))

    @property
    def labels(self) -> list[str]:
        """The text of each row as `coded` has it, "" where missing."""
        return self.coded.of_rows()

    @cached_property
    def spelled(self) -> Coded:
        """The text of each cell as it stands: 01 is not 1. Numbers of Parquet are as in `coded`."""
        if self._cells is None:
            return self._texts
        return self.coded if self.as_text is None else _coded(self.as_text())

    def texts(self, of_numbers: bool) -> Coded:
        """The cells as the texts of another column.

        Args:
            of_numbers: Whether that column held numbers, of which equal ones are the same text.

        Raises:
            UserError: These are booleans, which are text in CSV files and numbers in others.
        """
        if of_numbers and self.first_text is None:
            return self.coded
        if of_numbers:
            return self.spelled.changed(map(self._number_as_text, self.spelled.texts))
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
        return sorted(self.coded.texts, key=Decimal) if self.first_text is None else sorted(self.coded.texts)

    @property
    def hint(self) -> str:
        """How to read texts of a CSV file that are numbers with the other mark before decimals; "" for other texts."""
        other = "." if self.decimal == "," else ","
        spelled = Column(self.where, self.array, decimal=other)
        of_csv = self.as_text is not None
        if not of_csv or self.first_text is None or not all(map(spelled._is_number, self._texts.texts)):
            return ""
        return f"; all values are numbers with {other!r} before the decimals: if they are, give decimal={other!r}"

    def shown(self, row: int) -> str:
        """A value in a message."""
        if self.missing[row]:
            return repr(None)
        if self._cells is not None and self.as_text is None:
            return repr(str(self._cells[row]))
        return repr(self.spelled.texts[self.spelled.codes[row]])

    def wrong(self, row: int, problem: str) -> UserError:
        """The error for a value."""
        return UserError(f"{self.where}, row {row + 1} is {self.shown(row)}: {problem}")

    def _as_number(self, text: str) -> str:
        """A text in which a point stands before the decimals if it is a number, and only then."""
        return text.translate(SWAPPED) if self.decimal == "," else text

    def _is_number(self, text: str) -> bool:
        """Whether a person would call it a number: without the underscores that Python allows."""
        try:
            float(self._as_number(text))
        except ValueError:
            return False
        return "_" not in text

    def _number_as_text(self, text: str) -> str:
        """A number as `coded` has it; other text as it is."""
        if WHOLE.fullmatch(text):
            return str(int(text))
        number = float(self._as_number(text)) if self._is_number(text) else np.inf
        return _as_label(number) if np.isfinite(number) else text


MERGED = "floating-point numbers as large merge their neighbours; write whole ones, or text"


def _as_label(number: float) -> str:
    return "" if np.isnan(number) else f"{number:.0f}" if number == np.rint(number) else repr(number)


def _coded(array: pyarrow.ChunkedArray) -> Coded:
    """Trimmed cells; an empty one is missing."""
    from pyarrow import chunked_array, compute, string, types

    if not types.is_dictionary(array.type):
        array = array.cast(string()).dictionary_encode()
    chunks = array.unify_dictionaries().chunks
    codes = chunked_array([chunk.indices for chunk in chunks]).cast("int64").fill_null(-1).to_numpy()
    words = chunks[0].dictionary.cast(string())
    used = np.bincount(codes + 1, minlength=len(words) + 1)[1:] > 0  # categories of a DataFrame may not occur
    trimmed = compute.utf8_trim_whitespace(words).to_pylist()
    return Coded(trimmed, codes).changed(t if there else None for t, there in zip(trimmed, used, strict=True))
