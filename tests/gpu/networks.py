"""A network that a configuration can name."""

from __future__ import annotations

from torch import nn

from lightning_meta.nn import Conv4


class Dropping(nn.Sequential):
    """Strided convolutions, which are deterministic on a card, and dropout."""

    def __init__(self) -> None:
        super().__init__(Conv4(1, 4, "stride"), nn.Dropout(0.4))
