"""The task map: a function of one task, run over T of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.functional.inference import outside_inference_mode

Strategy = Literal["auto", "vmap", "loop"]
Result = TypeVar("Result")


def task_map(function: Callable[..., Result], strategy: Literal["vmap", "loop"], *tasks: Any) -> Result:
    """Run a one-task function over all tasks; both strategies give the same numbers, in inference mode as well.

    Args:
        function: Pytrees of tensors of one task to a pytree of tensors. Random layers draw differently in each task.
        strategy: Vectorise over tasks, or visit one after the other.
        *tasks: Pytrees whose tensors have a leading task dimension T.

    Returns:
        What the function returns, with a leading dimension T.
    """
    return outside_inference_mode(_vmap if strategy == "vmap" else _loop, function, *tasks)


def _vmap(function: Callable[..., Result], *tasks: Any) -> Result:
    return vmap(function, randomness="different")(*tasks)


def _loop(function: Callable[..., Result], *tasks: Any) -> Result:
    count = len(tree_leaves(tasks)[0])
    results = [function(*tree_map(lambda leaf, t=t: leaf[t], tasks)) for t in range(count)]
    return tree_map(lambda *leaves: torch.stack(leaves), *results)
