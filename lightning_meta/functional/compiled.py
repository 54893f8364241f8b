"""Compiling a function that takes gradients within itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten

Result = TypeVar("Result")


class Compiled:
    """Compiled functions of tensors, one for each shape that they meet.

    `torch.compile` refuses second derivatives of what it compiles. Here the function is first traced to a flat graph
    of tensor operations, the inner gradients among them; the graph is compiled, and differentiated once. Copies and
    pickles begin anew.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., Result], constants: Hashable, *inputs: Any) -> Result:
        """Run a function, which is traced and compiled where its inputs are of a new kind.

        Args:
            function: Pytrees of tensors to a pytree of tensors. What else it reads is a constant from then on.
            constants: What the function reads that may differ from call to call.
            *inputs: Every tensor that may differ from call to call.

        Returns:
            What the function returns.
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
