"""What several tasks compute at once: rows of the features, and heads of equal layers as one product for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.batches import Common, Consecutive

FEWEST = 4
"""Heads that are worth a product for each layer: of fewer, stacking the weights takes longer than it saves."""


def rows_of(features: Tensor, rows: Mapping[str, Tensor], apart: bool = False) -> Sequence[Tensor]:
    """The features of each task.

    Args:
        features: `(B, ...)`.
        rows: By name of the task, `(n_i,)` int64.
        apart: Whether each task's loss will be differentiated by itself.

    Returns:
        For each task, `(n_i, ...)`.
    """
    if isinstance(rows, Common):
        return [features] * len(rows)
    counts = [i.shape[0] for i in rows.values()]  # `len` would fix them in an exported program
    if isinstance(rows, Consecutive):
        return torch.split(features, counts)
    if apart or not features.requires_grad:
        return [features[i] for i in rows.values()]
    # The backward pass of each gather would fill a gradient as large as all features; that of one loss fills one.
    return torch.split(features[torch.cat(list(rows.values()))], counts)


def predictions(heads: Sequence[nn.Module], features: Tensor, rows: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """What each of T heads makes of its rows of the features.

    Heads of equally many rows and equal linear layers are one product for each layer.

    Args:
        heads: T of them.
        features: `(B, F)`.
        rows: By name of the task, `(n_i,)` int64.

    Returns:
        For each task, `(n_i, outputs_i)`.
    """
    several = len(heads) >= FEWEST and equally_many([i.shape[0] for i in rows.values()])
    layers = _equal_layers(heads) if several else None
    if layers is None:
        return [head(own) for head, own in zip(heads, rows_of(features, rows), strict=True)]
    if isinstance(rows, Common):
        x = features.expand(len(heads), -1, -1)
    else:
        own = features if isinstance(rows, Consecutive) else features[torch.cat(list(rows.values()))]
        x = own.unflatten(0, (len(heads), -1)) if len(own) else own.new_zeros(len(heads), *own.shape)
    for of_heads in layers:
        if isinstance(of_heads[0], nn.Linear):
            weight = torch.stack([layer.weight for layer in of_heads])  # type: ignore[misc]
            bias = torch.stack([layer.bias for layer in of_heads])  # type: ignore[misc]
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
        else:
            x = F.relu(x)
    return x.unbind()


def equally_many(counts: Sequence[int]) -> bool:
    """Whether tasks have equally many rows; in an exported program these are symbols, which no set takes."""
    return all(count == counts[0] for count in counts)


def _equal_layers(heads: Sequence[nn.Module]) -> list[list[nn.Module]] | None:
    """The layers of all heads, by position; None where they are not equal, or are more than products and ReLUs."""
    first = _signature(heads[0])
    if first is None or any(_signature(head) != first for head in heads[1:]):
        return None
    layers = zip(*(head._modules.values() for head in heads), strict=True)
    return [list(of) for of in layers if not isinstance(of[0], nn.Dropout)]


def _signature(head: nn.Module) -> list[tuple[int, ...]] | None:
    # A type that is derived, parametrised or wrapped, and a layer with hooks, may do anything: it is called as it is.
    if type(head) is not nn.Sequential or _has_hooks(head):
        return None
    found: list[tuple[int, ...]] = []
    for layer in head._modules.values():
        if layer is None or _has_hooks(layer):
            return None
        if type(layer) is nn.Linear and layer.bias is not None:
            found.append((layer.in_features, layer.out_features))
        elif type(layer) is nn.ReLU:
            found.append(())
        elif type(layer) is nn.Dropout and not (layer.training and layer.p):
            found.append((0,))
        else:
            return None
    return found


def _has_hooks(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks)
