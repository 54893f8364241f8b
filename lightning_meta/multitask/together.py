"""Computation for several tasks at once: rows of the features, and equal heads as one batched product per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.batches import Common, Consecutive

FEWEST = 4
"""Smallest number of heads for a batched product: with fewer, stacking the weights takes longer than it saves."""


def rows_of(features: Tensor, rows: Mapping[str, Tensor], separately: bool = False) -> Sequence[Tensor]:
    """The features of each task.

    Args:
        features: Features of the batch, `(B, ...)`.
        rows: Row numbers of each task's examples by name of the task, `(n_i,)` int64.
        separately: Whether the loss of each task will be differentiated separately.

    Returns:
        Features of each task, `(n_i, ...)`.
    """
    if isinstance(rows, Common):
        return [features] * len(rows)
    counts = [i.shape[0] for i in rows.values()]  # `len` would fix them in an exported program
    if isinstance(rows, Consecutive):
        return features.split_with_sizes(counts)
    if separately or not features.requires_grad:
        return [features[i] for i in rows.values()]
    # The backward pass of each indexing allocates a gradient of the size of all features, so index only once.
    return torch.split(features[torch.cat(list(rows.values()))], counts)


def predictions(heads: Sequence[nn.Module], features: Tensor, rows: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """Apply each of T heads to its rows of the features.

    Heads with equal layers and the same number of rows are computed as one batched product per layer.

    Args:
        heads: The T heads.
        features: Features of the batch, `(B, F)`.
        rows: Row numbers of each task's examples by name of the task, `(n_i,)` int64.

    Returns:
        Predictions of each task, `(n_i, outputs_i)`.
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
    """Whether all counts are equal; not by a set, since in an exported program they are symbols."""
    return all(count == counts[0] for count in counts)


def _equal_layers(heads: Sequence[nn.Module]) -> list[list[nn.Module]] | None:
    """The layers of all heads by position; None if they differ, or are not only linear layers and ReLUs."""
    first = _signature(heads[0])
    if first is None or any(_signature(head) != first for head in heads[1:]):
        return None
    layers = zip(*(head._modules.values() for head in heads), strict=True)
    return [list(group) for group in layers if not isinstance(group[0], nn.Dropout)]


def _signature(head: nn.Module) -> list[tuple[int, ...]] | None:
    # Subclasses, parametrised or wrapped layers and layers with hooks may do anything, so they are called separately.
    if type(head) is not nn.Sequential or _has_hooks(head):
        return None
    signature: list[tuple[int, ...]] = []
    for layer in head._modules.values():
        if layer is None or _has_hooks(layer):
            return None
        if type(layer) is nn.Linear and layer.bias is not None:
            signature.append((layer.in_features, layer.out_features))
        elif type(layer) is nn.ReLU:
            signature.append(())
        elif type(layer) is nn.Dropout and not (layer.training and layer.p):
            signature.append((0,))
        else:
            return None
    return signature


def _has_hooks(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks)
