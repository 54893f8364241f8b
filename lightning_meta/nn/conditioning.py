"""Layers by which a task descriptor z enters a network."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.nn.categories import CategoryEmbedding

Entry = Literal["concatenate", "add", "film", "gate"]


class Concatenate(nn.Module):
    """$[h; z]$: z as additional features or channels, the same at each position.

    Args:
        flat: Whether to flatten maps first, for a linear layer that follows.
    """

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """`(M, C, ...)` and `(M, Z)` to `(M, C + Z, ...)`."""
        if self.flat:
            h = h.flatten(1)
        return torch.cat([h, _over_positions(z, h).expand(-1, -1, *h.shape[2:])], dim=1)


class Add(nn.Module):
    """$h + Wz$; W starts at 0.

    Args:
        channels: Number of channels C.
        size: Size Z of a descriptor.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.shift = _zeros(size, channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """`(M, C, ...)` and `(M, Z)` to `(M, C, ...)`."""
        return h + _over_positions(self.shift(z), h)


class FiLM(nn.Module):
    r"""$(1 + W_\gamma z) \odot h + W_\beta z$; both W start at 0 (Perez et al. 2018, equation 2, in the residual form
    of their section 7.2).

    Args:
        channels: Number of channels C.
        size: Size Z of a descriptor.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.scale, self.shift = _zeros(size, channels), _zeros(size, channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """`(M, C, ...)` and `(M, Z)` to `(M, C, ...)`."""
        return h * (1 + _over_positions(self.scale(z), h)) + _over_positions(self.shift(z), h)


class Gate(nn.Module):
    r"""$2 \sigma(Wz) \odot h$; W starts at 0, so that all gates are 1.

    Args:
        channels: Number of channels C.
        size: Size Z of a descriptor.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.gate = _zeros(size, channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """`(M, C, ...)` and `(M, Z)` to `(M, C, ...)`."""
        return h * _over_positions(2 * self.gate(z).sigmoid(), h)


def widened(stage: nn.Module, extra: int, option: str) -> tuple[nn.Module, bool]:
    """Add input channels to the first layer of a stage; the weights of the existing channels are kept.

    Args:
        stage: The stage; it is copied.
        extra: Number of additional channels.
        option: Name of the position, for error messages.

    Returns:
        The changed copy, and whether its first layer is linear.

    Raises:
        UserError: The stage does not begin with a linear or convolutional layer, or that layer is frozen.
    """
    stage = copy.deepcopy(stage)
    for parent_name, layer in stage.named_modules():
        if isinstance(layer, CategoryEmbedding):  # it passes further columns on
            continue
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if not layer.weight.requires_grad:
                raise UserError(
                    f"{option}: the first layer of {type(stage).__name__} is frozen, and concatenated channels would "
                    "add weights to it; set enters to film, add or gate, or at to another place, such as the number of "
                    "stages, or do not freeze this layer"
                )
            if isinstance(layer, nn.Linear):
                wide: nn.Module = nn.Linear(layer.in_features + extra, layer.out_features, layer.bias is not None)
            elif layer.groups == 1:
                settings = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
                settings["padding_mode"] = layer.padding_mode
                wide = nn.Conv2d(
                    layer.in_channels + extra,
                    layer.out_channels,
                    layer.kernel_size,  # type: ignore[arg-type]
                    bias=layer.bias is not None,
                    **settings,  # type: ignore[arg-type]
                )
            else:
                break
            wide = wide.to(layer.weight)
            with torch.no_grad():
                wide.get_parameter("weight")[:, : layer.weight.shape[1]] = layer.weight
                if layer.bias is not None:
                    wide.get_parameter("bias").copy_(layer.bias)
            if not parent_name:
                return wide, isinstance(layer, nn.Linear)
            parent, _, name = parent_name.rpartition(".")
            setattr(stage.get_submodule(parent), name, wide)
            return stage, isinstance(layer, nn.Linear)
        if any(True for _ in layer.parameters(recurse=False)):
            break
    raise UserError(
        f"{option}: nothing can be concatenated before {type(stage).__name__}, which does not begin with a linear or "
        "convolutional layer; let z enter by film, add or gate, or elsewhere"
    )


def _zeros(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def _over_positions(z: Tensor, h: Tensor) -> Tensor:
    return z.reshape(*z.shape, *[1] * (h.dim() - 2))
