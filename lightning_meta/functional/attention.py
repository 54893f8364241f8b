"""Attention, written out: it maps over tasks, and any number of queries attends to any number of keys."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_meta.functional.precision import at_least_float32


def attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int = 1) -> Tensor:
    r"""Dot-product attention of several heads (Vaswani et al. 2017, section 3.2).

    $$\mathrm{softmax}\left(\frac{Q_h K_h^\top}{\sqrt{D / H}}\right) V_h, \quad h = 1, \dots, H$$

    side by side, each head having its own share of the columns. Each query attends alone, and the order of the keys
    does not matter.

    Args:
        queries: Q, `(M, D)`.
        keys: K, `(K, D)`.
        values: V, `(K, D)`, in the order of the keys.
        heads: H, which divides D.

    Returns:
        `(M, D)`.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (queries, keys, values))  # (H, ..., D / H)
    weights = at_least_float32(q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    attended: Tensor = weights.to(v.dtype) @ v
    return attended.transpose(0, 1).flatten(1)
