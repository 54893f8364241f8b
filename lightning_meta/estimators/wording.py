"""Errors about the arrays that a user passes, in one line that begins with the name of the argument."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np

from lightning_meta.errors import UserError, some_of

FILL = "fill in missing values first, such as by sklearn.impute.SimpleImputer in a Pipeline"
DENSE = "in a Pipeline, set sparse_output=False of the OneHotEncoder, or sparse_threshold=0 of the ColumnTransformer"


def refuse_no_array(**values: Any) -> None:
    """Refuse what NumPy would make an array without dimensions of.

    Args:
        **values: Values by name of the argument.

    Raises:
        UserError: A value is None, a number, a text, a set, a dictionary or an iterator.
    """
    for name, value in values.items():
        odd = isinstance(value, str | bytes | Number | Mapping | Set | Iterator) and not hasattr(value, "shape")
        if value is None or odd:  # a sparse array of scipy, which is a Mapping, has a shape
            shown = "None" if value is None else type(value).__name__
            raise UserError(f"{name}: an array, a list or a DataFrame is needed, got {shown}")


def refuse_dates(name: str, values: Any) -> None:
    """Refuse dates and durations, which NumPy would convert to counts of their unit.

    Args:
        name: Name of the argument.
        values: An array, a Series or a DataFrame; anything else is accepted.

    Raises:
        UserError: A column of a DataFrame or the whole array holds dates or durations.
    """
    dtypes: Any = getattr(values, "dtypes", None)
    kinds = dtypes.items() if hasattr(dtypes, "items") else [(None, getattr(values, "dtype", None))]
    for column, dtype in kinds:
        if getattr(dtype, "kind", "") in ("m", "M"):
            where = "it" if column is None else f"column {column!r}"
            raise UserError(f"{name}: {where} holds dates; give numbers, such as days since the first date")


def refuse_no_table(name: str, values: Any) -> None:
    """Refuse numbers that are no rows and columns, and columns of the same name.

    Args:
        name: Name of the argument.
        values: An array, a list or a DataFrame.

    Raises:
        UserError: The values have one dimension, or several columns have one name.
    """
    counts = Counter(getattr(values, "columns", ()))
    if repeated := [f"{column!r} {count} times" for column, count in counts.items() if count > 1]:
        raise UserError(f"{name}: the names of columns must be unique, got {some_of(repeated)}")
    items = values.tolist() if getattr(values, "ndim", None) == 1 and hasattr(values, "tolist") else values
    if isinstance(items, list | tuple) and items and all(isinstance(item, Number) for item in items):
        raise UserError(
            f"{name}: rows and columns are needed, got {len(items)} numbers. Reshape your data: "
            f"{name}.reshape(1, -1) is one row, {name}.reshape(-1, 1) is one column"
        )


def holds_text(values: Any) -> bool:
    """Whether a value of an array, a list or a DataFrame is text."""
    if getattr(getattr(values, "dtype", None), "kind", "O") in "biufc":  # an array of numbers, which may be large
        return False
    try:
        cells = np.asarray(values, dtype=object)
    except ValueError:  # arrays of different shapes
        return False
    return any(isinstance(value, str | bytes) for value in cells.flat)


@contextmanager
def about(name: str, values: Any, other_columns: bool = False) -> Iterator[None]:
    """Put an error of scikit-learn or NumPy about an array in one line, with what to do about these values.

    A `TypeError` stays one, and an error about columns of other names than those of `fit`, a list of several lines,
    stays as it is: scikit-learn's own tests of estimators require both.

    Args:
        name: Name of the argument.
        values: The array.
        other_columns: Whether its columns have other names than those of `fit`.

    Raises:
        UserError: A value is wrong.
        TypeError: A type is wrong.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError) or other_columns:
            raise
        line = f"{name}: {_with_advice(str(error).splitlines()[0].rstrip('.: '), values)}"
        raise (TypeError if isinstance(error, TypeError) else UserError)(line) from error


def _with_advice(line: str, values: Any) -> str:
    if hasattr(values, "toarray"):  # a sparse array of scipy
        return f"{line}; {DENSE}"
    try:
        array = np.asarray(values)
        if holds_text(values) or np.iscomplexobj(array):
            return line
        numbers = array.astype(np.float64)
    except (TypeError, ValueError):
        return f"rows of the same length with a number in each place are needed; {line}"
    return f"{line}; {FILL}" if np.isnan(numbers).any() else line
