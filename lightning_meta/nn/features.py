"""Conversion of stored examples to inputs of networks, and the shape of their outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.nn.mlp import MLP
from lightning_meta.nn.normalization import statistics_from

IMAGE_DIMS = 3  # channels, height, width


def as_input(x: Tensor, dtype: torch.dtype, leading: int = 1) -> Tensor:
    """Convert stored examples to inputs of a network.

    - uint8 images in [0, 255], with three dimensions (channels, height, width), are scaled to [0, 1].
    - Other integers are ids, such as tokens: they become int64, for any precision of the network.
    - Real numbers and booleans are converted to `dtype`.

    Args:
        x: Inputs `(M, *input_shape)`, or `(T, M, *input_shape)`.
        dtype: Dtype of the network's parameters.
        leading: Number of dimensions before those of one input.
    """
    if x.dtype == dtype:
        return x
    if x.dtype == torch.uint8 and x.dim() - leading == IMAGE_DIMS:
        return x.to(dtype) / 255
    if x.is_complex():
        return x
    return x.to(dtype if x.is_floating_point() or x.dtype == torch.bool else torch.int64)


def are_ids(input_shape: Sequence[int], input_dtype: str) -> bool:
    """Whether stored inputs reach the network as int64.

    Args:
        input_shape: Shape of one input.
        input_dtype: Dtype of the stored inputs, such as "uint8"; "" for numbers.
    """
    return not zeros_like_inputs(input_shape, input_dtype, torch.empty(())).is_floating_point()


def zeros_like_inputs(input_shape: Sequence[int], input_dtype: str, like: Tensor) -> Tensor:
    """Two inputs of zeros `(2, *input_shape)`, converted for a network.

    Args:
        input_shape: Shape of one input.
        input_dtype: Dtype of the stored inputs, such as "uint8"; "" for numbers.
        like: A parameter of the network.
    """
    stored = getattr(torch, input_dtype) if input_dtype else like.dtype
    return as_input(torch.zeros(2, *input_shape, dtype=stored, device=like.device), like.dtype)


def shape_after(
    network: nn.Module, input_shape: Sequence[int], option: str = "backbone", input_dtype: str = ""
) -> tuple[int, ...]:
    """The shape of a network's output for one input, found by running a copy on zeros.

    Args:
        network: Network from `(M, *input_shape)` to `(M, ...)`.
        input_shape: Shape of one input.
        option: Name of the option that holds the network, for error messages.
        input_dtype: Dtype of the stored inputs, such as "uint8"; "" for numbers.

    Raises:
        UserError: The network does not accept such inputs.
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
        kind = "" if zeros.is_floating_point() else f" of {input_dtype} ids"
        if len(shape) == IMAGE_DIMS and not kind:
            kind = " (channels first)"
        fix = _fix(network, shape, zeros.is_floating_point())
        raise UserError(f"{option}: {name} does not take inputs of shape {shape}{kind}: {reason}; {fix}") from error
    if not isinstance(output, Tensor):
        raise UserError(f"{option}: {name} returns a {type(output).__name__}; a tensor (M, F) of features is needed")
    return tuple(output.shape[1:])


def _fix(network: nn.Module, shape: tuple[int, ...], real: bool) -> str:
    """Advice for a network that does not take inputs of a shape, by the kind of data."""
    if not real:
        return "let it begin with torch.nn.Embedding, or let the source give float32 inputs if they are not ids"
    if isinstance(network, MLP):  # flattens its inputs
        return f"set its in_features to {math.prod(shape)}"
    if len(shape) == IMAGE_DIMS and shape[0] > shape[2] in (1, 3):
        return "the channels of the data seem to come last: let the source give them first, as x.permute(2, 0, 1) does"
    if len(shape) == IMAGE_DIMS:
        return f"its in_channels must be {shape[0]}, and the data's image size must fit the backbone"
    if len(shape) == 1:
        return f"set its in_features to {shape[0]}, or choose a network of vectors, such as lightning_meta.nn.MLP"
    return "set its sizes to fit the data"


def output_size(network: nn.Module, input_shape: Sequence[int], input_dtype: str = "") -> int:
    """The number of features F of a network, found by running a copy on zeros.

    Args:
        network: Network from `(M, *input_shape)` to `(M, F)`.
        input_shape: Shape of one input.
        input_dtype: Dtype of the stored inputs, such as "uint8"; "" for numbers.

    Raises:
        UserError: The network does not accept such inputs, or its output is not `(M, F)`.
    """
    features = shape_after(network, input_shape, input_dtype=input_dtype)
    if len(features) != 1 or not features[0]:
        fix = "flatten or average its last map" if len(input_shape) == IMAGE_DIMS else "flatten its output"
        raise UserError(
            f"backbone: {type(network).__name__} turns inputs of shape {tuple(input_shape)} into {features}; "
            f"a backbone must return one vector of features per input: {fix}"
        )
    return features[0]


def images_at_once(device: torch.device) -> int:
    """The batch size for images without gradients.

    On a CPU, activations of large batches do not fit the cache: EfficientNet-Lite0 takes three times as long for 40
    images in one batch as in batches of 8.
    """
    return 8 if device.type == "cpu" else 64
