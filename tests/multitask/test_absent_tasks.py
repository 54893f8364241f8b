"""Tasks that are absent from batches, and tasks whose labels in a batch all have weight 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from lightning_meta.batches import SPLITS
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.multitask import MultiHead
from lightning_meta.tasks import Regression
from lightning_meta.weightings import (
    FAMO,
    IMTLL,
    MGDA,
    STCH,
    CAGrad,
    DynamicWeightAverage,
    Equal,
    GeometricMean,
    PCGrad,
    RandomWeights,
    Uncertainty,
    Weighting,
)
from tests.multitask.toys import Given, data, train

LOGGING = [FAMO, IMTLL, MGDA, STCH, CAGrad, DynamicWeightAverage, GeometricMean, PCGrad, RandomWeights, Uncertainty]


class Rows(DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(dict(metrics))


@pytest.mark.parametrize("weighting", LOGGING)
def test_no_weight_of_an_absent_task_is_logged(weighting: Callable[[], Weighting]) -> None:
    logger = Rows()
    options = {"logger": logger, "log_every_n_steps": 1}
    train(MultiHead, data(tasks_per_batch=1), 6, weighting=weighting(), trainer=options)
    tasks = [{name.removeprefix("train/weight/") for name in row if "weight/" in name} for row in logger.rows]
    assert sum(map(len, tasks)) == 6
    assert all(len(of_row) <= 1 for of_row in tasks)


class Norms(Callback):
    """The norm of the gradient of the backbone in every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, MultiHead)
        of_backbone = [p.grad.flatten() for p in pl_module.backbone.parameters() if p.grad is not None]
        self.seen.append(float(torch.cat(of_backbone).norm()))


def some_without_weight() -> MultiTaskDataModule:
    """Two regressions; the labels of the second one have weight 0 in two of three rows."""
    sets = {}
    for seed, split in enumerate(SPLITS):
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(seed))
        rows = torch.arange(60)
        weights = {"a": torch.ones(60), "b": (rows % 3 == 0).float()}
        targets: dict[str, Tensor] = {"a": x[:, :1] + 2 * x[:, 1:2], "b": x[:, 2:3] - x[:, 3:]}
        sets[split] = TaskSet(x, targets, {"a": rows, "b": rows}, weights)
    return MultiTaskDataModule(Given({"a": Regression(1), "b": Regression(1)}, sets), batch_size=2)


@pytest.mark.parametrize("weighting", [Equal, *LOGGING])
def test_labels_without_weight_do_not_stop_the_other_tasks(weighting: Callable[[], Weighting]) -> None:
    norms = Norms()
    train(MultiHead, some_without_weight(), 40, weighting=weighting(), trainer={"callbacks": [norms]})
    middle = sorted(norms.seen)[20]
    assert all(norm > 0.01 * middle for norm in norms.seen)


def test_a_task_without_weight_is_absent_for_the_weighting() -> None:
    seen: list[list[bool]] = []

    class Sees(Equal):
        def observe(self, losses: Tensor, present: Tensor) -> None:
            assert ((losses == 0) == ~present).all()
            seen.append(present.tolist())

    train(MultiHead, some_without_weight(), 30, weighting=Sees())
    assert [True, False] in seen
    assert [True, True] in seen
