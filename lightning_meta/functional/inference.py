"""Inner gradients within `torch.inference_mode`, in which Lightning validates, tests and predicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_map

Result = TypeVar("Result")


def check_gradients() -> None:
    """Raise an error if `torch.func.grad` would silently return zeros.

    Raises:
        RuntimeError: Inference mode is on, and this release of torch computes no gradients in it.
    """
    if torch.is_inference_mode_enabled() and not _gradients_in_inference_mode():
        raise RuntimeError(
            f"torch {torch.__version__} takes no gradients within torch.inference_mode: use torch.no_grad in its "
            "place, or call through lightning_meta.functional.outside_inference_mode"
        )


@cache
def _gradients_in_inference_mode() -> bool:
    with torch.inference_mode():
        return bool(grad(lambda w: w * w)(torch.ones(())) == 2)


def outside_inference_mode(function: Callable[..., Result], *inputs: Any) -> Result:
    """Run a function outside of inference mode, within `torch.no_grad`, so that it can compute inner gradients.

    `torch.func.grad` works within inference mode in current torch, but older releases such as 2.6 silently return
    zeros. Outside of inference mode this is a plain call.

    Args:
        function: The function.
        *inputs: Arguments of the function, pytrees of tensors. They are copied, since tensors made in inference mode
            cannot be differentiated.

    Returns:
        The result of the function.
    """
    if not torch.is_inference_mode_enabled():
        return function(*inputs)
    with torch.inference_mode(False), torch.no_grad():
        return function(*tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs))
