"""Sums over the ranks of a distributed run; otherwise there is one rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

_refused = ContextVar("_refused", default=False)


@contextmanager
def refusing_sums() -> Iterator[None]:
    """A context in which sums over several ranks raise a RuntimeError: a single rank runs what is in it."""
    token = _refused.set(True)
    try:
        yield
    finally:
        _refused.reset(token)


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leave_group() -> None:
    """Leave the process group, if there is one, and wait for its threads.

    A thread of gloo that is still at work when the interpreter ends can abort the process, although the training
    succeeded. Lightning leaves the group at exit for NCCL only.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of a tensor over ranks, on each of them; no gradient flows through it."""
    return tensor.detach() if world_size() == 1 else sum_over_ranks(tensor) / world_size()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over ranks, on each of them; no gradient flows through it."""
    if world_size() == 1:
        return tensor.detach()
    if _refused.get():
        raise RuntimeError("it exchanges values between ranks, which not all of them might replay together")
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def columns_of_ranks(matrix: Tensor) -> tuple[Tensor, slice]:
    """The matrices of all ranks side by side, on each rank, and the slice of this rank's columns; without gradients.

    Args:
        matrix: Matrix `(R, C)`, with the same R on all ranks. All ranks must call this together.
    """
    ranks = world_size()
    if ranks == 1:
        return matrix.detach(), slice(None)
    rank = dist.get_rank()
    widths = torch.zeros(ranks, dtype=torch.int64, device=matrix.device)
    widths[rank] = matrix.shape[1]
    ends = sum_over_ranks(widths).cumsum(0).tolist()
    own = slice(ends[rank] - matrix.shape[1], ends[rank])
    whole = matrix.new_zeros(len(matrix), ends[-1])
    whole[:, own] = matrix.detach()
    return sum_over_ranks(whole), own  # a sum, since not all backends can gather different widths
