"""Rare labels, a task that dominates, and runs of earlier versions: what selects, and what a run says."""

from __future__ import annotations

import logging
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torchmetrics import (
    ExplainedVariance,
    MeanSquaredError,
    MeanSquaredLogError,
    Metric,
    NormalizedRootMeanSquaredError,
    PearsonCorrCoef,
)
from torchmetrics.classification import BinaryCohenKappa

import lightning_meta as lm
from lightning_meta.batches import SPLITS
from lightning_meta.building import build
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.multitask import Independent, MultiHead
from lightning_meta.run import RunCheckpoint, RunLogger
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression, Task
from tests.multitask.toys import Given, backbone, results_of, train, trainer

N = 200


def given(tasks: dict[str, Task], targets: dict[str, Any], **options: Any) -> MultiTaskDataModule:
    """Tasks on four numbers, the same inputs in every split; targets by task are functions of inputs and split."""
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    mask = {name: torch.ones(N, dtype=torch.bool) for name in tasks}
    sets = {s: TaskSet.of_columns(x, {name: of(x, s) for name, of in targets.items()}, mask) for s in SPLITS}
    return MultiTaskDataModule(Given(tasks, sets), batch_size=20, **options)


def above(share: float, column: int = 0) -> Any:
    """Yes for the share of inputs that are largest in a column."""

    def labels(x: Tensor, split: str) -> Tensor:
        return (x[:, column] > x[:, column].quantile(1 - share)).long()

    return labels


@pytest.mark.parametrize(
    ("task", "targets", "expected"),
    [
        (Binary(), above(0.06), "auroc"),
        (Binary(), above(0.94), "auroc"),
        (Binary(), above(0.25), "accuracy"),
        (Binary("accuracy"), above(0.06), "accuracy"),
        (Binary(BinaryCohenKappa), above(0.06), "binary_cohen_kappa"),
        (Classification(2), above(0.06), "auroc"),
        (Classification(3), above(0.1), "auroc"),
        (Classification(3), lambda x, s: torch.arange(N) % 3, "accuracy"),
        (Classification(3, "f1"), above(0.1), "f1"),
        (Multilabel(2), lambda x, s: torch.stack([above(0.06)(x, s), above(0.9)(x, s)], 1), "auroc"),
        (Multilabel(2), lambda x, s: torch.stack([above(0.06)(x, s), above(0.5)(x, s)], 1), "accuracy"),
        (Regression(1), lambda x, s: x[:, :1], "r2"),
    ],
)
def test_rare_labels_are_selected_by_the_auroc(
    task: Task, targets: Any, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lightning_meta"):
        data = given({"t": task}, {"t": targets})
        data.setup("fit")
    assert data.spec is not None
    assert data.spec.tasks["t"].selection == expected
    said = [r.getMessage() for r in caplog.records if "metric: 1 of 1 tasks" in r.getMessage()]
    assert len(said) == (expected != task.selection)


class Odd(Binary):
    """A custom task derived from `Binary`."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset


def test_a_class_derived_from_a_kind_is_fitted_and_keeps_its_class() -> None:
    task = Odd(2.0).fitted(above(0.01)(torch.randn(N, 4), "train"))
    assert type(task) is Odd
    assert task.offset == 2.0
    assert task.selection == "auroc"


def test_the_first_of_many_ties_is_not_kept(tmp_path: Path) -> None:
    """All models that never predict yes have the same accuracy; the AUROC and the loss distinguish them."""
    data = given({"a": Binary(), "b": Binary()}, {"a": above(0.06), "b": above(0.06, 1)})
    for method in (MultiHead, Independent):
        lightning.seed_everything(0, verbose=False)
        module = method(backbone(), optimizer=partial(torch.optim.Adam, lr=0.01))
        runner = trainer(200, callbacks=[RunCheckpoint("val/score")], logger=RunLogger(tmp_path, method.__name__))
        runner.fit(module, datamodule=data)
        assert min(module.best.steps) > 50
        loaded = lm.load(tmp_path / method.__name__ / "0")
        assert [task.selection for task in loaded.spec.tasks.values()] == ["auroc", "auroc"]
        logged = results_of(loaded, data)
        assert logged["test/auroc"] == logged["test/score"] > 0.95


def test_a_checkpoint_of_an_earlier_version_keeps_its_metric_when_loaded_and_when_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lightning_meta")
    data = given({"a": Binary(), "r": Regression(1)}, {"a": above(0.06), "r": lambda x, s: x[:, :1]})
    trainer(20, callbacks=[RunCheckpoint("val/score")], logger=RunLogger(tmp_path, "run")).fit(
        MultiHead(backbone()), datamodule=data
    )
    file = tmp_path / "run" / "0" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    tasks = checkpoint["lightning_meta"]["init_args"]["tasks"]["init_args"]["tasks"]
    for name in ("metric", "frequencies"):  # which did not exist
        tasks["a"]["init_args"].pop(name)
    tasks["r"]["init_args"].pop("metric")
    old = tmp_path / "old.ckpt"
    torch.save(checkpoint, old)
    loaded = lm.load(old)
    assert loaded.spec.tasks["a"].selection == "accuracy"
    assert "test/score" in results_of(loaded, data)
    module = MultiHead(backbone())
    runner = trainer(30, callbacks=[RunCheckpoint("val/score")], logger=RunLogger(tmp_path, "again"))
    runner.fit(module, datamodule=data, ckpt_path=old, weights_only=True)
    assert [task.selection for task in module.spec.tasks.values()] == ["accuracy", "r2"]
    assert lm.load(tmp_path / "again" / "0").spec.tasks["a"].selection == "accuracy"
    said = [r.getMessage() for r in caplog.records if "started by an earlier version" in r.getMessage()]
    assert len(said) == 1
    assert said[0].endswith("keeps accuracy for its 1 tasks of rare labels, instead of auroc")
    resumed = MultiHead(backbone())
    runner = trainer(30, callbacks=[RunCheckpoint("val/score")], logger=RunLogger(tmp_path, "third"))
    runner.fit(resumed, datamodule=data, ckpt_path=file, weights_only=True)
    assert resumed.spec.tasks["a"].selection == "auroc"


def test_a_resume_that_follows_another_metric_forgets_the_best_of_the_old_one(tmp_path: Path) -> None:
    data = given({"a": Binary(), "b": Binary()}, {"a": above(0.06), "b": above(0.06, 1)})

    def run(monitor: str, steps: int, **options: Any) -> Independent:
        module = Independent(backbone(), optimizer=partial(torch.optim.Adam, lr=0.01))
        quiet: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}
        lm.fit(module, data, runs=tmp_path, checkpoint=RunCheckpoint(monitor), max_steps=steps, **quiet, **options)
        return module

    first = run("val/score", 40, name="run")
    assert min(first.best.scores) > 0
    second = run("val/loss", 80, resume="last", name="run", allow_changes=True)
    assert max(second.best.scores) < 0, "losses, of which an AUROC is no better"
    assert min(second.best.steps) > 40


# One task cannot decide alone


def idle(split: str) -> float:
    return 1.0 if split == "train" else 0.02


def dominated() -> MultiTaskDataModule:
    """Four tasks learn; the targets of the fifth hardly vary but in training."""
    noise = torch.randn(N, 5, generator=torch.Generator().manual_seed(1))
    targets = {
        f"t{i}": lambda x, s, i=i: (x[:, :1] + 0.3 * noise[:, i : i + 1]) * (idle(s) if i == 4 else 1) for i in range(5)
    }
    return given({name: Regression(1) for name in targets}, targets)


def test_one_task_does_not_decide_which_checkpoint_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[dict[str, float]] = []

    class Notes(lightning.pytorch.Callback):
        def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
            seen.append({"step": trainer.global_step, **logged})

    with caplog.at_level(logging.WARNING, "lightning_meta"):
        module = train(MultiHead, dominated(), 60, trainer={"callbacks": [Notes()]})
    others = [sum(logged[f"val/r2/t{i}"] for i in range(4)) / 4 for logged in seen]
    assert seen[-1]["val/r2/t4"] < -100
    assert seen[-1]["val/r2"] < -20, "the plain mean is what it is"
    for logged, mean in zip(seen, others, strict=True):
        expected = (4 * mean + max(-1, logged["val/r2/t4"])) / 5
        assert logged["val/score"] == pytest.approx(expected, rel=1e-6)
    assert module.best.mean_step == seen[others.index(max(others))]["step"]
    said = [r.getMessage() for r in caplog.records if "cannot decide alone" in r.getMessage()]
    assert len(said) == 1, "once, and not in every validation"
    assert said[0].startswith("val: r2 of task 't4' is -")
    assert "counts as -1 in the mean over tasks" in said[0]


def test_errors_are_compared_in_standard_deviations_of_the_training_targets() -> None:
    scaled = {"small": 1.0, "large": 1e6}
    for metric in ("rmse", "mae"):
        tasks: dict[str, Task] = {name: Regression(1, metric=metric) for name in scaled}
        data = given(tasks, {n: (lambda x, s, f=f: f * x[:, :1]) for n, f in scaled.items()})
        module = train(MultiHead, data, 20)
        (logged,) = trainer().validate(module, datamodule=data, verbose=False)
        y = data.sets["train"].targets["small"]
        both = [-logged[f"val/{metric}/{n}"] / (f * float(y.std(correction=0))) for n, f in scaled.items()]
        assert logged["val/score"] == pytest.approx(sum(both) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("task", "bad", "floor"),
    [
        (Regression(1), -435.0, -1.0),
        (Regression(1, scale=(10.0,), mean=(0.0,), metric="rmse"), 1e5, -math.sqrt(2)),
        (Binary("log_loss"), 40.0, -2 * math.log(2)),
        (Classification(5, "log_loss"), 40.0, -2 * math.log(5)),
    ],
)
def test_no_task_counts_as_worse_than_its_floor(task: Task, bad: float, floor: float) -> None:
    assert task.comparable(bad) == pytest.approx(floor)
    assert math.isnan(task.comparable(math.nan))


class Correlation(PearsonCorrCoef):
    """Undefined for constants, of which it warns."""

    higher_is_better = True


@pytest.mark.filterwarnings("ignore:The variance of predictions or target:UserWarning")
@pytest.mark.parametrize(
    ("kind", "of_mean", "floor"),
    [
        (MeanSquaredError, -1.0, -2.0),
        (MeanSquaredLogError, -1.0, -2.0),
        (ExplainedVariance, 0.0, -1.0),
        (Correlation, math.nan, -math.inf),  # undefined for a constant, and bounded
    ],
)
def test_the_floor_of_a_class_is_as_far_below_the_mean_as_the_targets_are_above(
    kind: type[Metric], of_mean: float, floor: float
) -> None:
    y = 1000 + 50 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).double()
    task = Regression(1, metric=kind).fitted(y)
    for of in (task, build(describe(task), ["torchmetrics", __name__])):
        assert of.floor == pytest.approx(floor)
        constant = of.constant()
        assert constant is not None
        assert of.comparable(of.evaluate(constant.expand(200, 1), y)) == pytest.approx(of_mean, abs=1e-4, nan_ok=True)
        assert of.comparable(1e9 if task.selection_mode == "min" else -1e9) == pytest.approx(max(floor, -1e9))
    assert Regression(1, metric=kind).floor == -math.inf  # nothing is known of its targets


# Modes


class Gain(Metric):
    """A metric for which lower is better, although its name does not say so."""

    higher_is_better = False
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.total += (preds - target).abs().sum()

    def compute(self) -> Tensor:
        return self.total


def test_a_wrong_mode_of_a_users_metric_is_refused_before_training(tmp_path: Path) -> None:
    data = given({"a": Binary(Gain)}, {"a": above(0.3)})
    for mode, wrong in (("max", True), ("min", False)):
        runner = trainer(11, callbacks=[RunCheckpoint("val/gain", mode)], logger=RunLogger(tmp_path, mode))  # type: ignore[arg-type]
        module = MultiHead(backbone())
        if wrong:
            with pytest.raises(UserError, match=r"checkpoint.mode: val/gain is good where it is small.*give mode: min"):
                runner.fit(module, datamodule=data)
            assert runner.global_step == 0
        else:
            runner.fit(module, datamodule=data)
            assert runner.callback_metrics["val/score"] == -runner.callback_metrics["val/gain"]


@pytest.mark.parametrize(
    ("monitor", "mode", "good"),
    [
        ("val/auroc", "min", "large"),
        ("val/balanced_accuracy/a", "min", "large"),
        ("val/log_loss", "max", "small"),
        ("val/score", "min", "large"),
        ("val/loss/a", "max", "small"),
    ],
)
def test_a_wrong_mode_of_a_named_metric_is_refused_before_training(
    monitor: str, mode: str, good: str, tmp_path: Path
) -> None:
    runner = trainer(11, callbacks=[RunCheckpoint(monitor, mode)], logger=RunLogger(tmp_path, "run"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"checkpoint.mode: {monitor} is good where it is {good}, got {mode}"):
        runner.fit(MultiHead(backbone()), datamodule=given({"a": Binary("log_loss")}, {"a": above(0.3)}))
    assert runner.global_step == 0


def test_an_override_that_is_not_called_any_more_is_refused() -> None:
    class Old(MultiHead):
        def selection_score(self, scores: Tensor) -> float:
            return 0.0

    with pytest.raises(UserError, match=r"^Old.selection_score is not called any more; give `followed`.*`kept`"):
        Old(backbone())


class FailsOnConstants(MeanSquaredError):
    """Raises if all predictions are equal."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        if bool((preds == preds[0]).all()):
            raise ValueError("constant")
        super().update(preds, target)


@pytest.mark.parametrize("kind", [Correlation, FailsOnConstants])
def test_a_class_that_warns_of_constants_or_fails_on_them_fits_without_a_word(kind: type[Metric]) -> None:
    y = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert Regression(1, metric=kind).fitted(y).reference == ()
    assert not told


@pytest.mark.parametrize("y", [torch.full((30, 1), 3.0), torch.tensor([[7.0]])])
@pytest.mark.parametrize("kind", [MeanSquaredError, ExplainedVariance])
def test_a_task_of_constant_training_targets_is_bounded_and_not_always_best(kind: type[Metric], y: Tensor) -> None:
    task = Regression(1, metric=kind).fitted(y)
    if task.reference:  # a class may be undefined for one row
        best, bad = (1.0, -500.0) if kind is ExplainedVariance else (0.0, 1e4)
        assert task.comparable(bad) == task.floor < task.comparable(best)
    assert kind is ExplainedVariance or task.floor == -1.0


def test_a_class_for_which_the_mean_is_better_than_the_targets_keeps_its_order() -> None:
    """The error is divided by the mean of the targets, which is negative."""
    task = Regression(1, metric=NormalizedRootMeanSquaredError)
    task = task.fitted(-5 + torch.randn(50, 1, generator=torch.Generator().manual_seed(0)))
    assert task.reference[0] < 0
    assert task.comparable(-1.0) > task.comparable(0.0) > task.comparable(1e6)


def test_a_long_table_bounds_a_class_by_some_of_its_rows() -> None:
    seen: list[int] = []

    class Counted(MeanSquaredError):
        def update(self, preds: Tensor, target: Tensor) -> None:
            seen.append(len(preds))
            super().update(preds, target)

    y = torch.randn(7001, 1, generator=torch.Generator().manual_seed(0)).double()
    task = Regression(1, metric=Counted).fitted(y)
    assert task.unit == pytest.approx(float(y.var()), rel=0.1)
    assert max(seen) <= 2000


def test_a_run_of_an_earlier_version_keeps_the_scale_of_a_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lightning_meta")
    data = given({"r": Regression(1, metric=MeanSquaredError)}, {"r": lambda x, s: 40 * x[:, :1]})
    trainer(20, callbacks=[RunCheckpoint("val/score")], logger=RunLogger(tmp_path, "run")).fit(
        MultiHead(backbone()), datamodule=data
    )
    file = tmp_path / "run" / "0" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    tasks = checkpoint["lightning_meta"]["init_args"]["tasks"]["init_args"]["tasks"]
    assert len(tasks["r"]["init_args"].pop("reference")) == 2  # which did not exist
    torch.save(checkpoint, tmp_path / "old.ckpt")
    scales = {}
    for name, resumed in (("old", tmp_path / "old.ckpt"), ("new", file)):
        module = MultiHead(backbone())
        runner = trainer(30, callbacks=[RunCheckpoint("val/score")], logger=RunLogger(tmp_path, f"again {name}"))
        runner.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
        scales[name] = module.spec.tasks["r"].unit
    assert scales == {"old": 1.0, "new": pytest.approx(1600, rel=0.3)}
    said = [r.getMessage() for r in caplog.records if "started by an earlier version" in r.getMessage()]
    assert len(said) == 1
    assert "stay in their own units" in said[0]


def test_a_task_at_its_floor_is_named_where_the_best_validation_has_it(caplog: pytest.LogCaptureFixture) -> None:
    """A task that is bad at first and then learns is not named."""
    with caplog.at_level(logging.WARNING, "lightning_meta"):
        targets: dict[str, Any] = {"t": lambda x, s: x[:, :1] + (10 if s == "val" else 0)}
        module = train(MultiHead, given({"t": Regression(1)}, targets), 60)
        assert module.best.mean < -1 + 1e-9
    assert len([r for r in caplog.records if "cannot decide alone" in r.getMessage()]) == 1
    caplog.clear()

    class Learns(MultiHead):
        def forward(self, x: Tensor, rows: Any) -> dict[str, Tensor]:
            late = self.trainer.global_step >= 40
            return {name: y if late or self.training else y + 10 for name, y in super().forward(x, rows).items()}

    with caplog.at_level(logging.WARNING, "lightning_meta"):
        train(Learns, given({"t": Regression(1)}, {"t": lambda x, s: x[:, :1]}), 60)
    assert not [r for r in caplog.records if "cannot decide alone" in r.getMessage()]
