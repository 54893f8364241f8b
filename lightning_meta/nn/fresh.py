"""A network of the same architecture that starts from other values."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from lightning_meta.configuration import build, class_paths, describe
from lightning_meta.nn.heads import seeded
from lightning_meta.nn.normalization import per_task


def fresh(network: nn.Module, seed: int) -> nn.Module:
    """Make a network anew.

    Args:
        network: What it shall be like. Where it is known how it and its parts were made, that is done again, batch
            normalisation by `per_task`; else it is copied, and every layer that has `reset_parameters` is reset.
        seed: Decides the values.
    """
    spec = describe(network)
    with seeded(seed):
        if _complete(spec):
            made: nn.Module = per_task(build(spec, allow=[*class_paths(spec), type(network)]))
        else:
            made = copy.deepcopy(network)
            for layer in made.modules():
                if callable(reset := getattr(layer, "reset_parameters", None)):
                    reset()
    for like, new in zip(network.parameters(), made.parameters(), strict=True):
        new.requires_grad_(like.requires_grad)
    for part, new_part in zip(network.modules(), made.modules(), strict=True):
        new_part.training = part.training  # a layer that the user holds in evaluation mode
    parameter = next(network.parameters(), None)
    return made if parameter is None else made.to(parameter)


def _complete(spec: Any) -> bool:
    """Whether a description leaves no object out."""
    if isinstance(spec, dict):
        return "instance" not in spec and all(map(_complete, spec.values()))
    return not isinstance(spec, list) or all(map(_complete, spec))
