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


@torch.no_grad()
def output_size(network: nn.Module, input_shape: Sequence[int]) -> int:
    """How many features F a network makes of one input, found by running a copy on zeros.

    Args:
        network: `(M, *input_shape)` to `(M, F)`.
        input_shape: The shape of one input.

    Raises:
        UserError: The network does not take such inputs, or its output is not `(M, F)`.
    """
    shape = tuple(input_shape)
    name = type(network).__name__
    copied = copy.deepcopy(network).eval()
    like = next(iter(network.parameters()), torch.zeros(()))
    try:
        with statistics_from(copied, "stored"):
            output = copied(torch.zeros(2, *shape, dtype=like.dtype, device=like.device))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"backbone: {name} does not take inputs of shape {shape} (channels first): {reason}; "
            "set its in_channels or in_features to fit the data, or the data's image size to fit the backbone"
        ) from error
    if output.dim() != 2 or not output.shape[1]:
        raise UserError(
            f"backbone: {name} turns inputs of shape {shape} into {tuple(output.shape[1:])}; "
            "a backbone gives one row of features an input, so let it flatten or average its last map"
        )
    return output.shape[1]
