"""Tools for computations that need more than half precision: distances, means and losses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

HAS_FLOAT64 = ("cpu", "cuda")
"""Types of devices with double precision; Apple's MPS has none, for example."""

_HALF = (torch.float16, torch.bfloat16)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert a half-precision tensor to float32; others, including float64, are returned unchanged."""
    return x.float() if x.dtype in _HALF else x


def all_finite(x: Tensor) -> Tensor:
    """Whether all values are finite, as a tensor `()`; several times as fast as `isfinite` on a CPU."""
    return torch.stack(x.aminmax()).isfinite().all() if x.numel() else torch.ones((), dtype=torch.bool, device=x.device)


def loses_digits(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether rounding to a dtype causes errors above a thousandth of the standard deviation.

    Args:
        x: Values `(n, ...)`; constant columns are ignored.
        dtype: The dtype to round to.
    """
    if len(x) < 2 or x.is_complex():
        return False
    differences = (x - x[:1]).double() if not x.is_floating_point() else x.double() - x[:1].double()
    rounded = x.to(dtype)
    lost = (rounded.to(x.dtype) - x).double().abs().amax(0)
    return bool((lost > 1e-3 * differences.std(0, correction=0)).logical_and((differences != 0).any(0)).any())


def in_float32(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator that runs a function of tensors in float32 instead of half precision.

    If autocast is on or the first argument has half precision, all tensor arguments are converted by
    `at_least_float32`, and autocast is off within the function. Works under the transforms of `torch.func`.

    Args:
        function: Function whose first argument is a tensor.
    """

    @functools.wraps(function)
    def wide(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        first = args[0]
        assert isinstance(first, Tensor)
        device = first.device.type
        autocast = _has_autocast(device) and torch.is_autocast_enabled(device)
        if not autocast and first.dtype not in _HALF:
            return function(*args, **kwargs)  # a fast path, since overhead matters for small tasks
        widened: list[object] = [at_least_float32(a) if isinstance(a, Tensor) else a for a in args]
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            return function(*widened, **kwargs)  # type: ignore[arg-type]

    return wide


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A context without autocast on a type of device, even one that does not support autocast."""
    autocast = _has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if autocast else nullcontext()


def without_cast_cache(device: str) -> AbstractContextManager[object]:
    """A context in which autocast does not cache casts of weights."""
    if not (_has_autocast(device) and torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)


@functools.cache
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
