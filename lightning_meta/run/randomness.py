"""The state of every random number generator, as plain data."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed


def random_state() -> list[dict[str, Any]]:
    """The state of the generators of every rank, each as from `own_random_state`."""
    state = own_random_state()
    if not _distributed():
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states


def restore_random_state(states: list[dict[str, Any]]) -> None:
    """Restore the generators of this rank; does nothing if the number of ranks has changed."""
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _distributed() else (0, 1)
    # With another number of ranks, there is no rank whose stream could be continued.
    if len(states) == world:
        restore_own_random_state(states[rank])


def own_random_state() -> dict[str, Any]:
    """The state of this process's generators (Python, NumPy, torch, its accelerators), as plain data."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, list(map(int, keys)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_own_random_state(state: dict[str, Any]) -> None:
    """Restore the generators of this process."""
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
