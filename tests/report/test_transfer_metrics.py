"""The report on metrics that are no means over examples, or good where they are small; and its marks."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_meta.multitask.records import TaskRecord
from lightning_meta.multitask.tables import NOT_BETTER
from lightning_meta.report.transfer import compare
from lightning_meta.report.transfer.intervals import paired_intervals
from lightning_meta.tasks import Binary, Regression, Task
from tests.report.transfer_runs import Simulated, write_run

EXAMPLES, TRIALS, LARGE = 300, 1000, 200_000


def drawn(n: int, regression: bool, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets and the outputs of two models that share a part of their errors."""
    y = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    shared, a, b = torch.randn(3, n, 1, generator=generator, dtype=torch.float64)
    outputs = y + 0.8 * shared + 0.6 * a, y + 0.8 * shared + 0.9 * b
    targets = y if regression else (y[:, 0] > 0.8).long()  # 21 % positives
    return targets, outputs[0] - (not regression) * 0.8, outputs[1] - (not regression) * 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "metric"),
    [
        *((Binary, m) for m in ("auroc", "average_precision", "f1", "balanced_accuracy", "log_loss")),
        *((lambda m: Regression(1, metric=m), m) for m in ("rmse", "mae", "r2")),
    ],
)
def test_a_95_percent_interval_covers_the_true_difference_in_93_to_97_percent(
    make: Callable[[str], Task], metric: str
) -> None:
    task, generator = make(metric), torch.Generator().manual_seed(1)
    regression = isinstance(task, Regression)
    y, a, b = drawn(LARGE, regression, generator)
    truth = task.evaluate(a, y) - task.evaluate(b, y)
    differences = []
    for _ in range(TRIALS):
        y, a, b = drawn(EXAMPLES, regression, generator)
        differences.append((task.example_scores(a, y) - task.example_scores(b, y)).numpy()[None])
    found = paired_intervals(differences, [False] * TRIALS)
    covered = np.mean((found.low <= truth) & (truth <= found.high))
    assert 0.93 <= covered <= 0.97


def runs_of(folder: Path, **of_methods: dict[str, Any]) -> list[Path]:
    """One run of each method on one task, with the columns of today in its table."""
    made = []
    for method, row in of_methods.items():
        scores = np.random.default_rng(len(method)).normal(row["test"], 0.05, 400)
        scores += row["test"] - scores.mean()
        run = write_run(folder / method / "0", {"t": Simulated(scores, metric=row["metric"], joint=row.get("joint"))})
        file = run / "per_task.csv"
        (header, *rows) = list(csv.reader(file.read_text().splitlines()))
        more = {name: str(row[name]) for name in ("better", "constant") if name in row}
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows([[*header, *more], *([*r, *more.values()] for r in rows)])
        made.append(run)
    return made


def test_of_a_metric_that_is_good_where_it_is_small_the_smaller_helps(tmp_path: Path) -> None:
    row = {"metric": "rmse", "better": "lower"}
    worse, better = runs_of(tmp_path, alone={**row, "test": 2.0}, together={**row, "test": 1.0})
    report = compare([better], [worse])
    (task,) = report.methods[0].tasks
    assert (task.baseline, task.value, task.delta) == pytest.approx((2.0, 1.0, 1.0))
    assert task.low > 0.9
    assert task.verdict == "helped"
    assert report.methods[0].delta_m == pytest.approx(0.5)
    assert (report.methods[0].mean_rank, report.baseline_rank) == (1, 2)


def test_a_baseline_stands_selected_by_task_and_jointly(tmp_path: Path) -> None:
    alone, together = runs_of(
        tmp_path, alone={"metric": "auroc", "test": 0.7, "joint": 0.8}, together={"metric": "auroc", "test": 0.75}
    )
    (method,) = compare([together], [alone]).methods
    assert method.mean_delta == pytest.approx(0.05)
    assert method.mean_delta_joint == pytest.approx(-0.05)


def test_a_method_that_is_not_better_than_a_constant_is_named(tmp_path: Path) -> None:
    row = {"metric": "auroc", "constant": 0.5}
    alone, together = runs_of(tmp_path, alone={**row, "test": 0.5}, together={**row, "test": 0.9})
    notes = [note for note in compare([together], [alone]).notes if "not better than a constant" in note]
    assert len(notes) == 1
    assert notes[0].startswith("alone is not better")
    assert notes[0].endswith("in 1 of 1 tasks: t.")


@pytest.mark.parametrize(("count", "said"), [(14, True), (15, False)])
def test_few_test_examples_of_a_class_are_named(count: int, said: bool, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(0.7, 0.1, (2, 90))
    targets = (np.arange(90) < count).astype(float)
    runs = [
        write_run(tmp_path / name / "0", {"t": Simulated(scores, metric="auroc", targets=targets)})
        for name, scores in zip(("alone", "together"), rows, strict=True)
    ]
    notes = [note for note in compare(runs[1:], runs[:1]).notes if "their rarest class" in note]
    assert len(notes) == said


def test_what_a_constant_reaches() -> None:
    y = torch.tensor([0] * 90 + [1] * 10)
    constant = {name: Binary(name).fitted(y) for name in Binary.names}
    record = TaskRecord(torch.arange(100), torch.zeros(100), torch.zeros(100, 1), y)
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    expected = {"accuracy": 0.9, "balanced_accuracy": 0.5, "auroc": 0.5, "average_precision": 0.1, "f1": 0.0}
    for name, value in {**expected, "log_loss": entropy}.items():
        assert record.constant_score(constant[name]) == pytest.approx(value, abs=1e-9), name
    x = torch.randn(50, 1, dtype=torch.float64) * 3 + 7
    of_values = TaskRecord(torch.arange(50), torch.zeros(50), torch.zeros(50, 1), x)
    assert of_values.constant_score(Regression(1).fitted(x)) == pytest.approx(0, abs=1e-9)
    assert of_values.constant_score(Regression(1, metric="rmse").fitted(x)) == pytest.approx(
        float(x.std(correction=0)), rel=1e-6
    )
    assert math.isnan(record.constant_score(Binary())), "a task of before does not say its frequencies"
    assert "constant" in NOT_BETTER
