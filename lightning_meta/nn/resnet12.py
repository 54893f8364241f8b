"""The 12-layer residual network of the few-shot literature."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_meta import checks
from lightning_meta.describing import Described
from lightning_meta.errors import UserError
from lightning_meta.nn.drop_block import DropBlock
from lightning_meta.nn.normalization import TaskBatchNorm
from lightning_meta.nn.stages import MeanOverPositions


class ResNet12(Described, nn.Module):
    """Four residual blocks of three 3x3 convolutions, each halving the image (Oreshkin et al. 2018; Lee et al. 2019).

    Deviations from MetaOptNet (Lee et al. 2019) and RFS (Tian et al. 2020): without `drop_block`, all blocks have plain
    dropout, instead of DropBlock in the last two; with it, the rate is constant instead of increasing over the first
    40,000 steps.

    Args:
        in_channels: Number of channels of the images.
        widths: Number of channels of each block; (64, 160, 320, 640) in MetaOptNet, (64, 128, 256, 512) in TADAM.
        dropout: Probability that a feature of a block is dropped, in [0, 1); 0.1 in MetaOptNet and RFS.
        drop_block: Side in pixels of the squares that the last two blocks drop, see `DropBlock`; None for plain
            dropout. MetaOptNet and RFS use 5 for images of 84 pixels and 2 for 32.
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 160, 320, 640),
        dropout: float = 0.0,
        drop_block: int | None = None,
    ) -> None:
        super().__init__()
        checks.whole(1, in_channels=in_channels, drop_block=drop_block)
        checks.widths(widths=widths)
        if not widths:
            raise UserError("widths: at least one block is needed, got none")
        checks.below_one(dropout=dropout)
        if drop_block is not None and not dropout:
            raise UserError(f"drop_block: {drop_block} drops nothing where dropout is 0; set dropout, such as to 0.1")
        blocks: list[nn.Module] = []
        for i, (inputs, width) in enumerate(pairwise([in_channels, *widths])):
            size = drop_block if i >= len(widths) - 2 else None
            drop = nn.Dropout(dropout) if size is None else DropBlock(dropout, size)
            blocks.append(_Residual(inputs, width, drop))
        self.blocks = nn.Sequential(*blocks)

    def stages(self) -> list[nn.Module]:
        """The blocks in order; the last also averages its map."""
        *others, last = self.blocks
        return [*others, nn.Sequential(last, MeanOverPositions())]

    def forward(self, x: Tensor) -> Tensor:
        """Images `(M, in_channels, H, W)` to features `(M, widths[-1])`, averaged over positions."""
        features: Tensor = self.blocks(x)
        return features.mean((-2, -1))


class _Residual(nn.Module):
    def __init__(self, in_channels: int, width: int, drop: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(3):
            convolution = nn.Conv2d(in_channels if i == 0 else width, width, 3, padding=1, bias=False)
            layers += [convolution, TaskBatchNorm(width)] + ([nn.LeakyReLU(0.1)] if i < 2 else [])
        self.residual = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), TaskBatchNorm(width))
        self.after = nn.Sequential(nn.MaxPool2d(2), nn.LeakyReLU(0.1), drop)  # as in `Conv4`

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.after(self.residual(x) + self.shortcut(x))
        return features
