"""Full float32 arithmetic on CUDA: TF32 makes second-order gradients wrong."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch

_BY_OPERATION = hasattr(torch.backends.cudnn, "conv")
"""Whether torch has a switch for each kind of operation, `fp32_precision`, beside `allow_tf32`: since 2.9."""


def tf32_requested() -> bool:
    """Whether the user enabled TF32, by `torch.set_float32_matmul_precision` or the setting behind it.

    Matrix products use full float32 by default. Convolutions and recurrent layers use TF32 by default, so their setting
    does not show what the user wants.
    """
    if _BY_OPERATION:  # the getter of `set_float32_matmul_precision` raises where another function set the switch
        return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def tf32_in_use() -> bool:
    """Whether torch's switches let some products of float32 numbers use TF32, on a device that has it."""
    in_cudnn = [part.fp32_precision == "tf32" for part in _parts()] or [torch.backends.cudnn.allow_tf32]
    return tf32_requested() or any(in_cudnn)


def has_tf32(device: torch.device) -> bool:
    """Whether a device has TF32: NVIDIA's GPUs since Ampere."""
    return device.type == "cuda" and torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8,)


@contextmanager
def full_float32(enabled: bool = True) -> Iterator[None]:
    """A context in which convolutions, recurrent layers and matrix products use full float32 on CUDA.

    TF32 keeps 10 bits of the mantissa. This hardly affects a loss, but a gradient through inner steps had a measured
    error of 16 %. cuDNN reads its setting when a kernel runs, so the backward pass needs the context as well. Matrix
    products use full float32 unless `tf32_requested`, so they need no setting.

    Args:
        enabled: Whether the context has an effect: a constant of the caller, or `not tf32_requested()`.
    """
    if not enabled:
        yield
        return
    cudnn, parts, old = torch.backends.cudnn, _parts(), _old_switch()
    before = [part.fp32_precision for part in parts]
    try:
        if old is not None:  # also where there are new ones: it can only be read while all of them agree
            cudnn.allow_tf32 = False
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        if old is not None:
            cudnn.allow_tf32 = old
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


def _parts() -> list[Any]:
    """cuDNN's kinds of operations, each with a switch `fp32_precision`."""
    cudnn: Any = torch.backends.cudnn
    return [cudnn.conv, cudnn.rnn] if _BY_OPERATION else []


def _old_switch() -> bool | None:
    """`cudnn.allow_tf32`; None where it cannot be read, because it contradicts the new switches."""
    _warn_of_old_switch()
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


@cache
def _warn_of_old_switch() -> None:
    """Let torch's warning about the old switch pass, which torch 2.9 prints once a process."""
    with warnings.catch_warnings(), suppress(RuntimeError):
        warnings.simplefilter("ignore")
        _ = torch.backends.cudnn.allow_tf32
