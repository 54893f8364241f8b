"""Targets of the estimators as arrays, and which of them are missing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_meta.errors import UserError
from lightning_meta.estimators.needed import check_array, column_or_1d


def numbers_of(y: Any) -> NDArray[np.float64]:
    """Real targets, NaN where missing."""
    options = {"ensure_2d": False, "ensure_all_finite": "allow-nan", "dtype": np.float64, "input_name": "y"}
    try:
        numbers: NDArray[np.float64] = check_array(y, **options)
    except ValueError as error:
        if "could not convert string" not in str(error):
            raise
        raise UserError(f"y: {error}; a regression takes numbers, MultiTaskClassifier takes labels") from error
    return numbers


def labels_of(y: Any) -> NDArray[Any]:
    """Labels of any kind, some of which may be missing."""
    options = {"ensure_2d": False, "ensure_all_finite": False, "dtype": None, "input_name": "y"}
    kinds = {str(dtype).replace("boolean", "bool") for dtype in y.dtypes} if _is_frame(y) else set()
    if len(kinds) > 1 and "bool" in kinds:  # their common type is a number
        y = y.astype(object)
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
    return np.array([not _is_missing(value) for value in column], np.bool_)


def _is_missing(value: Any) -> bool:
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def plain(labels: NDArray[Any]) -> NDArray[Any]:
    """Convert an array of Python objects to the dtype of the labels.

    Raises:
        UserError: Some labels are text and others are not, for example; NumPy would convert them all to text.
    """
    if labels.dtype != object:
        return labels
    examples = {_kind(label): label for label in labels}
    if len(examples) > 1:
        shown = " and ".join(f"{kind}, such as {label!r}" for kind, label in examples.items())
        raise UserError(f"y: labels of one kind are needed, got {shown}; convert them, for example to text")
    return np.array(labels.tolist())


def one_column(y: Any) -> NDArray[Any]:
    """Labels of one kind, `(n,)`, from a list, an array, a Series or a column.

    Raises:
        UserError: They are of different kinds.
    """
    return plain(column_or_1d(np.array(y, dtype=object) if isinstance(y, list | tuple) else y, warn=True))


def _kind(label: Any) -> str:
    if isinstance(label, str):
        return "text"
    if isinstance(label, bool | np.bool_):
        return "truth values"
    return "numbers" if isinstance(label, int | float | np.number) else f"objects of type {type(label).__name__}"


def _is_frame(y: Any) -> bool:
    return hasattr(y, "dtypes") and hasattr(y, "columns") and hasattr(y, "astype")
