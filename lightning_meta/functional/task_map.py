"""The task map: run a function of one task on T tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.functional.inference import outside_inference_mode

Result = TypeVar("Result")


class TaskMap(NamedTuple):
    """How tasks are computed; all variants give the same results up to rounding.

    Attributes:
        strategy: Whether to vectorise over tasks or to loop over them.
        chunk_size: Number of tasks that are vectorised at a time, which bounds the memory; None for all.
        compile: Whether a whole training step is compiled.
    """

    strategy: Literal["vmap", "loop"] = "vmap"
    chunk_size: int | None = None
    compile: bool = False

    def __str__(self) -> str:
        chunks = f", {self.chunk_size} tasks at a time" if self.chunk_size else ""
        return self.strategy + chunks + (", compiled" if self.compile else "")


def task_map(function: Callable[..., Result], how: TaskMap, *tasks: Any) -> Result:
    """Run a function of one task on all tasks, also in inference mode.

    Under `vmap`, a forward pass with weights that all tasks share is a single pass over the whole meta-batch.

    Args:
        function: Function from pytrees of tensors of one task to a pytree of tensors. Random layers draw different
            numbers for each task.
        how: Strategy and chunk size.
        *tasks: Pytrees whose tensors have a leading task dimension T.

    Returns:
        The results of the function, with a leading dimension T.

    >>> task_map(torch.sum, TaskMap("vmap"), torch.tensor([[1, 2], [3, 4]])).tolist()
    [3, 7]
    """
    if torch.is_inference_mode_enabled():
        outside: Result = outside_inference_mode(partial(task_map, function, how), *tasks)
        return outside
    if how.strategy == "vmap":
        mapped: Result = vmap(function, randomness="different", chunk_size=how.chunk_size)(*tasks)
        return mapped
    count = len(tree_leaves(tasks)[0])
    results = [function(*tree_map(lambda leaf, t=t: leaf[t], tasks)) for t in range(count)]
    stacked: Result = tree_map(lambda *leaves: torch.stack(leaves), *results)
    return stacked
