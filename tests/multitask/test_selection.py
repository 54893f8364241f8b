"""The best validation of each task, and of their mean."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lightning_meta as lm
from lightning_meta.batches import Examples, Split
from lightning_meta.cli import main
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.migration import with_losses
from lightning_meta.multitask import MultiHead
from lightning_meta.multitask.records import TaskRecord
from lightning_meta.multitask.selection import BestSoFar
from lightning_meta.multitask.tables import mean_of_known
from lightning_meta.nn import MLP
from lightning_meta.run import RunCheckpoint
from lightning_meta.run.monitors import BestScore
from lightning_meta.run.tables import read_table
from lightning_meta.tasks import Regression
from tests.multitask.toys import Toys

VALUES = st.sampled_from([math.nan, -math.inf, -1.0, 0.0, 0.5])


@given(st.lists(st.tuples(VALUES, st.sampled_from([math.nan, 1.0, 2.0])), min_size=1, max_size=8))
def test_a_task_is_selected_as_a_run_is(validations: list[tuple[float, float]]) -> None:
    best, alone, by_loss = BestSoFar(1), BestScore("max"), BestScore("min")
    expected, of_loss = -1, -1
    for step, (score, loss) in enumerate(validations):
        improved = best.update(torch.tensor([score]), torch.tensor([loss]), step)
        taken = alone.take(score, loss)
        assert improved.mean == taken
        expected = step if taken else expected
        if math.isnan(score) and by_loss.take(loss):  # a task that never had a score follows its loss
            of_loss = step
        restored = BestSoFar(1)
        restored.set_extra_state(best.get_extra_state())
        best = restored
        assert best.mean_step == expected
        assert best.steps == [of_loss if expected < 0 else expected]


class Noisy(Toys):
    """Toys of which the labels of one are noise, so that it is best before it learns."""

    def examples(self, split: Split) -> dict[str, Examples]:
        found = super().examples(split)
        x = found["sign"].x
        noise = torch.randint(2, (len(x),), generator=torch.Generator().manual_seed(len(x)))
        return {**found, "sign": Examples(x, noise)}


def test_best_steps_are_those_of_the_whole_training_also_in_a_later_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is chosen early, by another task."""
    monkeypatch.chdir(tmp_path)
    module = MultiHead(MLP(4, (12, 12)), optimizer=partial(torch.optim.Adam, lr=0.03))
    options: dict[str, Any] = {"max_steps": 60, "accelerator": "cpu", "enable_progress_bar": False}
    given = MultiTaskDataModule(Noisy(), batch_size=8, batches_per_epoch=5)
    run = lm.fit(module, given, seed=1, name="run", checkpoint=RunCheckpoint("val/loss/sign"), **options)
    assert run.directory is not None
    header, rows = read_table(run.directory / "metrics.csv", ["step"])
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    cells = zip(*(columns[name] for name in ("val/loss/sum", "step")), strict=True)
    expected = 1 - max((-float(loss), -int(step)) for loss, step in cells if loss)[1]  # steps are logged from 0
    assert expected > lm.load(run.directory).best.steps[0], "the task is best after the kept checkpoint"
    assert main(["test", "--ckpt_path", str(run.directory), "--trust"]) == 0
    for file in ("per_task.csv", "tests/0/per_task.csv"):
        header, rows = read_table(run.directory / file)
        steps = {row[header.index("task")]: int(row[header.index("best_step")]) for row in rows}
        assert steps["sum"] == expected, file


def record(outputs: Tensor, targets: Tensor) -> TaskRecord:
    return TaskRecord(torch.arange(len(outputs)), torch.zeros(len(outputs)), outputs, targets)


def test_a_task_whose_predictions_blow_up_does_not_raise_the_mean() -> None:
    task, targets = Regression(1), torch.arange(5.0)[:, None]
    good, bad = record(targets + 0.1, targets), record(targets + 0.6, targets)
    failed, unscored = record(targets * math.nan, targets), record(targets, torch.ones(5, 1))
    assert math.isnan(failed.score(task))
    assert failed.ranked_score(task) == -math.inf
    assert math.isnan(unscored.ranked_score(task)), "equal targets have no R², whatever is predicted"
    best = BestSoFar(3)
    for step, second in enumerate((bad, failed)):
        scores = torch.tensor([r.ranked_score(task) for r in (good, second, unscored)])
        best.update(scores, torch.zeros(3), step)
    assert best.mean_step == 0
    assert best.steps == [0, 0, 0], "the third by its loss, which never fell"


def test_a_loss_that_is_not_finite_does_not_leave_the_mean() -> None:
    """A mean loss must not fall because the loss of a task blew up."""
    good = TaskRecord(torch.arange(2), torch.ones(2), torch.ones(2, 1), torch.ones(2, 1))
    failed = TaskRecord(torch.arange(2), torch.tensor([math.nan, 1.0]), torch.ones(2, 1), torch.ones(2, 1))
    nothing = TaskRecord(torch.arange(0), torch.ones(0), torch.ones(0, 1), torch.ones(0, 1))
    losses = [record.ranked_loss() for record in (good, failed, nothing)]
    assert losses[:2] == [1, math.inf]
    assert math.isnan(losses[2])
    assert mean_of_known(losses) == math.inf
    assert not BestScore("min").take(mean_of_known(losses))


def test_the_state_of_an_earlier_version_is_taken_up() -> None:
    old = torch.tensor([[0.5, -math.inf, 0.5], [7, -1, 7]], dtype=torch.float64)
    for state in (old, with_losses({"best._extra_state": old})["best._extra_state"]):
        best = BestSoFar(2)
        best.set_extra_state(state)
        assert best.scores == [0.5, -math.inf]
        assert best.steps == [7, -1]
        assert best.mean == pytest.approx(0.5)
        assert best.get_extra_state().shape == (3, 3)
