"""Targets of the estimators as arrays, and which of them are missing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.checks import is_missing
from lightning_meta.errors import UserError
from lightning_meta.estimators.needed import check_array, column_or_1d
from lightning_meta.estimators.wording import about, holds_text, refuse_dates, refuse_no_array


def numbers_of(y: Any) -> NDArray[np.float64]:
    """Real targets, NaN where missing."""
    options = {"ensure_2d": False, "ensure_all_finite": "allow-nan", "dtype": np.float64, "input_name": "y"}
    refuse_no_array(y=y)
    refuse_dates("y", y)
    try:
        with about("y", y):
            numbers: NDArray[np.float64] = check_array(y, **options)
    except UserError as error:
        if not holds_text(y):
            raise
        raise UserError(f"{error}; a regression takes numbers, MultiTaskClassifier takes labels") from error
    return numbers


def labels_of(y: Any) -> NDArray[Any]:
    """Labels of any kind, some of which may be missing."""
    options = {"ensure_2d": False, "ensure_all_finite": False, "dtype": None, "input_name": "y"}
    refuse_no_array(y=y)
    if isinstance(y, list | tuple):
        y = np.array(y, dtype=object)  # beside text, NumPy would convert a missing label to the text "nan"
    kinds = {str(dtype).replace("boolean", "bool") for dtype in y.dtypes} if _is_frame(y) else set()
    if len(kinds) > 1 and "bool" in kinds:  # their common type is a number
        y = y.astype(object)
    with about("y", y):
        try:
            labels: NDArray[Any] = check_array(y, **options)
        except (TypeError, ValueError):
            if not _is_frame(y):
                raise
            labels = check_array(y.astype(object), **options)  # columns of a DataFrame without a common type
    return labels


def columns_of(y: NDArray[Any], tasks: int, many: bool) -> NDArray[Any]:
    """Return the targets by column, `(T, n)`.

    Raises:
        UserError: Their shape is not that of `fit`.
    """
    if (y.ndim == 2) != many or y.reshape(len(y), -1).shape[1] != tasks:
        expected = f"(n, {tasks})" if many else "(n,)"
        raise UserError(f"y: the shape {expected} of fit is needed, got {y.shape}")
    return y.reshape(len(y), -1).T


def labelled_rows(column: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the mask of the labels that are not None, NaN, or the missing value of pandas."""
    if column.dtype.kind == "f":
        if np.isinf(column).any():
            raise UserError("y: labels are finite, these hold infinity")
        there: NDArray[np.bool_] = ~np.isnan(column)
        return there
    if column.dtype.kind != "O":
        return np.ones(len(column), np.bool_)
    return np.array([not is_missing(value) for value in column], np.bool_)


def plain(labels: NDArray[Any]) -> NDArray[Any]:
    """Convert an array of Python objects to the dtype of the labels.

    Raises:
        UserError: Labels are not text, numbers or truth values; or some are text and others are not, for example, which
            NumPy would all convert to text.
    """
    if labels.dtype != object and labels.dtype.kind not in "Scv":
        return labels
    examples = {_kind(label): label for label in labels}
    if len(examples) > 1:
        shown = " and ".join(f"{kind}, such as {label!r}" for kind, label in examples.items())
        raise UserError(f"y: labels of one kind are needed, got {shown}; convert them, for example to text")
    if strange := [(kind, label) for kind, label in examples.items() if kind.startswith("objects")]:
        kind, label = strange[0]
        raise UserError(
            f"y: labels are text, numbers or truth values, got {kind}, such as {label!r}; convert them, for example to "
            "text"
        )
    return np.array(labels.tolist())


def one_column(y: Any) -> NDArray[Any]:
    """Labels of one kind, `(n,)`, from a list, an array, a Series or a column.

    Raises:
        UserError: They are of different kinds, or some are missing.
    """
    refuse_no_array(y=y)
    with about("y", y):
        column = column_or_1d(np.array(y, dtype=object) if isinstance(y, list | tuple) else y, warn=True)
    if not (there := labelled_rows(column)).all():
        row = int(np.argmin(there))
        raise UserError(f"y: row {row} has no label, got {column[row]!r}; label it, or leave it out")
    return plain(column)


def _kind(label: Any) -> str:
    if isinstance(label, str):
        return "text"
    if isinstance(label, bool | np.bool_):
        return "truth values"
    if isinstance(label, complex | np.complexfloating):
        return "objects of type complex"
    return (
        "numbers" if isinstance(label, int | float | np.number | Tensor) else f"objects of type {type(label).__name__}"
    )


def _is_frame(y: Any) -> bool:
    return hasattr(y, "dtypes") and hasattr(y, "columns") and hasattr(y, "astype")
