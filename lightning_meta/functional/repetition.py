"""Repetition of a step, which an exported program contains once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

State = TypeVar("State")


def repeated(step: Callable[[State], State], count: int, state: State) -> State:
    """Apply a step to a state several times.

    In an exported program it is a `while_loop` of torch: written out, 1000 steps would take minutes and megabytes.

    Args:
        step: Function of a state; it returns new tensors with the shapes and dtypes of the old ones.
        count: Number of steps, at least 0.
        state: Tensors, in tuples and dictionaries.

    Returns:
        The state after the last step.
    """
    if count < 2 or not torch.compiler.is_compiling():
        for _ in range(count):
            state = step(state)
        return state
    from torch._higher_order_ops.while_loop import while_loop  # public names of torch have no loop

    leaves, structure = pytree.tree_flatten(state)

    def unfinished(done: Tensor, *_: Tensor) -> Tensor:
        return done < count

    def body(done: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        return done + 1, *pytree.tree_leaves(step(pytree.tree_unflatten(leaves, structure)))

    start = torch.zeros((), dtype=torch.int64, device=leaves[0].device)
    _, *leaves = while_loop(unfinished, body, (start, *leaves))
    after: State = pytree.tree_unflatten(leaves, structure)
    return after
