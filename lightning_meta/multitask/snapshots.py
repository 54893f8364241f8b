"""Copies of the weights of each task, which can be restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Selection = Literal["selected", "joint"]


class Snapshots(nn.Module):
    """Two copies of the weights of each task: those of its own best validation, and those of the best mean.

    They are in the state dict, but neither parameters, which an optimizer would update, nor buffers, which DDP would
    broadcast in every step.

    Args:
        modules: Modules of each task.
    """

    def __init__(self, modules: Sequence[Sequence[nn.Module]]) -> None:
        super().__init__()
        self._modules_of = [list(own) for own in modules]
        self._names = [[list(_by_name(module)) for module in own] for own in self._modules_of]
        self._noted: list[Tensor] = []
        self._kept = {selection: self._all() for selection in ("selected", "joint")}

    def note(self) -> None:
        """Copy all weights, for `keep`."""
        self._noted = self._all()

    def forget(self) -> None:
        """Discard the copies of `note`."""
        self._noted = []

    def keep(self, selection: Selection, task: int) -> None:
        """Keep the weights of a task at the last call of `note`, or else the current ones."""
        self._kept[selection][task] = self._noted[task] if self._noted else self._flat(task)

    @contextmanager
    def in_place(self, selection: Selection) -> Iterator[None]:
        """A context in which every task has its kept weights."""
        tensors = [tensor for task in range(len(self._names)) for tensor in self._tensors(task)]
        before = [tensor.detach().clone() for tensor in tensors]
        for task, kept in enumerate(self._kept[selection]):
            self._restore(task, kept)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, old in zip(tensors, before, strict=True):
                    tensor.copy_(old)

    def get_extra_state(self) -> Tensor:
        """All copies, `(2, P)`."""
        # Some copies may be on the device where the module was made, others on that of training.
        rows = ([part.cpu() for part in self._kept[selection]] for selection in ("selected", "joint"))
        return torch.stack([torch.cat(row) for row in rows])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore all copies."""
        sizes = [sum(tensor.numel() for tensor in self._tensors(task)) for task in range(len(self._names))]
        for selection, row in zip(("selected", "joint"), state, strict=True):
            self._kept[selection] = [part.clone() for part in row.split(sizes)]

    def _all(self) -> list[Tensor]:
        return [self._flat(task) for task in range(len(self._names))]

    def _tensors(self, task: int) -> list[Tensor]:
        """The tensors of a task, in the order of the first call; pruning changes the order in the module."""
        ordered = []
        for module, names in zip(self._modules_of[task], self._names[task], strict=True):
            tensors = _by_name(module)
            ordered += [tensors[name][0] for name in names]
        return ordered

    @torch.no_grad()
    def _flat(self, task: int) -> Tensor:
        """The current weights of a task as one vector `(P_i,)`, with pruning masks applied."""
        parts: list[Tensor] = []
        for module, names in zip(self._modules_of[task], self._names[task], strict=True):
            tensors = _by_name(module)
            parts += [tensor if mask is None else tensor * mask for tensor, mask in (tensors[name] for name in names)]
        # While a module is being made, its heads may be on the accelerator before the backbone is.
        return torch.cat([part.to(parts[0].device).flatten() for part in parts])

    @torch.no_grad()
    def _restore(self, task: int, flat: Tensor) -> None:
        """Write a vector of `_flat` back to the tensors of a task."""
        tensors = self._tensors(task)
        for tensor, part in zip(tensors, flat.to(tensors[0]).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _by_name(module: nn.Module) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Real-valued parameters and buffers by name, each with its mask if `torch.nn.utils.prune` has pruned it.

    Pruning replaces `weight` by `weight_orig` and `weight_mask`; the name here remains `weight`.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    masks = {name.removesuffix("_mask"): mask for name, mask in tensors.items() if name.endswith("_mask")}
    masks = {name: mask for name, mask in masks.items() if f"{name}_orig" in tensors}
    by_name: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, tensor in tensors.items():
        plain = name.removesuffix("_orig")
        if plain != name and plain in masks:
            by_name[plain] = (tensor, masks[plain])
        elif tensor.is_floating_point() and not (name.endswith("_mask") and name.removesuffix("_mask") in masks):
            by_name[name] = (tensor, None)
    return by_name
