"""A substitute for a CUDA graph on a CPU: operations are recorded, and replaying them runs no Python code."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from unittest import mock

import lightning as L
import torch
from torch import Tensor
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_meta.module import TrainedModule
from lightning_meta.nn.step_graph import StepGraphs, _Result

Module = TypeVar("Module", bound=TrainedModule)
SGD = partial(torch.optim.SGD, lr=0.05)
COPIES = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)


def traced(function: Callable[[], _Result], device: torch.device) -> tuple[_Result, Callable[[], None]]:
    """Record the operations of a function on the tensors that it reads; as of a CUDA graph, nothing else is kept."""
    shapes: list[Any] = []

    def flat() -> list[Tensor]:
        found = function()
        leaves, structure = tree_flatten((found.loss, found.gradients, found.others))
        shapes.append((structure, [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    with mock.patch.object(proxy_tensor, "set_meta", lambda proxy, _: proxy):  # no shapes: they take most of the time
        operations = make_fx(flat)()
    if any(node.target in COPIES for node in operations.graph.nodes):
        raise RuntimeError("the step copies numbers from the CPU, which a graph of CUDA cannot")
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


def fitted(make: Callable[..., Module], graph: str, data: Any, **trainer: Any) -> Module:
    """A module after a few epochs, with steps as they are or recorded."""
    L.seed_everything(0, verbose=False)
    module = recorded(make(graph=graph, optimizer=SGD))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"max_epochs": 3, "accelerator": "cpu", "enable_model_summary": False, **quiet, **trainer}
    L.Trainer(**options).fit(module, datamodule=data)
    return module


def same(make: Callable[..., Module], data: Callable[[], Any], **trainer: Any) -> Module:
    """Check that recorded training gives the same weights and buffers, bit for bit; the module that was recorded."""
    plain, module = (fitted(make, graph, data(), **copy.deepcopy(trainer)) for graph in ("off", "auto"))
    rounding = 0.02 if "precision" in trainer else 0.0
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=rounding, atol=rounding)
    assert plain._graphs.replays == 0
    return module
