"""What stands in for a CUDA graph on a CPU: operations are recorded, and Python is not run when they are played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_meta.meta import MetaModule
from lightning_meta.nn.step_graph import StepGraphs, _Result

Module = TypeVar("Module", bound=MetaModule)


def traced(function: Callable[[], _Result], device: torch.device) -> tuple[_Result, Callable[[], None]]:
    """Record the operations of a function on the tensors that it reads; as of a CUDA graph, nothing else is kept."""
    shapes: list[Any] = []

    def flat() -> list[Tensor]:
        found = function()
        leaves, structure = tree_flatten((found.loss, found.gradients, found.others))
        shapes.append((structure, [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    operations = make_fx(flat)()
    structure, plain = shapes[0]
    with torch.no_grad():
        static = [tensor.clone() for tensor in operations()]
    tensors = iter(static)
    result = _Result(*tree_unflatten([next(tensors) if leaf is None else leaf[0] for leaf in plain], structure))

    def play() -> None:
        with torch.no_grad():
            for place, tensor in zip(static, operations(), strict=True):
                place.copy_(tensor)

    return result, play


def recorded(module: Module) -> Module:
    """Let a module with `graph="auto"` record on a CPU."""
    module._graphs = StepGraphs(module._graphs.ignored, traced)
    return module
