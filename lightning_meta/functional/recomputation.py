"""Trading time for memory where gradients are taken of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vjp
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

Result = TypeVar("Result")


def recomputed(function: Callable[..., Result], *inputs: Any) -> Result:
    """Run a function whose graph is not kept: the backward pass runs it again.

    `torch.utils.checkpoint` (Chen et al. 2016) does not pass through `torch.func.grad`; this does, under `vmap` too.

    Args:
        function: Pytrees of tensors to a pytree of tensors, the same each time it is run. Every tensor that it is
            differentiated by is among the inputs.
        *inputs: Its inputs.

    Returns:
        What the function returns.
    """
    leaves, structure = tree_flatten(inputs)
    returned: list[TreeSpec] = []
    device = leaves[0].device.type
    mixed, precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(device, precision, enabled=mixed):  # the backward pass runs outside of it
            outputs, spec = tree_flatten(function(*tree_unflatten(leaves, structure)))
        returned[:] = [spec]
        return tuple(outputs)

    outputs = _Recomputed.apply(flat, *leaves)
    return tree_unflatten(outputs, returned[0])


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(flat: Callable[..., tuple[Tensor, ...]], *leaves: Tensor) -> tuple[Tensor, ...]:
        return flat(*leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.flat, *leaves = inputs
        ctx.save_for_backward(*leaves)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        leaves = ctx.saved_tensors
        real = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]

        def of_real(*chosen: Tensor) -> tuple[Tensor, ...]:
            every = list(leaves)
            for i, leaf in zip(real, chosen, strict=True):
                every[i] = leaf
            return ctx.flat(*every)

        pull_back = vjp(of_real, *(leaves[i] for i in real))[1]
        found = dict(zip(real, pull_back(gradients), strict=True))
        return None, *(found.get(i) for i in range(len(leaves)))
