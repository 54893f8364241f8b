"""Networks of the same architecture with other initial weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import nn

from lightning_meta.building import build, rebuilding
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.import_paths import import_object
from lightning_meta.nn.frozen import FeatureExtractor
from lightning_meta.nn.heads import seeded
from lightning_meta.nn.normalization import per_task
from lightning_meta.specifications import class_paths, marked


def fresh(network: nn.Module, seed: int) -> nn.Module:
    """Make a network of the same architecture with new initial weights.

    If the constructor arguments of the network and its parts are known, it is built again (batch normalisation by
    `per_task`); otherwise it is copied, and every layer with `reset_parameters` is reset. Published and frozen parts
    keep their weights.

    Args:
        network: The network to imitate.
        seed: Seed of the initial weights.
    """
    spec = describe(network)
    with seeded(seed):
        if _complete(spec):
            with rebuilding():  # published weights are copied below
                made: nn.Module = per_task(build(spec, allow=[type(network), *class_paths(spec), *_parts(spec)]))
        else:
            made = copy.deepcopy(network)
            for layer in made.modules():
                if callable(reset := getattr(layer, "reset_parameters", None)):
                    reset()
    for like, new in zip(network.parameters(), made.parameters(), strict=True):
        new.requires_grad_(like.requires_grad)
    if (parameter := next(network.parameters(), None)) is not None:
        made.to(parameter)
    for part, new_part in zip(network.modules(), made.modules(), strict=True):
        if isinstance(part, FeatureExtractor) and not part.drawn:
            new_part.load_state_dict(part.state_dict())
        new_part.training = part.training  # the user may keep layers in evaluation mode
    return made


def _parts(spec: Any) -> Iterator[Any]:
    """The classes and functions that a description names."""
    for path in class_paths(spec):
        with suppress(UserError):  # a class defined within a function
            yield import_object(path)


def _complete(spec: Any) -> bool:
    """Whether a description contains all objects."""
    if isinstance(spec, dict):
        return not marked(spec, "instance") and all(map(_complete, spec.values()))
    return not isinstance(spec, list) or all(map(_complete, spec))
