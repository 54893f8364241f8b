"""Arithmetic that half precision is too coarse for: distances, means and losses."""

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
"""Types of devices that compute in double precision; Apple's MPS, for one, cannot even hold it."""

_HALF = (torch.float16, torch.bfloat16)


def at_least_float32(x: Tensor) -> Tensor:
    """A half-precision tensor as float32; any other as it is, float64 included."""
    return x.float() if x.dtype in _HALF else x


def all_finite(x: Tensor) -> Tensor:
    """Whether no number is infinite or NaN, as a tensor `()`; a fraction of the time that `isfinite` takes on a CPU."""
    return torch.stack(x.aminmax()).isfinite().all() if x.numel() else torch.ones((), dtype=torch.bool, device=x.device)


def loses_digits(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers in another dtype are off by more than a thousandth of their standard deviation.

    Args:
        x: `(n, ...)`; columns that are all equal lose nothing that tells rows apart.
        dtype: The other one.
    """
    if len(x) < 2 or x.is_complex():
        return False
    apart = (x - x[:1]).double() if not x.is_floating_point() else x.double() - x[:1].double()
    rounded = x.to(dtype)
    lost = (rounded.to(x.dtype) - x).double().abs().amax(0)
    return bool((lost > 1e-3 * apart.std(0, correction=0)).logical_and((apart != 0).any(0)).any())


def in_float32(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Run a function of tensors in float32 where autocast or its arguments would have it run in half precision.

    Then all tensors among its arguments are widened by `at_least_float32`, and autocast is off within. Works under the
    transforms of `torch.func`.

    Args:
        function: Its first argument is a tensor, and the one that may be in half precision where the others are not.
    """

    @functools.wraps(function)
    def wide(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        first = args[0]
        assert isinstance(first, Tensor)
        device = first.device.type
        autocast = _has_autocast(device) and torch.is_autocast_enabled(device)
        if not autocast and first.dtype not in _HALF:
            return function(*args, **kwargs)  # nothing to do, and small tasks notice every microsecond
        widened: list[object] = [at_least_float32(a) if isinstance(a, Tensor) else a for a in args]
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            return function(*widened, **kwargs)  # type: ignore[arg-type]

    return wide


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A context without autocast on a type of device; also on one that has none."""
    autocast = _has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if autocast else nullcontext()


def without_cast_cache(device: str) -> AbstractContextManager[object]:
    """A context in which autocast, if it is on, keeps no casts of weights for later calls."""
    if not (_has_autocast(device) and torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)


@functools.cache
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
