"""Full float32 arithmetic on CUDA: TF32 makes second-order gradients wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


def tf32_requested() -> bool:
    """Whether the user asked for less than full float32, by `torch.set_float32_matmul_precision`.

    cuDNN's own switch is on by default, so it says nothing about what the user wants.
    """
    return torch.get_float32_matmul_precision() != "highest"


@contextmanager
def full_float32(enabled: bool = True) -> Iterator[None]:
    """Within the context convolutions, recurrent layers and matrix products use full float32 on CUDA.

    TF32 keeps 10 bits of the mantissa. A loss hardly notices; a gradient through inner gradient steps was measured to
    be 16 % off. cuDNN reads its switch when a kernel runs, so a backward pass needs the context as well.

    Args:
        enabled: Whether anything is done. It is a constant of the caller, or `not tf32_requested()`.
    """
    with ExitStack() as stack:
        if enabled:
            for switch, name, exact in _switches():
                stack.enter_context(_set(switch, name, exact))
        yield


def _switches() -> list[tuple[Any, str, Any]]:
    """Each switch of torch: its owner, its name and the value that means full float32."""
    cudnn = torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # torch 2.9: a switch for each kind; the old one cannot be read once these are set
        return [(cudnn.conv, "fp32_precision", "ieee"), (cudnn.rnn, "fp32_precision", "ieee")]
    return [(cudnn, "allow_tf32", False)]


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    if before == value:
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
