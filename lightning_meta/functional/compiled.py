"""Compilation of functions that compute gradients."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten

Result = TypeVar("Result")


class Compiled:
    """Compiled functions of tensors, one per shape of the inputs.

    `torch.compile` does not support second derivatives. So the function is first traced to a flat graph of tensor
    operations, including the inner gradients; this graph is compiled and differentiated once. Copies and pickles
    contain no compiled functions.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., Result], constants: Hashable, *inputs: Any) -> Result:
        """Run a function; it is traced and compiled for inputs of a new shape or dtype.

        Args:
            function: Function from pytrees of tensors to a pytree of tensors. Everything else that it reads is frozen.
            constants: Values that the function reads and that may differ between calls.
            *inputs: All tensors that may differ between calls.

        Returns:
            The result of the function.
        """
        leaves, structure = tree_flatten(inputs)
        device = leaves[0].device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        kinds = tuple((x.shape, x.stride(), x.dtype, x.device, x.requires_grad) for x in leaves)
        key = (constants, str(structure), kinds, autocast, torch.is_grad_enabled())
        if key not in self._graphs:
            with torch.random.fork_rng():  # tracing runs the function
                self._graphs[key] = torch.compile(make_fx(function)(*inputs))
        with torch.autocast(device, enabled=False):  # its casts are in the graph
            result: Result = self._graphs[key](*inputs)
            return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return Compiled()

    def __reduce__(self) -> tuple[type[Compiled], tuple[()]]:
        return Compiled, ()
