"""Inputs of networks, and the size of what comes out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from lightning_meta.batches import Episode
from lightning_meta.errors import UserError
from lightning_meta.nn.normalization import statistics_from

Inputs = TypeVar("Inputs", Tensor, Episode)


def as_input(x: Inputs, dtype: torch.dtype) -> Inputs:
    """Turn stored examples into what a network takes: uint8 images in [0, 255] become numbers in [0, 1].

    Args:
        x: Inputs, or the episode whose inputs are meant.
        dtype: Of the network's parameters; real inputs become this, too.
    """
    if isinstance(x, Episode):
        support = x.support._replace(x=as_input(x.support.x, dtype))
        return x._replace(support=support, query=x.query._replace(x=as_input(x.query.x, dtype)))
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


def shape_after(network: nn.Module, input_shape: Sequence[int], option: str = "backbone") -> tuple[int, ...]:
    """The shape of what a network makes of one input, found by running a copy on zeros.

    Args:
        network: `(M, *input_shape)` to `(M, ...)`.
        input_shape: The shape of one input.
        option: What the user calls the network.

    Raises:
        UserError: The network does not take such inputs.
    """
    shape = tuple(input_shape)
    name = type(network).__name__
    copied = copy.deepcopy(network).eval()
    like = next(iter(network.parameters()), torch.zeros(()))
    try:
        with torch.no_grad(), statistics_from(copied, "stored"):
            output = copied(torch.zeros(2, *shape, dtype=like.dtype, device=like.device))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{option}: {name} does not take inputs of shape {shape} (channels first): {reason}; "
            "set its in_channels or in_features to fit the data, or the data's image size to fit the backbone"
        ) from error
    return tuple(output.shape[1:])


def output_size(network: nn.Module, input_shape: Sequence[int]) -> int:
    """How many features F a network makes of one input, found by running a copy on zeros.

    Args:
        network: `(M, *input_shape)` to `(M, F)`.
        input_shape: The shape of one input.

    Raises:
        UserError: The network does not take such inputs, or its output is not `(M, F)`.
    """
    features = shape_after(network, input_shape)
    if len(features) != 1 or not features[0]:
        raise UserError(
            f"backbone: {type(network).__name__} turns inputs of shape {tuple(input_shape)} into {features}; "
            "a backbone gives one row of features an input, so let it flatten or average its last map"
        )
    return features[0]
