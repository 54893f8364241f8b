"""Apply new options of an optimiser and its schedule in a resumed run, in place of those of the checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau


def take_new_options(
    checkpoint: dict[str, Any], optimizers: Sequence[Optimizer], schedules: Sequence[LRSchedulerConfig]
) -> None:
    """Replace the options of optimisers and schedules in a checkpoint, before it is restored.

    A new schedule is stepped as often as the stored one was, so the run continues with the rate that a run with the new
    options would have at this step. The state of each parameter, such as momentum, is kept.

    Args:
        checkpoint: The checkpoint; changed in place.
        optimizers: New optimisers of the module, whose state has not been restored.
        schedules: Their schedules, in order.
    """
    stored = checkpoint.get("lr_schedulers") or []
    watched = any(isinstance(schedule.scheduler, ReduceLROnPlateau) for schedule in schedules)
    states = []
    for number, schedule in enumerate(schedules):
        before = stored[number] if number < len(stored) else {}
        if isinstance(schedule.scheduler, ReduceLROnPlateau):
            states.append(before)
            continue
        by_interval = checkpoint["global_step"] if schedule.interval == "step" else checkpoint["epoch"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects the optimiser's step before the schedule's
            for _ in range(before.get("last_epoch", by_interval // schedule.frequency)):
                schedule.scheduler.step()
        states.append(schedule.scheduler.state_dict())
    checkpoint["lr_schedulers"] = states
    kept = {"params", "lr"} if watched else {"params"}
    for optimizer, state in zip(optimizers, checkpoint["optimizer_states"], strict=True):
        for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
            saved.update({name: value for name, value in group.items() if name not in kept})
