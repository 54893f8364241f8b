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
    """Refuse to go on where `torch.func.grad` would return zeros in silence.

    Raises:
        RuntimeError: Inference mode is on, and this release of torch takes no gradients in it.
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
    """Run a function where it can take gradients, with `torch.no_grad` around it in place of inference mode.

    `torch.func.grad` works within inference mode in current torch, but older releases, 2.6 among them, return zeros
    there in silence. Outside of inference mode this is a plain call.

    Args:
        function: What is run.
        *inputs: Pytrees of its tensors. They are copied, since one that was made in inference mode cannot be
            differentiated.

    Returns:
        What the function returns.
    """
    if not torch.is_inference_mode_enabled():
        return function(*inputs)
    with torch.inference_mode(False), torch.no_grad():
        return function(*tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs))
