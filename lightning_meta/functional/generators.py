"""The global random generators: their states, and contexts that restore them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def generator_states(device: torch.device) -> list[Tensor]:
    """The states of the generators of the CPU and of the device.

    Args:
        device: Device of a network; its random layers may also draw on the CPU.

    Returns:
        One state, or two if the device has its own generator.
    """
    with plain_tensors():
        states = [torch.get_rng_state()]
        if _on_accelerator(device):
            states.append(torch.get_device_module(device).get_rng_state(*_which(device)))
    return states


def set_generator_states(device: torch.device, states: list[Tensor]) -> None:
    """Set the generators to states returned by `generator_states`."""
    with plain_tensors():
        torch.set_rng_state(states[0])
        if _on_accelerator(device):
            torch.get_device_module(device).set_rng_state(states[1], *_which(device))


def cpu_states() -> tuple[Any, Any, Tensor]:
    """The states of the generators of Python, NumPy and torch's CPU."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  # Lightning seeds it


def set_cpu_states(states: tuple[Any, Any, Tensor]) -> None:
    """Set the generators to states returned by `cpu_states`."""
    of_python, of_numpy, of_torch = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)  # noqa: NPY002
    torch.set_rng_state(of_torch)


def just_seeded() -> bool:
    """Whether torch's CPU generator is as `lightning.seed_everything` set it, and nothing has been drawn since."""
    seed = os.environ.get("PL_GLOBAL_SEED", "")
    if not seed.isdecimal():  # `seed_everything` sets whole numbers from 0
        return False
    return torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(int(seed)).get_state())


@contextmanager
def seeded_generators(device: torch.device, seed: int) -> Iterator[None]:
    """A context in which the generators of torch, Python and NumPy start from a seed; it restores their states.

    Args:
        device: Device whose generator is seeded along with those of the CPU.
        seed: Seed, from 0 to 2^32 - 1.
    """
    devices = [torch.device("cpu"), *([device] if _on_accelerator(device) else [])]
    start = [torch.Generator(own).manual_seed(seed).get_state() for own in devices]
    others = random.getstate(), np.random.get_state()  # noqa: NPY002  # it is the user's code that draws
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        with generators_restored(device, start):
            yield
    finally:
        random.setstate(others[0])
        np.random.set_state(others[1])  # noqa: NPY002


def same_states(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether nothing was drawn between two calls of `generator_states`."""
    with plain_tensors():
        return all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(some, others, strict=True))  # on the CPU


@contextmanager
def generators_restored(device: torch.device, start: list[Tensor] | None = None) -> Iterator[None]:
    """A context that restores the generators.

    Args:
        device: Device whose generator is restored along with that of the CPU.
        start: Initial states within the context; by default the current ones.
    """
    before = generator_states(device)
    if start is not None:
        set_generator_states(device, start)
    try:
        yield
    finally:
        set_generator_states(device, before)


def _on_accelerator(device: torch.device) -> bool:
    return device.type in ("cuda", "xpu", "mps") and torch.get_device_module(device).is_available()  # else it is fake


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one, and its functions take no argument


@contextmanager
def plain_tensors() -> Iterator[None]:
    """A context without `vmap`, other transforms of `torch.func` and dispatch modes, as for states of generators."""
    with torch._C._DisableFuncTorch(), torch._C._DisableTorchDispatch():
        yield
