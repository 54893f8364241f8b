"""Numbers that a user gives to tasks by their names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lightning_meta.errors import UserError


def check_weights(option: str, given: Mapping[str, float]) -> None:
    """Refuse weights that no sum can have.

    Args:
        option: The name of the argument, as errors begin.
        given: By name of the task.

    Raises:
        UserError: A weight is negative or not finite, or all are 0.
    """
    for name, weight in given.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"{option}: a weight is a number of at least 0, {name!r} has {weight}")
    if not any(given.values()):
        raise UserError(f"{option}: at least one task needs a weight above 0, got {dict(given)}")


def in_order(option: str, given: Mapping[str, float], tasks: Iterable[str]) -> Tensor:
    """The weights in the order of the tasks, `(T,)`.

    Args:
        option: The name of the argument, as errors begin.
        given: By name of the task.
        tasks: The names of all tasks.

    Raises:
        UserError: A name is unknown, or a task has no weight.
    """
    names = list(tasks)
    unknown = [name for name in given if name not in names]
    missing = [name for name in names if name not in given]
    if unknown:
        raise UserError(f"{option}: no task is named {unknown[0]!r}; the tasks are {', '.join(names)}")
    if missing:
        raise UserError(f"{option}: every task needs one, none is given for {', '.join(missing)}")
    return torch.tensor([float(given[name]) for name in names])
