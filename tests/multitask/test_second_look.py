"""Weightings that look at a batch again after the step: what they see, and that training does not notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_meta.batches import TaskBatch
from lightning_meta.multitask import MultiHead
from lightning_meta.weightings import FAMO, Equal
from tests.multitask.toys import data, train


class Looks(Equal):
    looks_again = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def observe_step(self, losses: Tensor, present: Tensor) -> None:
        self.seen.append((losses, present))


class After(Callback):
    """The losses of each batch that ended a step, with the weights after it."""

    def __init__(self) -> None:
        self.steps = 0
        self.losses: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: TaskBatch, *args: Any) -> None:
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            with torch.no_grad():
                self.losses.append({name: float(loss) for name, loss in pl_module.task_losses(batch).items()})


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3))


def test_training_goes_as_if_nobody_had_looked() -> None:
    options: dict[str, Any] = {"trainer": {"accumulate_grad_batches": 2}}
    modules = [
        train(MultiHead, data(tasks_per_batch=2), steps=9, backbone=network(), weighting=weighting, **options)
        for weighting in (Looks(), Equal())
    ]
    states = [module.state_dict() for module in modules]
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


@pytest.mark.parametrize("accumulated", [1, 2])
def test_it_sees_the_losses_of_the_last_batch_after_the_step(accumulated: int) -> None:
    weighting, after = Looks(), After()
    options: dict[str, Any] = {"accumulate_grad_batches": accumulated, "callbacks": [after], "limit_val_batches": 0}
    module = train(MultiHead, data(tasks_per_batch=2), steps=6, trainer=options, weighting=weighting)
    assert len(weighting.seen) == len(after.losses) == 6
    for (losses, present), expected in zip(weighting.seen, after.losses, strict=True):
        assert [name for name, here in zip(module.names, present.tolist(), strict=True) if here] == [
            name for name in module.names if name in expected
        ]
        for name, loss in zip(module.names, losses.tolist(), strict=True):
            assert loss == pytest.approx(expected.get(name, 0.0), abs=1e-12)


def test_famo_keeps_the_weight_of_an_absent_task() -> None:
    weighting = FAMO(0.1)
    weighting.configure(dict.fromkeys("abc"))  # type: ignore[arg-type]
    here = torch.tensor([True, True, False])
    weighting(torch.tensor([1.0, 1.0, 0.0], requires_grad=True), here)
    weighting.observe_step(torch.tensor([0.1, 0.9, 0.0]), here)
    assert weighting.logits[0] < 0 < weighting.logits[1]
    assert weighting.logits[2] == 0
    weights = weighting.weigh(torch.tensor([1.0, 1.0, 0.0]), here)
    assert weights[2] == 0
    assert weights.sum().item() == pytest.approx(2)
