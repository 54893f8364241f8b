"""The 12-layer residual network of the few-shot literature."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_meta import checks
from lightning_meta.configuration import Described
from lightning_meta.errors import UserError
from lightning_meta.nn.normalization import TaskBatchNorm
from lightning_meta.nn.stages import MeanOverPositions


class ResNet12(Described, nn.Module):
    """Four residual blocks of three 3x3 convolutions, each halving the image (Oreshkin et al. 2018; Lee et al. 2019).

    Deviations from MetaOptNet (Lee et al. 2019): plain dropout in place of DropBlock.

    Args:
        in_channels: Channels of the images.
        widths: Channels of the four blocks; (64, 160, 320, 640) in MetaOptNet, (64, 128, 256, 512) in TADAM.
        dropout: Probability that a feature of a block is dropped, in [0, 1).
    """

    def __init__(self, in_channels: int = 3, widths: Sequence[int] = (64, 160, 320, 640), dropout: float = 0.0) -> None:
        super().__init__()
        checks.whole(1, in_channels=in_channels)
        checks.widths(widths=widths)
        if not widths:
            raise UserError("widths: at least one block is needed, got none")
        checks.below_one(dropout=dropout)
        self.blocks = nn.Sequential(*(_Residual(i, o, dropout) for i, o in pairwise([in_channels, *widths])))

    def stages(self) -> list[nn.Module]:
        """The blocks one after the other; the last averages its map."""
        *others, last = self.blocks
        return [*others, nn.Sequential(last, MeanOverPositions())]

    def forward(self, x: Tensor) -> Tensor:
        """Images `(M, in_channels, H, W)` to features `(M, widths[-1])`, averaged over positions."""
        features: Tensor = self.blocks(x)
        return features.mean((-2, -1))


class _Residual(nn.Module):
    def __init__(self, in_channels: int, width: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(3):
            convolution = nn.Conv2d(in_channels if i == 0 else width, width, 3, padding=1, bias=False)
            layers += [convolution, TaskBatchNorm(width)] + ([nn.LeakyReLU(0.1)] if i < 2 else [])
        self.residual = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), TaskBatchNorm(width))
        self.after = nn.Sequential(nn.MaxPool2d(2), nn.LeakyReLU(0.1), nn.Dropout(dropout))  # as in `Conv4`

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.after(self.residual(x) + self.shortcut(x))
        return features
