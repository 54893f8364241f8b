"""Arithmetic that half precision is too coarse for: distances, means and losses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_HALF = (torch.float16, torch.bfloat16)


def at_least_float32(x: Tensor) -> Tensor:
    """A half-precision tensor as float32; any other as it is, float64 included."""
    return x.float() if x.dtype in _HALF else x


def in_float32(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Run a function of tensors in float32 where autocast or its arguments would have it run in half precision.

    Tensors among the arguments are widened by `at_least_float32`, and autocast is off within. Works under the
    transforms of `torch.func`.

    Args:
        function: At least one of its positional arguments is a tensor.
    """

    @functools.wraps(function)
    def wide(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        widened: list[object] = [at_least_float32(a) if isinstance(a, Tensor) else a for a in args]
        device = next(a.device.type for a in args if isinstance(a, Tensor))
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return function(*widened, **kwargs)  # type: ignore[arg-type]
        with torch.autocast(device, enabled=False):
            return function(*widened, **kwargs)  # type: ignore[arg-type]

    return wide
