"""Calibration over tasks: what a predictor says of each task, how often sets hold the label, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import measure_coverage
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from scipy import stats
from torch import nn

import lightning_meta as lm
from lightning_meta.cli.calibrating import MEASURES, print_calibration
from lightning_meta.errors import UserError
from lightning_meta.fitting.calibration import Calibrated, queries_of_other_classes, task_logits
from lightning_meta.fitting.checks import QUIET
from lightning_meta.meta.calibration import Calibration, TaskLogits
from lightning_meta.tasks import EpisodeSpec
from tests.test_evaluate import Noisy


def test_logits_are_those_of_a_predictor_of_each_task() -> None:
    data, module = lm.EpisodicDataModule(Noisy(), 3, 2, 5, test_ways=4), lm.ProtoNet(nn.Flatten())
    trainer = Trainer(**QUIET, accelerator="cpu")
    found = task_logits(trainer, module, data, "val", 7, shots=3, queries=2)
    again = lm.EpisodicDataModule(Noisy(), 4, 3, 2, val_tasks=7)
    batches = list(again.val_dataloader())
    assert [len(b.tasks) for b in batches] == [7]
    module = lm.ProtoNet(nn.Flatten(), episodes=EpisodeSpec("classification", (1, 4, 4), 4))
    module.configure_model()
    x, known = queries_of_other_classes(batches[0])
    for task in range(7):
        support, query = ([part[task] for part in examples] for examples in (batches[0].support, batches[0].query))
        predictor = module.predictor(*support)
        torch.testing.assert_close(found.logits[task], predictor.outputs(query[0]).double())
        assert torch.equal(found.labels[task], query[1])
        torch.testing.assert_close(found.other_classes[task], predictor.outputs(x[task]).double()[0])
    assert known.all()
    assert module.episodes is not None  # the data module's own shape is as before
    assert data.test_conditions == "4-way 2-shot, chance 25 %"


def test_an_example_of_another_class_is_a_query_of_another_task() -> None:
    classes = torch.tensor([[0, 1, 2], [1, 2, 0], [3, 4, 0], [2, 1, 5]])
    y = torch.tensor([0, 0, 1, 1, 2, 2]).repeat(4, 1)
    x = classes.gather(1, y).float().unsqueeze(-1)  # a query shows its class
    batch = lm.Episode(lm.Examples(x, y), lm.Examples(x, y), 3, torch.arange(4), classes)
    made, known = queries_of_other_classes(batch)
    assert known.all()
    assert not (made[:, 0] == classes).any()
    assert made[:, 0, 0].tolist()[:2] == [3, 3]  # of the next task that has one
    two = lm.Examples(x[:2], y[:2])
    alone = lm.Episode(two, two, 3, torch.arange(2), classes[:2])
    assert not queries_of_other_classes(alone)[1].any()


def test_measures_by_hand() -> None:
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 6, 3, generator=g), torch.randint(3, (40, 6), generator=g)
    tasks = TaskLogits(logits, labels, torch.randn(9, 3, generator=g))
    calibration = Calibration(3, 1, 40, 0.9, 2.0, 0.7, 0.5)
    p = np.exp(logits.double().numpy() / 2)
    p /= p.sum(-1, keepdims=True)
    of_label = np.take_along_axis(p, labels.numpy()[..., None], -1)
    kept = p.max(-1) >= 0.5
    right = p.argmax(-1) == labels.numpy()
    expected = {
        "coverage": (of_label >= 0.3).mean(),
        "set_size": (p >= 0.3).sum(-1).mean(),
        "accuracy": right.mean(),
        "abstained": 1 - kept.mean(),
        "accuracy_of_rest": right[kept].mean(),
        "tasks": 40,
        # The interval over tasks, whose 6 queries are alike.
        "coverage_ci95": stats.t.ppf(0.975, 39) * stats.sem((of_label >= 0.3).mean((1, 2))),
    }
    measured = calibration.measure(tasks)
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    without = calibration.measure(tasks._replace(other_classes=tasks.other_classes[:0]))
    assert without["open_set_auroc"] is without["abstained_other_classes"] is None
    assert calibration.measure(TaskLogits(logits[:1], labels[:1], tasks.other_classes))["coverage_ci95"] is None


def test_the_table_shows_the_interval_of_the_coverage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = dict.fromkeys(MEASURES, 0.5)
    fitted, other = ({**values, "tasks": 40.0, "coverage_ci95": interval} for interval in (None, 0.0123))
    print_calibration(Calibrated(Calibration(3, 1, 40, 0.9, 2.0, 0.7, 0.5), {"val": fitted, "test": other}), tmp_path)
    said = capsys.readouterr().out
    assert "50.0 % " in said
    assert "50.0 ± 1.2 % " in said
    assert "40 tasks each" in said


def test_too_few_tasks_leave_no_label_out() -> None:
    g = torch.Generator().manual_seed(0)
    tasks = TaskLogits(torch.randn(3, 4, 5, generator=g), torch.randint(5, (3, 4), generator=g), torch.zeros(0, 5))
    measured = Calibration.of(1, 0.9, tasks, tasks).measure(tasks)
    assert (measured["coverage"], measured["set_size"], measured["abstained"]) == (1, 5, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("ways", "shots"), [(5, 1), (5, 3), (2, 1)])
def test_sets_of_new_tasks_of_the_same_classes_hold_the_label_within_a_point(ways: int, shots: int) -> None:
    """1000 tasks for calibration and 1000 others, the mean of five divisions."""
    data, module = lm.EpisodicDataModule(Noisy(), ways, shots, 5), lm.ProtoNet(nn.Flatten())
    trainer = Trainer(**QUIET, accelerator="cpu")
    val = task_logits(trainer, module, data, "val", 2200)
    same, _ = measure_coverage.measured(val, task_logits(trainer, module, data, "test", 1000), shots, 0.9, 5)
    assert np.mean([each["coverage"] for each in same]) == pytest.approx(0.9, abs=0.01)
    assert np.mean([each["abstained"] for each in same]) == pytest.approx(0.1, abs=0.01)


def test_predictions_that_are_not_finite_are_refused() -> None:
    class Wrong(lm.ProtoNet):
        def logits(self, summary: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
            return super().logits(summary, features) / 0

    with pytest.raises(UserError, match="predictions for 8 of 8 tasks of the val split are NaN or infinite"):
        lm.calibrate(Wrong(nn.Flatten()), lm.EpisodicDataModule(Noisy(), 3, 1, 5), tasks=7, accelerator="cpu")


@pytest.mark.parametrize("option", [{"limit_val_batches": 1}, {"fast_dev_run": True}])
def test_a_part_of_the_validation_tasks_is_refused(option: dict[str, Any]) -> None:
    data = lm.EpisodicDataModule(Noisy(), 3, 1, 5)
    with pytest.raises(UserError, match="limit_val_batches: 20 of 48 validation tasks were predicted"):
        lm.calibrate(lm.ProtoNet(nn.Flatten()), data, tasks=40, accelerator="cpu", **option)


def test_regression_is_refused() -> None:
    data = lm.EpisodicDataModule(lm.sources.Sinusoid(), shots=5, queries=5)
    with pytest.raises(UserError, match="regression tasks have no classes"):
        lm.calibrate(lm.MAML(lm.nn.MLP(1, (8,))), data)
