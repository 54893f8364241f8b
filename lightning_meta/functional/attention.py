"""Multi-head attention by plain matrix products.

These products work under `torch.func.vmap` and have second derivatives on every device. The fused kernels of
`torch.nn.functional.scaled_dot_product_attention` have no second derivative.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_meta.functional.precision import at_least_float32


def attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int = 1) -> Tensor:
    r"""Multi-head dot-product attention (Vaswani et al. 2017, section 3.2).

    $$\mathrm{softmax}\left(\frac{Q_h K_h^\top}{\sqrt{D / H}}\right) V_h, \quad h = 1, \ldots, H$$

    with the outputs of the heads concatenated; head h uses columns $hD/H$ to $(h + 1)D/H$. Queries do not influence
    one another, and the order of the keys does not matter.

    Args:
        queries: Queries Q, `(M, D)`.
        keys: Keys, `(K, D)`.
        values: Values V, `(K, D)`, in the order of the keys.
        heads: Number of heads H, a divisor of D.

    Returns:
        The attended values, `(M, D)`.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (queries, keys, values))  # (H, ..., D / H)
    weights = at_least_float32(q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    attended: Tensor = weights.to(v.dtype) @ v
    return attended.transpose(0, 1).flatten(1)
