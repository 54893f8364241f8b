"""A backbone's own learning rate."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.tuner.tuning import Tuner
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

import lightning_meta as lm
from lightning_meta.backbone_rate import scale_rates
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP, Frozen
from lightning_meta.resuming import check_groups
from lightning_meta.run import read_checkpoint
from lightning_meta.testing import toys
from lightning_meta.weightings import Uncertainty
from tests.multitask.toys import Toys

OF_RUNS: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
SGD = partial(torch.optim.SGD, lr=0.5)


def baseline(factor: float = 0.1, **options: Any) -> lm.Baseline:
    return lm.Baseline(MLP(256, (8,)), head_steps=2, backbone_lr_factor=factor, **{"optimizer": SGD, **options})


def stored_rates(run: lm.Run) -> list[float]:
    assert run.directory is not None
    (state,) = read_checkpoint(run.directory / "checkpoints" / "last.ckpt")["optimizer_states"]
    return [group["lr"] for group in state["param_groups"]]


def test_one_step_moves_the_backbone_by_the_factor_and_all_else_by_the_rate(tmp_path: Path) -> None:
    moved = {}
    for factor in (1.0, 0.1):
        torch.manual_seed(0)
        module = baseline(factor)
        before = {name: p.detach().clone() for name, p in module.backbone.named_parameters()}
        lm.fit(module, toys.pictures(), runs=tmp_path, seed=0, max_steps=1, **OF_RUNS)
        moved[factor] = {name: p.detach() - before[name] for name, p in module.backbone.named_parameters()}
    for name, step in moved[1.0].items():
        torch.testing.assert_close(moved[0.1][name], 0.1 * step, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "schedule", [partial(StepLR, step_size=1, gamma=0.5), partial(CosineAnnealingLR, T_max=10)], ids=["steps", "cosine"]
)
def test_a_schedule_keeps_the_proportion(schedule: Any, tmp_path: Path) -> None:
    run = lm.fit(baseline(lr_scheduler=schedule), toys.pictures(), runs=tmp_path, seed=0, max_steps=3, **OF_RUNS)
    other, backbone = stored_rates(run)
    assert other < 0.5
    assert backbone == pytest.approx(0.1 * other)


@pytest.mark.slow
def test_a_resumed_run_keeps_it(tmp_path: Path) -> None:
    schedule = partial(StepLR, step_size=1, gamma=0.5)
    runs = []
    for name, steps in (("whole", [4]), ("parts", [2, 4])):
        for number, most in enumerate(steps):
            torch.manual_seed(0)
            start: dict[str, Any] = {"seed": 0} if number == 0 else {"resume": tmp_path / name / "0"}
            module = baseline(lr_scheduler=schedule)
            run = lm.fit(module, toys.pictures(), name=name, runs=tmp_path, max_steps=most, **start, **OF_RUNS)
        runs.append(run)
    assert stored_rates(runs[0]) == stored_rates(runs[1])


def one_cycle(optimizer: torch.optim.Optimizer) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=0.1, total_steps=10)


def in_sequence(optimizer: torch.optim.Optimizer) -> SequentialLR:
    return SequentialLR(optimizer, [ConstantLR(optimizer), one_cycle(optimizer)], milestones=[2])


SETTING: dict[str, list[Any]] = {
    "OneCycleLR": [
        one_cycle,
        in_sequence,
        lambda optimizer: ChainedScheduler([ConstantLR(optimizer), in_sequence(optimizer)], optimizer),
    ],
    "CyclicLR": [lambda optimizer: CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=False)],
    "SWALR": [partial(SWALR, swa_lr=0.1)],
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own, of SequentialLR
@pytest.mark.parametrize(("name", "schedule"), [(name, made) for name, all_of in SETTING.items() for made in all_of])
def test_a_schedule_that_would_lose_it_is_refused(name: str, schedule: Any) -> None:
    sgd = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    module = lm.Baseline(MLP(256, (8,)), optimizer=sgd, lr_scheduler=schedule, backbone_lr_factor=0.1)
    with pytest.raises(UserError, match=rf"^backbone_lr_factor: {name} sets the rates of all parameters by itself"):
        module.configure_optimizers()
    module.backbone_lr_factor = 1.0
    module.configure_optimizers()


def test_a_rate_that_is_a_tensor_is_multiplied_for_the_backbone_alone() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr_factor": factor} for factor in (0.1, 0.5, 1.0)]
    optimizer = torch.optim.Adam(groups, lr=torch.tensor(0.01))
    scale_rates(optimizer)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.001, 0.005, 0.01])


def test_without_a_factor_the_optimizer_gets_the_parameters_themselves() -> None:
    """A factory that inspects or names the parameters works as with any other module."""
    given: list[Any] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        given.extend(parameters)
        return torch.optim.SGD(given, lr=0.1)

    module = baseline(1.0, optimizer=optimizer)
    module.configure_optimizers()
    assert all(isinstance(parameter, nn.Parameter) for parameter in given)
    assert len(given) == len(list(module.parameters()))


def test_a_frozen_backbone_has_none(tmp_path: Path) -> None:
    module = lm.Baseline(Frozen(MLP(256, (8,))), head_steps=2, backbone_lr_factor=0.1)
    with pytest.raises(UserError, match=r"^backbone_lr_factor: 0.1 was given, but all weights of the backbone are"):
        lm.fit(module, toys.pictures(), runs=tmp_path, seed=0, max_steps=1, **OF_RUNS)


def test_several_tasks_have_three_rates(tmp_path: Path) -> None:
    module = lm.MultiHead(MLP(4, (8,)), weighting=Uncertainty(), backbone_lr_factor=0.1, optimizer=SGD)
    run = lm.fit(module, toys.sums(), runs=tmp_path, seed=0, max_steps=1, **OF_RUNS)
    assert stored_rates(run) == pytest.approx([0.5, 0.05, 0.5])


class Noting(torch.optim.SGD):
    """Notes the rates of each step."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        RATES.append([group["lr"] for group in self.param_groups])
        return result


RATES: list[list[float]] = []


def test_the_search_for_a_rate_keeps_the_proportion() -> None:
    RATES.clear()
    trainer = lightning.Trainer(max_epochs=-1, accelerator="cpu", enable_progress_bar=False, logger=False)
    module = baseline(optimizer=partial(Noting, lr=0.5))
    Tuner(trainer).lr_find(module, toys.pictures(), num_training=15, early_stop_threshold=None)
    assert len({other for other, _ in RATES}) >= 14
    for other, backbone in RATES:
        assert backbone == pytest.approx(0.1 * other)
    assert module.lr != 0.5


@pytest.mark.parametrize("shared_depth", [None, 0, 1])
def test_stages_that_tasks_do_not_share_have_the_rate_of_the_backbone(shared_depth: int | None) -> None:
    module = lm.MultiHead(MLP(4, (8, 8)), shared_depth, optimizer=SGD, backbone_lr_factor=0.1)
    data = lm.MultiTaskDataModule(Toys(), batch_size=8)
    lightning.Trainer(max_steps=1, logger=False, enable_checkpointing=False, **OF_RUNS).fit(module, datamodule=data)
    (optimizer,) = module.trainer.optimizers
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in module.named_parameters():
        assert rates[id(p)] == pytest.approx(0.05 if name.startswith(("backbone.", "branches.")) else 0.5), name


def test_a_checkpoint_with_other_groups_is_refused() -> None:
    layers = nn.Linear(2, 2), nn.Linear(2, 2)

    def optimizer(first: int) -> torch.optim.Optimizer:
        parameters = [p for layer in layers for p in layer.parameters()]
        return torch.optim.SGD([{"params": parameters[:first]}, {"params": parameters[first:]}], lr=0.1)

    check_groups([optimizer(2)], [optimizer(2).state_dict()])
    with pytest.raises(UserError, match=r"groups of the checkpoint have \[1, 3\] parameters, .* \[2, 2\]"):
        check_groups([optimizer(2)], [optimizer(1).state_dict()])
