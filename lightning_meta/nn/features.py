"""Inputs of networks, and the size of what comes out."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.nn.normalization import statistics_from

IMAGE_DIMS = 3  # channels, height, width


def as_input(x: Tensor, dtype: torch.dtype, leading: int = 1) -> Tensor:
    """Turn stored examples into what a network takes.

    - uint8 images in [0, 255], inputs of three dimensions (channels, height, width), become numbers in [0, 1].
    - Other integers are ids, such as tokens: they become int64, whatever the precision of the network.
    - All else, real numbers and booleans, becomes numbers.

    Args:
        x: Inputs `(M, *input_shape)`, or `(T, M, *input_shape)`.
        dtype: Of the network's parameters, and of numbers.
        leading: The dimensions before those of one input.
    """
    if x.dtype == torch.uint8 and x.dim() - leading == IMAGE_DIMS:
        return x.to(dtype) / 255
    if x.is_complex():
        return x
    return x.to(dtype if x.is_floating_point() or x.dtype == torch.bool else torch.int64)


def are_ids(input_shape: Sequence[int], input_dtype: str) -> bool:
    """Whether stored inputs reach the network as int64.

    Args:
        input_shape: The shape of one input.
        input_dtype: The dtype of the stored inputs, such as "uint8"; "" for numbers.
    """
    return not zeros_like_inputs(input_shape, input_dtype, torch.empty(())).is_floating_point()


def zeros_like_inputs(input_shape: Sequence[int], input_dtype: str, like: Tensor) -> Tensor:
    """Two inputs of zeros `(2, *input_shape)` as a network takes them.

    Args:
        input_shape: The shape of one input.
        input_dtype: The dtype of the stored inputs, such as "uint8"; "" for numbers.
        like: A parameter of the network.
    """
    stored = getattr(torch, input_dtype) if input_dtype else like.dtype
    return as_input(torch.zeros(2, *input_shape, dtype=stored, device=like.device), like.dtype)


def shape_after(
    network: nn.Module, input_shape: Sequence[int], option: str = "backbone", input_dtype: str = ""
) -> tuple[int, ...]:
    """The shape of what a network makes of one input, found by running a copy on zeros.

    Args:
        network: `(M, *input_shape)` to `(M, ...)`.
        input_shape: The shape of one input.
        option: What the user calls the network.
        input_dtype: The dtype of the stored inputs, such as "uint8"; "" for numbers.

    Raises:
        UserError: The network does not take such inputs.
    """
    shape = tuple(input_shape)
    name = type(network).__name__
    copied = copy.deepcopy(network).eval()
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    zeros = zeros_like_inputs(shape, input_dtype, like)
    try:
        with torch.no_grad(), statistics_from(copied, "stored"):
            output = copied(zeros)
    except UserError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = (
            "set its in_channels or in_features to fit the data, or the data's image size to fit the backbone"
            if zeros.is_floating_point()
            else "let it begin with torch.nn.Embedding, or let the source give float32 inputs if they are no ids"
        )
        kind = " (channels first)" if zeros.is_floating_point() else f" of {input_dtype} ids"
        raise UserError(f"{option}: {name} does not take inputs of shape {shape}{kind}: {reason}; {fix}") from error
    return tuple(output.shape[1:])


def output_size(network: nn.Module, input_shape: Sequence[int], input_dtype: str = "") -> int:
    """How many features F a network makes of one input, found by running a copy on zeros.

    Args:
        network: `(M, *input_shape)` to `(M, F)`.
        input_shape: The shape of one input.
        input_dtype: The dtype of the stored inputs, such as "uint8"; "" for numbers.

    Raises:
        UserError: The network does not take such inputs, or its output is not `(M, F)`.
    """
    features = shape_after(network, input_shape, input_dtype=input_dtype)
    if len(features) != 1 or not features[0]:
        raise UserError(
            f"backbone: {type(network).__name__} turns inputs of shape {tuple(input_shape)} into {features}; "
            "a backbone gives one row of features an input, so let it flatten or average its last map"
        )
    return features[0]


def images_at_once(device: torch.device) -> int:
    """How many images a network is given at once where no gradients are kept.

    The activations of more than a few do not fit a processor's cache: EfficientNet-Lite0 takes three times as long for
    40 images at once as for 8 and 8.
    """
    return 8 if device.type == "cpu" else 64
