"""torch's switches of TF32, which can be set and read without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lightning_meta.functional.tf32 import _warn_of_old_switch

_warn_of_old_switch()  # here warnings are errors, and torch 2.9 warns of the old switch
cudnn: Any = torch.backends.cudnn
BY_OPERATION = hasattr(cudnn, "conv")
since_2_9 = pytest.mark.skipif(not BY_OPERATION, reason="torch 2.9 has a switch for each kind of operation")


def switches() -> dict[str, Any]:
    """The current state of all switches."""
    if not BY_OPERATION:
        return {"cudnn": cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32}
    owners = {"conv": cudnn.conv, "rnn": cudnn.rnn, "cudnn": cudnn, "products": torch.backends.cuda.matmul}
    found = {name: owner.fp32_precision for name, owner in owners.items()}
    try:
        found["old"] = cudnn.allow_tf32
    except RuntimeError:
        found["old"] = "contradicted"
    return found


def convolutions_use_tf32() -> bool:
    """Whether cuDNN would use TF32 for a convolution that started now, and so for a recurrent layer."""
    if not BY_OPERATION:
        return bool(cudnn.allow_tf32)
    assert (cudnn.conv.fp32_precision == "tf32") == (cudnn.rnn.fp32_precision == "tf32")
    return bool(cudnn.conv.fp32_precision == "tf32")


@contextmanager
def as_torch_has_them() -> Iterator[None]:
    """torch's defaults within the context and after it."""
    _reset()
    try:
        yield
    finally:
        _reset()


def _reset() -> None:
    torch.set_float32_matmul_precision("highest")
    if BY_OPERATION:
        generic: Any = torch.backends
        generic.fp32_precision = cudnn.fp32_precision = generic.cuda.matmul.fp32_precision = "none"
    cudnn.allow_tf32 = True
