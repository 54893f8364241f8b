"""Gradients of tasks, and aggregators in training: what the optimiser is given, and when."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor, nn

from lightning_meta.batches import TaskBatch
from lightning_meta.errors import NonFiniteLossError, UserError
from lightning_meta.multitask import Conditioned, CrossStitch, Independent, MixtureOfExperts, MultiHead, MultiTaskModule
from lightning_meta.multitask.step_gradients import StepGradients
from lightning_meta.nn import MLP
from lightning_meta.run import RunLogger
from lightning_meta.tasks import Task
from lightning_meta.weightings import FAMO, Aggregator, GradientWeighting, PCGrad
from tests.multitask.toys import backbone, data, train, trainer

NAMES = ["sum", "largest", "sign"]
DECAYS = partial(torch.optim.AdamW, lr=0.01, weight_decay=1.0)


class Sum(Aggregator):
    """An aggregator with the direction of `Equal`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def direction(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        self.seen.append((gradients.clone(), losses, present))
        return gradients.sum(0)


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


# The gradients


def ready(**options: Any) -> tuple[MultiHead, TaskBatch]:
    module, given = train(MultiHead, data(), steps=1), data(**options)
    module.zero_grad()
    given.setup("fit")
    return module, next(iter(given.train_dataloader()))


def test_task_gradients_are_those_of_backward() -> None:
    module, batch = ready(tasks_per_batch=2)
    rows = module.task_gradients(batch)
    assert all(p.grad is None for p in module.parameters())
    assert not rows.requires_grad
    assert len(batch.rows) == 2
    for row, name in zip(rows, NAMES, strict=True):
        if name not in batch.rows:
            assert not row.any()
            continue
        module.zero_grad()
        module.task_losses(batch)[name].backward()
        expected = torch.cat([p.grad.flatten() for p in module.shared_parameters() if p.grad is not None])
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-14)


def test_without_shared_parameters_there_are_no_columns() -> None:
    module = train(Independent, data(), steps=1)
    given = data()
    given.setup("fit")
    assert module.task_gradients(next(iter(given.train_dataloader()))).shape == (3, 0)


def test_task_gradients_are_the_same_where_gradients_are_switched_off() -> None:
    module, batch = ready()
    expected = module.task_gradients(batch)
    with torch.no_grad():
        assert torch.equal(module.task_gradients(batch), expected)
    with torch.inference_mode(), pytest.raises(UserError, match="takes no gradients in inference mode"):
        module.task_gradients(batch)


# The step


class Freeze(BaseFinetuning):
    """The backbone is frozen for the first two of three epochs."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=0.01)


METHODS: dict[str, Callable[..., MultiTaskModule]] = {
    "multi_head": MultiHead,
    "branches": lambda backbone, **options: MultiHead(backbone, 1, **options),
    "stems": lambda backbone, **options: MultiHead(
        MLP(6, (12,)), stems={n: MLP(4, (6,)) for n in NAMES}, head_hidden=(5,), **options
    ),
    "conditioned": lambda backbone, **options: Conditioned(backbone, "embedding", **options),
    "cross_stitch": CrossStitch,
    "mixture_of_experts": MixtureOfExperts,
}
SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "accumulated": lambda: {"accumulate_grad_batches": 2},  # the epoch of five batches ends in a step of one
    "clipped by norm": lambda: {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1},
    "clipped by value": lambda: {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "frozen": lambda: {"callbacks": [Freeze()]},
}


@pytest.mark.parametrize(
    ("method", "setting"),
    [*((method, "accumulated") for method in METHODS), *(("multi_head", setting) for setting in SETTINGS)],
)
def test_the_sum_of_the_gradients_trains_as_equal_does(method: str, setting: str) -> None:
    one = train(METHODS[method], data(tasks_per_batch=2), trainer=SETTINGS[setting](), weighting=Sum())
    other = train(METHODS[method], data(tasks_per_batch=2), trainer=SETTINGS[setting]())
    assert distance(one, other) < 1e-12


class Partly(MLP):
    """A network with a part that no task uses, and one that the first batches of training use."""

    def __init__(self) -> None:
        super().__init__(4, (12, 12))
        self.idle, self.early, self.runs = nn.Linear(4, 4), nn.Linear(12, 12), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += self.training
        features = super().forward(x)
        return self.early(features) if self.training and self.runs <= 3 else features


@pytest.mark.parametrize("weighting", [Sum, PCGrad])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_shared_parameters_that_no_loss_of_the_step_uses_stay_where_they_are(
    weighting: Callable[[], Aggregator], accumulated: int
) -> None:
    states: list[dict[str, Tensor]] = []

    class States(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            states.append({name: p.detach().clone() for name, p in pl_module.backbone.named_parameters()})

    options: dict[str, Any] = {"accumulate_grad_batches": accumulated, "limit_val_batches": 0, "callbacks": [States()]}

    def trained(**given: Any) -> MultiHead:
        torch.manual_seed(7)
        return train(MultiHead, data(), 4, trainer=options, backbone=Partly(), optimizer=DECAYS, **given)

    module = trained(weighting=weighting())
    moved = [not torch.equal(a["early.weight"], b["early.weight"]) for a, b in pairwise(states)]
    assert all(torch.equal(states[0]["idle.weight"], state["idle.weight"]) for state in states)
    used = [True] * (3 if accumulated == 1 else 2)
    assert moved[: len(used)] == used
    assert not any(moved[len(used) :])
    if weighting is Sum:
        assert distance(module, trained()) < 1e-12


class Watch(Callback):
    """Weights before each batch, and gradients as the optimiser gets them."""

    def __init__(self) -> None:
        self.batches: list[TaskBatch] = []
        self.states: list[dict[str, Tensor]] = []
        self.gradients: list[Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: TaskBatch, batch_idx: int) -> None:
        self.batches.append(batch)
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in pl_module.shared_parameters()]))


class Weighs(GradientWeighting):
    """Weights that depend on all that it is told."""

    def weigh(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        return (gradients.norm(dim=1) + losses) * present


def test_a_step_is_the_direction_of_all_its_batches_before_it_is_clipped() -> None:
    watch = Watch()
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 1e-3, "callbacks": [watch]}
    module = train(MultiHead, data(tasks_per_batch=1), steps=4, trainer=options, weighting=Weighs())
    starts = [0, 2, 4, 5]
    assert len(watch.gradients) == 4
    for start, end, found in zip(starts, [*starts[1:], 7], watch.gradients, strict=True):
        module.load_state_dict(watch.states[start])
        batches = watch.batches[start:end]
        rows = torch.stack([module.task_gradients(batch) for batch in batches]).sum(0) / 2
        losses = torch.zeros(3, dtype=torch.float64)
        for i, name in enumerate(NAMES):
            of_task = [loss[name].item() for batch in batches if name in (loss := module.task_losses(batch))]
            losses[i] = sum(of_task) / max(len(of_task), 1)
        present = torch.tensor([any(name in batch.rows for batch in batches) for name in NAMES])
        expected = ((rows.norm(dim=1) + losses) * present) @ rows
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_losses_of_a_step_are_the_means_over_the_batches_that_had_the_task() -> None:
    step, weighting = StepGradients(), Sum()
    for losses, present in (([1.0, 5.0, 0.0], [1, 1, 0]), ([2.0, 0.0, 0.0], [1, 0, 0]), ([6.0, 0.0, 0.0], [1, 0, 0])):
        step.add(torch.ones(3, 2), torch.tensor(losses), torch.tensor(present).bool(), [True])
    assert step.direction(weighting) is not None
    ((gradients, found, present_in_any),) = weighting.seen
    assert gradients.tolist() == [[3, 3]] * 3
    assert found.tolist() == [3, 5, 0]
    assert present_in_any.tolist() == [True, True, False]


def test_losses_are_those_of_the_closure_that_an_optimizer_calls_again() -> None:
    class Observes(Sum):
        def __init__(self) -> None:
            super().__init__()
            self.observed: list[Tensor] = []

        def observe(self, losses: Tensor, present: Tensor) -> None:
            self.observed.append(losses)

    weighting = Observes()
    train(MultiHead, data(), steps=2, weighting=weighting, optimizer=partial(torch.optim.LBFGS, lr=0.1, max_iter=3))
    assert len(weighting.seen) == len(weighting.observed) > 2
    for (_, losses, _), observed in zip(weighting.seen, weighting.observed, strict=True):
        torch.testing.assert_close(losses, observed)


def test_an_interrupted_training_leaves_nothing_behind() -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if args[-1] == 2:  # between two steps
                raise KeyError("stop")

    options: dict[str, Any] = {"accumulate_grad_batches": 2, "precision": "64-true"}
    torch.manual_seed(0)
    module = MultiHead(backbone(), weighting=Sum())
    with pytest.raises(KeyError, match="stop"):
        trainer(3, callbacks=[Stop()], **options).fit(module, datamodule=data())
    assert isinstance(module.weighting, Sum)
    module.weighting.seen.clear()
    watch = Watch()
    trainer(1, callbacks=[watch], **options).fit(module, datamodule=data())
    (seen,) = module.weighting.seen
    module.load_state_dict(watch.states[0])
    rows = torch.stack([module.task_gradients(batch) for batch in watch.batches]).mean(0)
    torch.testing.assert_close(seen[0], rows)


# Precision


def in_float16(weighting: Aggregator | None) -> tuple[MultiHead, list[float]]:
    """The weights after training with an initial loss scale that is too large, and the scale after each step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    scales: list[float] = []

    class Scales(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            scales.append(scaler.get_scale())

    torch.manual_seed(0)
    module = MultiHead(backbone(), weighting=weighting, optimizer=lambda p: torch.optim.SGD(p, 0.01))
    options: dict[str, Any] = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)], "callbacks": [Scales()]}
    trainer(20, gradient_clip_val=1.0, **options).fit(module, datamodule=data())
    return module, scales


def test_a_scaler_skips_the_same_steps_and_the_aggregator_sees_finite_gradients() -> None:
    weighting = Sum()
    (one, scales), (other, expected) = in_float16(weighting), in_float16(None)
    assert scales == expected
    assert scales[0] == 2.0**21  # the first step overflowed
    assert scales[-1] == scales[-5]  # and the last ones did not
    assert 5 <= len(weighting.seen) < 20
    assert all(gradients.isfinite().all() for gradients, _, _ in weighting.seen)
    assert weighting.seen[-1][0].norm() < 10  # not scaled
    assert distance(one, other) < 1e-3


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
def test_it_trains_in_any_precision(precision: str) -> None:
    torch.manual_seed(0)
    module = MultiHead(backbone(), weighting=PCGrad())
    before = module.backbone.state_dict()["layers.0.0.weight"].clone()
    trainer(3, precision=precision).fit(module, datamodule=data())
    assert all(p.isfinite().all() for p in module.parameters())
    assert not torch.equal(module.backbone.state_dict()["layers.0.0.weight"].float(), before)


# Mistakes


@pytest.mark.parametrize("method", ["multi_head", "independent"])
def test_a_module_that_shares_nothing_is_refused(method: str) -> None:
    module: MultiTaskModule = Independent(backbone())
    if method == "multi_head":
        module = MultiHead(backbone(), shared_depth=0)
    module.weighting = PCGrad()
    message = (
        rf"weighting: PCGrad combines gradients of shared parameters, and this {type(module).__name__} shares none"
    )
    with pytest.raises(UserError, match=message):
        trainer(1).fit(module, datamodule=data())


@pytest.mark.parametrize("weighting", [PCGrad, FAMO])
def test_manual_optimization_is_refused_as_no_step_would_be_combined(weighting: Any) -> None:
    class Manual(MultiHead):
        automatic_optimization = False

    with pytest.raises(UserError, match=f"weighting: {weighting.__name__} takes part in the optimizer step, .* manual"):
        train(Manual, data(), steps=1, weighting=weighting(), trainer={"max_epochs": 1})


@pytest.mark.parametrize("weighting", [PCGrad, FAMO])
def test_a_step_of_a_users_own_that_leaves_out_the_weighting_is_refused(weighting: Any) -> None:
    class Own(MultiHead):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.stack(list(self.task_losses(batch).values())).sum()

    with pytest.raises(UserError, match=f"weighting: {weighting.__name__} takes part .* that of Own does not call it"):
        train(Own, data(), steps=1, weighting=weighting())


def test_a_direction_of_another_shape_is_refused() -> None:
    class Scalar(Sum):
        def direction(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
            return gradients.sum()

    with pytest.raises(UserError, match=r"Scalar.direction returned a tensor of shape \(\); expected one number for"):
        train(MultiHead, data(), steps=1, weighting=Scalar())


def test_a_direction_that_is_not_finite_is_refused_before_the_step() -> None:
    class Broken(Sum):
        def direction(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
            return super().direction(gradients, losses, present) / 0

    module = MultiHead(backbone(), weighting=Broken())
    with pytest.raises(UserError, match=r"weighting: Broken.direction returned a direction that is not finite"):
        trainer(1).fit(module, datamodule=data())
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("returned", "message"),
    [(torch.ones(7), r"a tensor of shape \(7,\)"), ([1.0, 1.0, 1.0], "list"), (None, "NoneType")],
)
def test_what_is_no_weight_for_each_task_is_refused(returned: Any, message: str) -> None:
    class Wrong(GradientWeighting):
        def weigh(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Any:
            return returned

    with pytest.raises(UserError, match=f"Wrong.weigh returned {message}; expected one number for each task"):
        train(MultiHead, data(), steps=1, weighting=Wrong())


def test_a_loss_that_is_not_finite_stops_training_before_the_aggregator_sees_it() -> None:
    class Breaks(MultiHead):
        def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: y * (torch.nan if self.global_step == 2 else 1) for name, y in super().forward(x, rows).items()
            }

    weighting = Sum()
    with pytest.raises(NonFiniteLossError, match="became nan at step 2"):
        trainer(4).fit(Breaks(backbone(), weighting=weighting), datamodule=data())
    assert len(weighting.seen) == 2


# What is logged, and the tools around training


def test_weights_are_those_of_the_step_and_of_its_tasks(tmp_path: Path) -> None:
    class Logged(Weighs):
        def configure(self, tasks: Mapping[str, Task]) -> None:
            super().configure(tasks)
            self.all: list[Tensor] = []

        def weigh(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
            self.all.append(torch.where(present, super().weigh(gradients, losses, present), torch.nan))
            return self.all[-1].nan_to_num()

    weighting, logger = Logged(), RunLogger(tmp_path)
    options: dict[str, Any] = {"logger": logger, "log_every_n_steps": 2}
    train(MultiHead, data(tasks_per_batch=2), steps=6, trainer=options, weighting=weighting)
    logger.finalize("success")
    rows = [row for row in csv.DictReader(logger.file.read_text().splitlines()) if row["train/loss"]]
    assert len(rows) == 3
    for row, weights in zip(rows, weighting.all[1::2], strict=True):
        for name, weight in zip(NAMES, weights.tolist(), strict=True):
            assert (row[f"train/weight/{name}"] == "") == (row[f"train/loss/{name}"] == "") == (weight != weight)
            if weight == weight:
                assert float(row[f"train/weight/{name}"]) == pytest.approx(weight)
        losses = [float(row[f"train/loss/{name}"] or 0) for name in NAMES]
        assert float(row["train/loss"]) == pytest.approx(sum(losses))


def test_an_aggregator_costs_validation_nothing() -> None:
    calls: list[str] = []

    class Counting(MultiHead):
        def task_losses(self, batch: TaskBatch) -> dict[str, Tensor]:
            calls.append("losses")
            return super().task_losses(batch)

    weighting = Sum()
    module = Counting(backbone(), weighting=weighting)
    trainer(1).fit(module, datamodule=data())
    weighting.seen.clear()
    trainer(1).validate(module, datamodule=data(), verbose=False)
    assert weighting.seen == []
    assert calls == []


def test_the_learning_rate_finder_leaves_the_state_as_it_was() -> None:
    torch.manual_seed(0)
    module = MultiHead(backbone(), weighting=PCGrad())
    found = Tuner(trainer(100)).lr_find(module, datamodule=data(), num_training=20)
    assert found is not None
    assert len(set(found.results["loss"])) > 10
    assert isinstance(module.weighting, PCGrad)
    assert int(module.weighting.step) == 0
