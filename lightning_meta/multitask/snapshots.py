"""Weights of a task kept aside, and put in place again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Selection = Literal["selected", "joint"]


class Snapshots(nn.Module):
    """Two copies of the weights of each task: those of its own best validation, and those of the best mean.

    They are part of the state dict, but neither parameters, which an optimiser would move, nor buffers, which
    distributed training would send around in every step.

    Args:
        modules: What belongs to each task.
    """

    def __init__(self, modules: Sequence[Sequence[nn.Module]]) -> None:
        super().__init__()
        self._modules_of = [list(of) for of in modules]
        self._kept = {selection: [_flat(of) for of in self._modules_of] for selection in ("selected", "joint")}

    def keep(self, selection: Selection, task: int) -> None:
        """Copy the weights that a task has now."""
        self._kept[selection][task] = _flat(self._modules_of[task])

    @contextmanager
    def in_place(self, selection: Selection) -> Iterator[None]:
        """Within the context every task has the weights kept for it."""
        before = [_flat(of) for of in self._modules_of]
        for of, kept in zip(self._modules_of, self._kept[selection], strict=True):
            _restore(of, kept)
        try:
            yield
        finally:
            for of, old in zip(self._modules_of, before, strict=True):
                _restore(of, old)

    def get_extra_state(self) -> Tensor:
        """All copies, `(2, P)`."""
        # Some may still lie where the module was made, others where it trains.
        rows = ([part.cpu() for part in self._kept[selection]] for selection in ("selected", "joint"))
        return torch.stack([torch.cat(row) for row in rows])

    def set_extra_state(self, state: Tensor) -> None:
        """Take all copies up again."""
        sizes = [len(_flat(of)) for of in self._modules_of]
        for selection, row in zip(("selected", "joint"), state, strict=True):
            self._kept[selection] = [part.clone() for part in row.split(sizes)]


def _tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [t for m in modules for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]


@torch.no_grad()
def _flat(modules: Sequence[nn.Module]) -> Tensor:
    tensors = _tensors(modules)  # where a module is made, heads lie on the accelerator before the backbone does
    return torch.cat([t.to(tensors[0].device).flatten() for t in tensors])


@torch.no_grad()
def _restore(modules: Sequence[nn.Module], flat: Tensor) -> None:
    tensors = _tensors(modules)
    for tensor, part in zip(tensors, flat.to(tensors[0]).split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
