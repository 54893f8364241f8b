"""Options of the Trainer that Lightning would refuse late, in other words or by a traceback."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry, CUDAAccelerator, MPSAccelerator

from lightning_meta.errors import UserError


def check_trainer(options: dict[str, Any]) -> None:
    """Refuse what this machine does not have, and numbers that mean nothing.

    Args:
        options: Arguments of `lightning.pytorch.Trainer`, as configured.

    Raises:
        UserError: The option, and what to give instead.
    """
    name = options.get("accelerator", "auto")
    if isinstance(name, str) and name != "auto":
        names = sorted({"auto", "gpu", *AcceleratorRegistry.available_accelerators()})
        if name not in names:
            raise UserError(f"--trainer.accelerator: expected {' or '.join(names)}, got {name}")
        kinds = [CUDAAccelerator, MPSAccelerator] if name == "gpu" else [AcceleratorRegistry[name]["accelerator"]]
        if not any(kind.is_available() for kind in kinds):
            shown = name.upper() if name in ("gpu", "tpu") else name
            raise UserError(
                f"--trainer.accelerator: torch finds no {shown} here; leave it out to use what this machine has"
            )
    if options.get("devices") in (0, "0"):
        raise UserError("--trainer.devices: 0 leaves nothing to train on; leave it out, or give 1 or more")
    every = options.get("accumulate_grad_batches", 1)
    if isinstance(every, int) and every < 1:
        raise UserError(f"--trainer.accumulate_grad_batches: at least 1 is needed, got {every}")
