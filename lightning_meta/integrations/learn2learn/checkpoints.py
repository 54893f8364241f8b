"""learn2learn's MAML checkpoints as models of this package."""

from __future__ import annotations

import pickle
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.meta import MAML

_NAMES = {"running_mean": "mean", "running_var": "var"}


def convert_maml(path: str | PathLike[str], module: MAML) -> MAML:
    """Fill a MAML with what `torch.save(learn2learn.algorithms.MAML(model).state_dict(), path)` wrote.

    Both networks list their layers in the same order, backbone before head; weights are matched by it, and every
    shape must agree.

    Args:
        path: The file, of tensors only.
        module: A MAML with the same architecture that knows its episodes, for example
            `MAML(backbone, episodes=EpisodeSpec("classification", (1, 28, 28), 5))`. It is filled in place.

    Returns:
        The module.

    Raises:
        UserError: The file holds something else, or the first tensor that does not fit.
    """
    theirs = list(_tensors(path).items())
    ours = list(module.network.state_dict(keep_vars=True).items())
    ours = [(name, tensor) for i, (name, tensor) in enumerate(ours) if all(tensor is not t for _, t in ours[:i])]
    if len(theirs) != len(ours):
        raise UserError(f"{path}: it holds {len(theirs)} weights, the module has {len(ours)}: other architectures")
    for (source, given), (target, own) in zip(theirs, ours, strict=True):
        last = _NAMES.get(source.rpartition(".")[2], source.rpartition(".")[2])
        if given.shape != own.shape or last != target.rpartition(".")[2]:
            raise UserError(
                f"{path}: {source} {tuple(given.shape)} does not fit {target} {tuple(own.shape)} in the module"
            )
    with torch.no_grad():
        for (_, given), (_, own) in zip(theirs, ours, strict=True):
            own.copy_(given)
    return module


def _tensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Each weight once, without the counters of batch normalisation."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} holds more than tensors, or is damaged; save the state_dict alone") from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{path} is no state_dict: save learn2learn's MAML(...).state_dict()")
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, int]] = set()
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        if place not in seen and not name.endswith("num_batches_tracked"):
            seen.add(place)
            found[name] = tensor
    return found
