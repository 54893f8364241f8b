"""The four-block convolutional network of the few-shot literature."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from lightning_meta import checks
from lightning_meta.describing import Described
from lightning_meta.errors import UserError, one_of
from lightning_meta.nn.normalization import TaskBatchNorm
from lightning_meta.nn.stages import MeanOverPositions

Downsample = Literal["max_pool", "stride"]
Spatial = Literal["flatten", "mean"]


class Conv4(Described, nn.Module):
    """Blocks of 3x3 convolution, batch normalisation, ReLU and downsampling by 2 (Vinyals et al. 2016).

    With 64 channels and max-pooling it is the network of ProtoNet; with 64 channels, strides and averaging of the last
    map that of MAML on Omniglot; with 32 channels and max-pooling that of MAML on mini-ImageNet. R2D2 has 96, 192, 384
    and 512 channels, leaky ReLUs and dropout, and its features are the last two maps. RelationNet downsamples only in
    the first two blocks.

    Example:
        >>> import torch
        >>> Conv4(in_channels=3, width=64)(torch.rand(2, 3, 84, 84)).shape
        torch.Size([2, 1600])

    Args:
        in_channels: Channels of the images: 1 for grey, 3 for colour.
        width: Number of channels of all blocks, or a sequence with one number per block.
        downsample: Downsampling by a 2x2 max-pool after each block, or by a stride of 2 in its convolution.
        spatial: Whether to flatten the last map or average it over positions.
        blocks: Number of blocks, at least 1.
        halvings: Number of blocks, from the first on, that downsample; by default all.
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: int | Sequence[int] = 64,
        downsample: Downsample = "max_pool",
        spatial: Spatial = "flatten",
        blocks: int = 4,
        halvings: int | None = None,
    ) -> None:
        super().__init__()
        checks.whole(1, in_channels=in_channels, blocks=blocks)
        if isinstance(width, Sequence):
            checks.widths(width=width)
            if len(width) != blocks:
                raise UserError(f"width: one number for each of the {blocks} blocks is needed, got {list(width)}")
        else:
            checks.whole(1, width=width)
        if halvings is not None:
            checks.whole(0, halvings=halvings)
            if halvings > blocks:
                raise UserError(f"halvings: at most one for each of the {blocks} blocks, got {halvings}")
        one_of("downsample", downsample, Downsample)
        one_of("spatial", spatial, Spatial)
        widths = width if isinstance(width, Sequence) else [width] * blocks
        halved = [downsample] * (blocks if halvings is None else halvings)
        each = [*halved, *[None] * (blocks - len(halved))]
        channels = pairwise([in_channels, *widths])
        self.blocks = nn.Sequential(*(_block(i, o, how) for (i, o), how in zip(channels, each, strict=True)))
        self.spatial = spatial

    def stages(self) -> list[nn.Module]:
        """The blocks in order; the last also flattens or averages its map."""
        *others, last = self.blocks
        return [*others, nn.Sequential(last, nn.Flatten() if self.spatial == "flatten" else MeanOverPositions())]

    def forward(self, x: Tensor) -> Tensor:
        """Images `(M, in_channels, H, W)` to features `(M, F)`."""
        x = self.blocks(x)
        return x.flatten(1) if self.spatial == "flatten" else x.mean((-2, -1))


def _block(in_channels: int, width: int, downsample: str | None) -> nn.Sequential:
    strided, pooled = downsample == "stride", downsample == "max_pool"
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, width, 3, stride=2 if strided else 1, padding=1),
        TaskBatchNorm(width),
    ]
    # ReLU and max-pooling commute, so apply ReLU to the quarter of values that is left.
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pooled else []), nn.ReLU())
