"""Mini-batches of a support set, in an order that follows from the examples themselves.

Inner steps see a task's support set and nothing else, so there is no counter that a task's draws could be keyed by.
Here the key of an example is a hash of its content: each task has its own order, which is the same on any worker, rank
or device, under `vmap`, in every evaluation, and however the support set is sorted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_meta.batches import Examples
from lightning_meta.functional.tensor_bits import GAMMA, mix


def mini_batches(examples: Examples, size: int, count: int) -> list[Examples]:
    """Shuffle the examples once an epoch, and cut the epochs, one after the other, into batches.

    As in the code of Nichol et al. (2018, https://arxiv.org/abs/1803.02999), a batch may lie across two epochs.

    Args:
        examples: `x` is `(M, ...)`, `y` is `(M, ...)`. Examples that are equal are interchangeable.
        size: Examples in a batch; no more than M are taken.
        count: How many batches.

    Returns:
        The batches, `(min(size, M), ...)` each.
    """
    total = len(examples.x)
    size = min(size, total)
    keys = content_keys(examples)
    epochs = torch.arange(-(-count * size // total), device=keys.device)
    order = torch.argsort(mix(keys + mix(epochs.unsqueeze(-1) * GAMMA)), dim=-1).flatten()
    rows = [order[j * size : (j + 1) * size] for j in range(count)]
    return [Examples(examples.x[chosen], examples.y[chosen]) for chosen in rows]


def content_keys(examples: Examples) -> Tensor:
    """64 random bits for each example, a function of its input and target: `(M,)` int64.

    Numbers are taken in float32, so that float64 examples that were float32 before have the same keys.
    """
    parts = [part.detach().reshape(len(part), -1).float() for part in examples]
    words = torch.cat(parts, dim=-1).view(torch.int32).long()
    multipliers = mix(torch.arange(1, words.shape[-1] + 1, device=words.device) * GAMMA) | 1
    return mix((words * multipliers).sum(-1))  # wrapping sums do not depend on their order
