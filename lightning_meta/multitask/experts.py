"""Experts: networks of one architecture whose features a gate mixes."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.nn.categories import OneHot
from lightning_meta.nn.features import are_ids
from lightning_meta.nn.fresh import fresh
from lightning_meta.nn.heads import seeded


def check_gated(method: str, input_shape: Sequence[int], input_dtype: str) -> None:
    """Refuse inputs for which a linear gate makes no sense.

    Args:
        method: Name of the method, for messages.
        input_shape: The shape of one input.
        input_dtype: The dtype of the stored inputs, such as "uint8"; "" for numbers.

    Raises:
        UserError: The inputs are ids.
    """
    if are_ids(input_shape, input_dtype):
        raise UserError(
            f"tasks: {method} gates by the inputs, and these are {input_dtype} ids, which have no order; give each "
            "task a stem with an embedding, or use MultiHead"
        )


def expert_like(network: nn.Module, seed: int, same_start: bool) -> nn.Module:
    """Make another expert.

    Args:
        network: The first expert.
        seed: Seed of its initial weights.
        same_start: Whether to copy the weights of the first expert; otherwise only those of published and frozen parts.
    """
    if same_start:
        return copy.deepcopy(network)
    expert = fresh(network, seed)
    for part, new_part in zip(network.modules(), expert.modules(), strict=True):
        parameters = dict(part.named_parameters(recurse=False))
        frozen: dict[str, Tensor] = {name: p for name, p in parameters.items() if not p.requires_grad}
        if frozen and len(frozen) == len(parameters):
            frozen |= dict(part.named_buffers(recurse=False))
        with torch.no_grad():
            for name, values in frozen.items():  # new ones would never be trained
                getattr(new_part, name).copy_(values)
    return expert


def new_gate(width: int, experts: int, seed: int, columns: Sequence[int] = ()) -> nn.Module:
    """A gate with weights W `(experts, width)` of $\\mathrm{softmax}(W x)$, drawn from the seed.

    Args:
        width: Number of inputs, flattened.
        experts: Number of experts.
        seed: Seed of the weights.
        columns: Number of codes of each input, 0 for a number; the gate takes codes as one-hot.
    """
    with seeded(seed):
        if not any(columns):
            return nn.Linear(width, experts, bias=False)
        one_hot = OneHot(columns)
        return nn.Sequential(one_hot, nn.Linear(one_hot.out_features, experts, bias=False))


def mixed(gate: nn.Module, x: Tensor, features: Tensor) -> Tensor:
    """The features of E experts, `(M, E, ...)`, averaged by a gate on inputs `(M, ...)`: `(M, ...)`."""
    return torch.einsum("me,me...->m...", gate(x.flatten(1)).softmax(-1), features)
