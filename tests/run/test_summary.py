"""The table at the end of a run fits on a screen, and names the file with the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lightning_meta as lm
from lightning_meta.fitting.summary import print_summary


@pytest.mark.parametrize(("steps", "shown"), [(5, [0, 1, 2, 3, 4, 5]), (86, [0, 1, 2, 5, 10, 20, 50, 86])])
def test_long_inner_loops(steps: int, shown: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"test/accuracy": 0.9, **{f"test/accuracy_step_{j}": 0.5 for j in range(steps + 1)}}
    print_summary(metrics, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[2]) for line in lines if "after" in line] == shown
    assert any("all inner steps" in line and "results.json" in line for line in lines) == (steps == 86)


@pytest.mark.parametrize(("tasks", "shown"), [(25, 25), (139, 24)])
def test_many_tasks(tasks: int, shown: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"task {i},accuracy,0.5,{'no better than a constant' * (i > 136)}" for i in range(tasks)]
    (tmp_path / "per_task.csv").write_text("\n".join(["task,metric,test,mark", *rows]) + "\n")
    print_summary({"test/accuracy": 0.5}, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert sum("│ task " in line for line in lines) == shown
    assert any("115 more tasks" in line and "per_task.csv, 2 with a mark" in line for line in lines) == (tasks == 139)
    assert len(lines) < 40


def test_means_are_over_listed_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The accuracy of a task that is compared by AUROC enters the mean accuracy, so it is listed."""
    rows = ["sick,accuracy,0.5,", "weight,r2,-0.25,", "kind,accuracy,0.25,"]
    rows += ["rare,auroc,0.375,no better", "none,auroc,nan,"]
    (tmp_path / "per_task.csv").write_text("\n".join(["task,metric,test,mark", *rows]) + "\n")
    of_tasks = {"accuracy/sick": 0.5, "accuracy/kind": 0.25, "accuracy/rare": 0.75, "f1/rare": 0.125}
    means = {"accuracy": 0.5, "accuracy_tasks": 3, "auroc": 0.375, "auroc_tasks": 1, "r2": -0.25, "r2_tasks": 1}
    logged = {**of_tasks, **means, "r2/weight": -0.25, "auroc/rare": 0.375, "auroc/none": float("nan"), "tasks": 5}
    print_summary({f"test/{name}": value for name, value in logged.items()}, tmp_path)
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())  # none was broken
    listed, printed = text.split("├")
    assert "auroc 0.375, no better" in listed
    assert "f1" not in text
    means_printed = re.findall(r"test (\w+) +│ (\S+)(?: %)?, mean over (\d) of 5 tasks", printed)
    assert [metric for metric, _, _ in means_printed] == ["accuracy", "r2", "auroc"]
    for metric, mean, tasks in means_printed:
        values = [float(value) for value in re.findall(rf"{metric} (-?[\d.]+)", listed)]
        assert len(values) == int(tasks)
        assert sum(values) / len(values) == pytest.approx(float(mean))


@pytest.mark.parametrize(("unit", "averaged"), [("kEUR", True), ("m", False), (None, False)])
def test_errors_in_different_units_have_no_mean(
    unit: str | None, averaged: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{i},{1000 * i + i % 7},{i % 5 + i}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["x,price,size", *rows]) + "\n")
    targets = {
        "price": lm.sources.Target("regression", metric="mae", unit="kEUR"),
        "size": lm.sources.Target("regression", metric="mae", unit=unit),
    }
    data = lm.MultiTaskDataModule(lm.sources.Table(tmp_path / "t.csv", targets))
    run = lm.fit(lm.Linear(), data, name="run", runs=tmp_path, max_epochs=1)
    printed = capsys.readouterr().out
    assert ("test mae" in printed) is averaged
    assert "price" in printed
    assert "test/mae" in run.metrics  # it is logged as before


def test_a_single_task_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary({"test/accuracy": 0.8, "test/accuracy_ci95": float("nan"), "test/tasks": 1.0}, tmp_path)
    said = capsys.readouterr().out
    assert "80.00 %" in said
    assert "nan" not in said
    assert "±" not in said
