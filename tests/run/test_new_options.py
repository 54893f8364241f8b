"""New options of an optimiser and its schedule hold in a resumed run as in one that always had them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedules

from lightning_meta.run.record import take_new_options

Schedule = Callable[[Optimizer], Any]

SCHEDULES: dict[str, tuple[Schedule, Schedule]] = {
    "a later step": (partial(schedules.StepLR, step_size=3), partial(schedules.StepLR, step_size=5)),
    "a longer cosine": (
        partial(schedules.CosineAnnealingLR, T_max=9),
        partial(schedules.CosineAnnealingLR, T_max=20, eta_min=0.01),
    ),
    "another peak": (
        partial(schedules.OneCycleLR, max_lr=0.1, total_steps=20),
        partial(schedules.OneCycleLR, max_lr=0.4, total_steps=20),
    ),
    "another class": (partial(schedules.StepLR, step_size=3), partial(schedules.ExponentialLR, gamma=0.9)),
    "a function": (
        lambda o: schedules.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: schedules.LambdaLR(o, lambda step: 1 / (1 + 2 * step)),
    ),
    "one after the other": (
        partial(schedules.StepLR, step_size=3),
        lambda o: schedules.SequentialLR(
            o, [schedules.ConstantLR(o, 0.5, 4), schedules.ExponentialLR(o, 0.9)], milestones=[4]
        ),
    ),
}


def trained(make: Schedule, lr: float, steps: int, module: nn.Module) -> tuple[Optimizer, Any]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr)
    schedule = make(optimizer)
    for _ in range(steps):
        module(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step()
    return optimizer, schedule


@pytest.mark.parametrize("case", SCHEDULES)
def test_the_rate_follows_the_new_schedule(case: str) -> None:
    before, after = SCHEDULES[case]
    module = nn.Linear(2, 1)
    old, stored = trained(before, 0.1, 6, module)
    expected, ahead = trained(after, 0.02, 6, copy.deepcopy(module))
    checkpoint: dict[str, Any] = {
        "global_step": 6,
        "epoch": 1,
        "optimizer_states": [copy.deepcopy(old.state_dict())],
        "lr_schedulers": [copy.deepcopy(stored.state_dict())],
    }
    new, schedule = trained(after, 0.02, 0, module)
    take_new_options(checkpoint, [new], [LRSchedulerConfig(schedule, interval="step")])
    new.load_state_dict(checkpoint["optimizer_states"][0])
    schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    assert torch.equal(new.state[module.weight]["exp_avg"], old.state[module.weight]["exp_avg"])
    for _ in range(3):
        assert new.param_groups[0]["lr"] == pytest.approx(expected.param_groups[0]["lr"], rel=1e-9)
        for pair in ((new, schedule), (expected, ahead)):
            pair[0].step()
            pair[1].step()
