"""Dropout of whole squares of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta import checks
from lightning_meta.describing import Described
from lightning_meta.errors import UserError


class DropBlock(Described, nn.Module):
    r"""Drops squares of neighbouring features, only in training (Ghiasi et al. 2018, algorithm 1).

    Each square in each channel is dropped with probability $\gamma = \frac{r}{b^2} \frac{HW}{(H - b + 1)(W - b + 1)}$
    (equation 1), and the remaining features are divided by the share of remaining features over the whole batch. Random
    numbers come from torch's generator, as for dropout.

    Deviations: the rate is constant; Ghiasi et al. (section 3.1) raise it from 0 over training, as Lee et al. (2019) do
    in their code over the first 40,000 steps.

    Args:
        rate: Approximate share r of dropped features, in [0, 1).
        block_size: Side b of a square in pixels, at least 1.
    """

    def __init__(self, rate: float, block_size: int) -> None:
        super().__init__()
        checks.below_one(rate=rate)
        checks.whole(1, block_size=block_size)
        self.rate, self.block_size = rate, block_size

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(M, C, H, W)` to maps of the same shape.

        Raises:
            UserError: A square is larger than the map, in evaluation as well.
        """
        size, (height, width) = self.block_size, x.shape[-2:]
        if size > min(height, width):
            raise UserError(
                f"block_size: at most {min(height, width)} fits a map of {height}x{width} features, got {size}; give a "
                "smaller one, or larger images"
            )
        if not self.training or not self.rate:
            return x
        places = x[..., : height - size + 1, : width - size + 1]  # positions of a square's upper left corner
        rate = self.rate / size**2 * (height * width) / places.shape[-2:].numel()
        corners = (torch.rand_like(places, dtype=torch.float32) < rate).to(x.dtype)  # half precision is too coarse
        kept = 1 - F.max_pool2d(F.pad(corners, [size - 1] * 4), size, stride=1)
        share = kept.mean(dtype=torch.float32).clamp(min=1 / kept.numel())
        return x * (kept / share).to(x.dtype)

    def extra_repr(self) -> str:
        """The options in the printed network."""
        return f"rate={self.rate}, block_size={self.block_size}"
