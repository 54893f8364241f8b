"""A warning that bfloat16, which is chosen for speed, costs time on this processor."""

from __future__ import annotations

import logging
import platform

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_meta.run.naming import Naming, as_argument

_log = logging.getLogger(__name__)


class PrecisionNote(Callback):
    """Warns, when training begins, if bfloat16 is slower than float32 on this CPU.

    Processors of the x86 family without AVX-512 have no instructions for it. A step of ProtoNet on Omniglot takes 8
    times as long there as in float32.

    Args:
        say: Formats the name of an argument in the warning.
    """

    def __init__(self, say: Naming = as_argument) -> None:
        self.say = say

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn once, after all checks of the input."""
        on_cpu = trainer.strategy.root_device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
        if not on_cpu or not str(trainer.precision).startswith("bf16") or not trainer.is_global_zero:
            return
        if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
            _log.warning(
                "%s: this CPU has no instructions for bfloat16, so a step can take several times as long as in 32-true",
                self.say("trainer.precision", trainer.precision),
            )
