"""Devices of torch by name."""

from __future__ import annotations

import torch

from lightning_meta.errors import UserError, meant

NAMES = ("auto", "cpu", "cuda", "gpu", "mps")


def find_device(device: str | int | torch.device, option: str = "device") -> torch.device:
    """Return a device of this machine.

    Args:
        device: A device of torch, such as "cpu" or "cuda:1"; or "gpu", which is CUDA or MPS; or "auto", which is a GPU
            if there is one and the CPU otherwise.
        option: Name of the argument or option, for the message.

    Raises:
        UserError: No device has this name, or this machine does not have it.
    """
    if device in ("auto", "gpu"):
        gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
        if gpu is None and device == "gpu":
            raise UserError(f"{option}: torch finds no GPU here; give cpu")
        return torch.device(gpu or "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        names = ", ".join(NAMES)
        raise UserError(
            f"{option}: {device!r} is not a device of this machine; expected one of {names}, or a device of torch such "
            f"as cuda:1{meant(device, NAMES)}"
        ) from error
    try:
        if torch.empty(0, device=found).is_meta:
            raise RuntimeError("its tensors have no values")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).splitlines()[0].partition(". ")[0]
        raise UserError(f"{option}: {str(device)!r} is not a device of this machine ({said}); give cpu") from error
    return found
