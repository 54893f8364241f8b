"""Checks and ordering of task weights specified by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lightning_meta.errors import UserError


def check_weights(option: str, weights: Mapping[str, float]) -> None:
    """Check weights of a sum.

    Args:
        option: Name of the argument, for error messages.
        weights: Weights by name of the task.

    Raises:
        UserError: A weight is negative or not finite, or all are 0.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"{option}: finite weights of at least 0 are needed, got {weight} for {name!r}")
    if not any(weights.values()):
        raise UserError(f"{option}: at least one task needs a weight above 0, got {dict(weights)}")


def in_order(option: str, weights: Mapping[str, float], tasks: Iterable[str]) -> Tensor:
    """The weights in the order of the tasks, `(T,)`.

    Args:
        option: Name of the argument, for error messages.
        weights: Weights by name of the task.
        tasks: Names of all tasks.

    Raises:
        UserError: A task is unknown or has no weight.
    """
    names = list(tasks)
    unknown = [name for name in weights if name not in names]
    missing = [name for name in names if name not in weights]
    if unknown:
        raise UserError(f"{option}: no task is named {unknown[0]!r}; the tasks are {', '.join(names)}")
    if missing:
        raise UserError(f"{option}: a weight of every task is needed, got none for {', '.join(missing)}")
    return torch.tensor([float(weights[name]) for name in names])
