"""Errors about the arrays that a user passes, in one line that begins with the name of the argument."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np

from lightning_meta.errors import UserError

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
def about(name: str) -> Iterator[None]:
    """Reword the errors of scikit-learn and NumPy about an array.

    A `TypeError` stays one, which scikit-learn's own tests of estimators require. The message about feature names stays
    a list of several lines, for the same reason.

    Args:
        name: Name of the argument.

    Raises:
        UserError: A value is wrong.
        TypeError: A type is wrong.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        lines = str(error).splitlines()
        if isinstance(error, UserError) or lines[0].startswith(("The feature names", f"{name} has ")):
            raise
        line = lines[0].removeprefix(f"Input {name} ").rstrip(".")
        if lines[-1].startswith("Reshape"):  # the lines between are the array
            line = f"{line.rstrip(':')}. {lines[-1]}"
        elif lines[0].endswith(":") and lines[1:]:  # a list, one line each, as of duplicate column names
            line = f"{line} {', '.join(each.strip(' -') for each in lines[1:] if each.strip())}"
        elif line.startswith("Sparse data was passed for X"):
            line = f"{line}; {DENSE}"
        elif line.endswith("contains NaN"):
            line = f"{line}; {FILL}"
        elif line.startswith(("float()", "setting an array element", "The DType")):
            line = f"rows of the same length with a number in each place are needed; {line}"
        raise (TypeError if isinstance(error, TypeError) else UserError)(f"{name}: {line}") from error
