"""Sums over the processes of a distributed run; without one, there is a single rank."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """W, the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of a tensor over ranks, on each of them; no gradient flows through it."""
    return tensor.detach() if world_size() == 1 else sum_over_ranks(tensor) / world_size()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over ranks, on each of them; no gradient flows through it."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total
