"""Conversion of what a user gives `Predictor`, such as lists, arrays and columns of pandas, with errors in one line."""

from __future__ import annotations

from collections.abc import Mapping, Set
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_meta.arrays import tensor_of
from lightning_meta.checks import is_missing
from lightning_meta.errors import UserError, reason_of


def inputs_of(x: Any) -> Tensor:
    """Convert inputs to a tensor `(M, ...)`; their shape and dtype are checked by `Likeness`.

    Raises:
        UserError: They are not numbers of one shape.
    """
    if hasattr(x, "columns"):
        raise UserError(
            f"x: a tensor or an array is needed, got {type(x).__name__}, whose columns are not scaled as in training; "
            "give source.inputs_of(table) of the source of the data, or x.to_numpy() if nothing was scaled"
        )
    try:
        values = _without_index(x)
        if isinstance(values, list | tuple) and any(isinstance(value, Tensor | np.ndarray) for value in values):
            values = torch.stack([_as_tensor(value) for value in values])
        tensor = _as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"x: a tensor or an array of numbers is needed, got {type(x).__name__} ({reason_of(error, 100)})"
        ) from error
    if not tensor.dim():
        raise UserError(f"x: inputs (M, ...) are needed, got a single {type(x).__name__}")
    return tensor


def labels_of(labels: Any) -> list[Any]:
    """Convert class labels to a list; labels that are tensors of one number become numbers.

    Raises:
        UserError: They have no order, or are a single label or a table.
    """
    if hasattr(labels, "columns"):
        raise UserError(
            f"labels: a list or one column of labels is needed, got {type(labels).__name__}; give labels['NAME']"
        )
    if isinstance(labels, Set | Mapping) or not np.iterable(labels) or getattr(labels, "ndim", 1) == 0:
        raise UserError(f"labels: a list of labels is needed, got {type(labels).__name__}")
    plain = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    return [label.tolist() if isinstance(label, Tensor) else label for label in plain]


def targets_of(labels: Any) -> Tensor:
    """Convert real targets to a tensor `(M, ...)` on the CPU, since not every device has float64.

    Raises:
        UserError: They are not real numbers of one shape, or some are missing.
    """
    needed = "labels: real numbers (M, outputs) are needed for regression, as a tensor, an array, a list or a column"
    if hasattr(labels, "columns"):
        raise UserError(f"{needed}, got {type(labels).__name__}; give labels['NAME'], or labels.to_numpy()")
    if isinstance(labels, Tensor):
        if not labels.dim() or labels.is_complex() or labels.dtype == torch.bool:
            raise UserError(f"{needed}, got a tensor of {labels.dtype} with shape {tuple(labels.shape)}")
        return labels.cpu()
    values = _without_index(labels)
    if isinstance(values, list | tuple):
        values = [value.tolist() if isinstance(value, Tensor) else value for value in values]
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{needed}, got {type(labels).__name__} ({reason_of(error, 100)})") from error
    if not array.ndim:
        raise UserError(f"{needed}, got {type(labels).__name__}")
    if array.dtype.kind == "O":
        array = _of_objects(array, needed)
    if array.dtype.kind not in "iuf":
        raise UserError(f"{needed}, got {array.flat[0].item()!r}" if array.size else f"{needed}, got {array.dtype}")
    return torch.from_numpy(array.astype(np.int64 if np.can_cast(array.dtype, np.int64) else np.float64))


def _without_index(values: Any) -> Any:
    """The values of a column of pandas or another library, whose index may begin at any number."""
    return values.to_numpy() if hasattr(values, "to_numpy") else values


def _as_tensor(values: Any) -> Tensor:
    return tensor_of(values) if isinstance(values, np.ndarray) else torch.as_tensor(values)


def _of_objects(array: np.ndarray[Any, Any], needed: str) -> np.ndarray[Any, Any]:
    """Convert an array of Python objects to float64, if all are real numbers."""
    for place, value in enumerate(array.flat):
        if is_missing(value):
            raise UserError(f"labels: labels[{place}] is {value!r}; leave its example out")
        if isinstance(value, bool | np.bool_) or not isinstance(value, Real | Decimal):
            raise UserError(f"{needed}, got {value!r}")
    return array.astype(np.float64)
