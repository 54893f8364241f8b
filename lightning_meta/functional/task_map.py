"""The task map: a function of one task, run over T of them."""

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
    """How tasks are visited; every way gives the same numbers, but for the order in which they are added up.

    Attributes:
        strategy: Vectorise over tasks, or visit one after the other.
        chunk_size: Vectorise over so many at a time, which bounds the memory; all at once where None.
        compile: Whether a whole training step is compiled.
    """

    strategy: Literal["vmap", "loop"] = "vmap"
    chunk_size: int | None = None
    compile: bool = False

    def __str__(self) -> str:
        chunks = f", {self.chunk_size} tasks at a time" if self.chunk_size else ""
        return self.strategy + chunks + (", compiled" if self.compile else "")


def task_map(function: Callable[..., Result], how: TaskMap, *tasks: Any) -> Result:
    """Run a one-task function over all tasks, in inference mode as well.

    What does not differ between tasks is computed once under `vmap`: a forward pass with weights that all tasks share
    is one pass over the whole meta-batch.

    Args:
        function: Pytrees of tensors of one task to a pytree of tensors. Random layers draw differently in each task.
        how: The strategy and the size of its chunks.
        *tasks: Pytrees whose tensors have a leading task dimension T.

    Returns:
        What the function returns, with a leading dimension T.
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
