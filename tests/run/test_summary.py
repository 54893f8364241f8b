"""The table at the end of a run fits on a screen, and names the file with the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

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
