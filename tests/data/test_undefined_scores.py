"""Scores that are undefined because labels are equal: which are named, and which monitors are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

import lightning_meta as lm
from lightning_meta import Examples
from lightning_meta.batches import SPLITS, Split
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.data.undefined_scores import undefined_scores, without_score
from lightning_meta.errors import UserError
from lightning_meta.multitask import MultiHead
from lightning_meta.run import RunCheckpoint
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression, Task
from tests.multitask.toys import Given, backbone

BOTH = torch.tensor([0, 1, 0, 1, 1, 0])
NO = torch.zeros_like(BOTH)


def sets_of(targets: dict[str, Tensor], val: dict[str, Tensor]) -> dict[Split, TaskSet]:
    x = torch.arange(24.0).view(6, 4)
    by_split = {split: val if split == "val" else targets for split in SPLITS}
    return {s: TaskSet.of_examples({n: Examples(x[: len(y)], y) for n, y in by_split[s].items()}) for s in SPLITS}


def undefined_in_val(task: Task, targets: Tensor) -> list[str]:
    return undefined_scores({"a": task}, sets_of({"a": targets}, {"a": targets}))["val"]["a"]


@pytest.mark.parametrize(
    ("task", "targets", "undefined"),
    [
        (Regression(2), torch.stack([BOTH.double(), NO.double()], 1), ["r2"]),
        (Regression(2), torch.stack([BOTH.double(), BOTH.double()], 1), []),
        (Regression(1, metric="rmse"), NO[:, None].double(), ["r2"]),
        (Multilabel(2, "auroc"), torch.stack([NO, 1 - NO], 1), ["auroc", "f1"]),
        (Multilabel(2, "auroc"), torch.stack([BOTH, NO], 1), []),  # the mean over labels ignores the second
        (Classification(2, "balanced_accuracy"), NO, ["balanced_accuracy"]),
        (Binary(), NO, ["auroc"]),
    ],
)
def test_metrics_that_no_prediction_can_have(task: Task, targets: Tensor, undefined: list[str]) -> None:
    assert undefined_in_val(task, targets) == undefined


def test_a_custom_task_is_not_called_with_invented_outputs() -> None:
    def refuse(self: Task, outputs: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("called")

    for base, own in ((Binary, "example_scores"), (Binary, "right"), (Classification, "losses")):
        task = type("Custom", (base,), {own: refuse})(*([2] if base is Classification else []), metric=None)
        assert undefined_in_val(task, NO) == []


def test_monitors_of_other_splits_and_of_metrics_that_some_task_has() -> None:
    tasks: dict[str, Task] = {"a": Binary(), "b": Binary(), "few": Binary()}
    of_split = {"a": ["auroc"], "b": ["auroc"]}  # the examples of `few` do not count
    assert without_score("val/auroc", tasks, of_split) == ["a", "b"]
    assert without_score("val/auroc/b", tasks, of_split) == ["b"]
    for defined in ("val/score", "val/accuracy", "val/loss", "val/auroc/few", "test/auroc", "train/auroc"):
        assert without_score(defined, tasks, of_split) == []
    assert without_score("val/auroc", tasks, {"a": ["auroc"], "b": []}) == []


def test_a_score_of_several_outputs_is_named_before_training(caplog: pytest.LogCaptureFixture) -> None:
    targets = torch.stack([BOTH.double(), BOTH.double()], 1)
    constant = torch.stack([BOTH.double(), NO.double()], 1)
    data = MultiTaskDataModule(Given({"a": Regression(2)}, sets_of({"a": targets}, {"a": constant})))
    data.setup("fit")
    (said,) = [message for message in caplog.messages if message.startswith("scores: ")]
    assert "1 of 1 tasks have a target with a single label or number in the val split" in said
    assert "'a' r2" in said


class Custom(EarlyStopping):
    """A class of the user."""


@pytest.mark.parametrize(
    ("callback", "whose"),
    [
        (partial(EarlyStopping, "val/auroc", mode="max"), "callbacks: EarlyStopping: val/auroc"),
        (partial(Custom, "val/score", mode="max"), "callbacks: Custom: val/score"),
        (partial(ModelCheckpoint, monitor="val/auroc/a", mode="max"), "ModelCheckpoint: val/auroc/a"),
    ],
)
def test_every_monitor_of_the_trainer_is_checked(callback: Callable[[], Callback], whose: str, tmp_path: Path) -> None:
    data = MultiTaskDataModule(Given({"a": Binary("auroc")}, sets_of({"a": BOTH}, {"a": NO})), batches_per_epoch=2)
    fit = partial(lm.fit, checkpoint=RunCheckpoint("val/loss"), name="callback", runs=tmp_path, max_epochs=1)
    with pytest.raises(UserError, match=f"{whose} is undefined, as the validation rows of 'a' have"):
        fit(MultiHead(backbone()), data, callbacks=[callback()])


def test_the_monitor_of_a_schedule_and_of_the_run_is_checked(tmp_path: Path) -> None:
    def fit(schedule: Callable[[SGD], LRScheduler] | None, checkpoint: RunCheckpoint | None = None) -> None:
        data = MultiTaskDataModule(Given({"a": Binary()}, sets_of({"a": BOTH}, {"a": NO})), batches_per_epoch=2)
        module = MultiHead(backbone(), lr_scheduler=schedule)
        lm.fit(module, data, name="schedule", runs=tmp_path, max_epochs=1, checkpoint=checkpoint)

    with pytest.raises(UserError, match=r"lr_scheduler: val/auroc is undefined"):
        fit(lambda o: ReduceLROnPlateau(o, monitor="val/auroc", mode="max"))
    with pytest.raises(UserError, match=r"checkpoint\.monitor: val/auroc is undefined"):
        fit(None, RunCheckpoint("val/auroc"))
    fit(None, RunCheckpoint("val/accuracy"))
