"""A plain multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_meta.checks import whole, widths
from lightning_meta.describing import Described


class MLP(Described, nn.Module):
    """Linear layers, each followed by a ReLU; inputs are flattened.

    Example:
        >>> import torch
        >>> MLP(in_features=4, hidden=(32, 16))(torch.rand(8, 4)).shape
        torch.Size([8, 16])

    Args:
        in_features: Number of entries of one input, at least 1.
        hidden: Widths of the layers; the last is the number of features.
    """

    def __init__(self, in_features: int = 1, hidden: Sequence[int] = (40, 40)) -> None:
        super().__init__()
        whole(1, in_features=in_features)
        widths(hidden=hidden)
        layers = [nn.Sequential(nn.Linear(i, o), nn.ReLU()) for i, o in pairwise([in_features, *hidden])]
        self.layers = nn.Sequential(*layers)

    def stages(self) -> list[nn.Module]:
        """The layers in order; the first also flattens inputs."""
        first, *others = self.layers
        return [nn.Sequential(nn.Flatten(), first), *others]

    def forward(self, x: Tensor) -> Tensor:
        """Inputs `(M, ...)` of `in_features` numbers each to features `(M, hidden[-1])`."""
        features: Tensor = self.layers(x.flatten(1))
        return features
