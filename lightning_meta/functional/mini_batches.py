"""Mini-batches of a support set, in an order computed from the examples themselves.

Inner steps only see the support set of a task, so random draws cannot be keyed by a counter. Instead, examples are
sorted by a hash of their content: each task has its own order, which is the same on any worker, rank or device, under
`vmap`, in every evaluation, and for any order of the support set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_meta.batches import Examples
from lightning_meta.functional.tensor_bits import GAMMA, mix


def mini_batches(examples: Examples, size: int, count: int) -> list[Examples]:
    """Shuffle the examples in each epoch, and split the concatenated epochs into batches.

    As in the code of Nichol et al. (2018, https://arxiv.org/abs/1803.02999), a batch may contain the end of an epoch
    and the beginning of the next.

    Args:
        examples: Examples with `x` `(M, ...)` and `y` `(M, ...)`.
        size: Number of examples per batch; at most M are used.
        count: Number of batches.

    Returns:
        The batches, each with `min(size, M)` examples.
    """
    total = len(examples.x)
    size = min(size, total)
    keys = content_keys(examples)
    epochs = torch.arange(-(-count * size // total), device=keys.device)
    order = torch.argsort(mix(keys + mix(epochs.unsqueeze(-1) * GAMMA)), dim=-1).flatten()
    rows = [order[j * size : (j + 1) * size] for j in range(count)]
    return [Examples(examples.x[chosen], examples.y[chosen]) for chosen in rows]


def content_keys(examples: Examples) -> Tensor:
    """A 64-bit hash of the input and target of each example, `(M,)` int64.

    Values are first converted to float32, so that examples widened from float32 to float64 keep their keys.
    """
    parts = [part.detach().reshape(len(part), -1).float() for part in examples]
    words = torch.cat(parts, dim=-1).view(torch.int32).long()
    multipliers = mix(torch.arange(1, words.shape[-1] + 1, device=words.device) * GAMMA) | 1
    return mix((words * multipliers).sum(-1))  # integer sums that wrap do not depend on the order of summation
