"""Pictures are drawn from what a run left behind, and only where there is something to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lightning_meta.report import write_figures


def test_draws_what_there_is(tmp_path: Path) -> None:
    assert write_figures(tmp_path) == []
    (tmp_path / "metrics.csv").write_text(
        "step,train/accuracy,val/accuracy,val/accuracy_ci95\n0,,,\n49,0.5,,\n99,0.7,0.6,0.05\n"
    )
    (tmp_path / "per_task.csv").write_text("task,step_0,step_1\n0,0.2,0.8\n1,0.3,0.9\n2,0.1,1.0\n")
    drawn = write_figures(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in drawn] == ["figures/training.png", "figures/tasks.png"]
    for file in drawn:
        picture = np.asarray(Image.open(file).convert("L"))
        assert picture.shape == (600, 900)
        assert 0.001 < (picture < 128).mean() < 0.2


def test_one_test_task_has_no_interval_and_no_picture(tmp_path: Path) -> None:
    (tmp_path / "per_task.csv").write_text("task,score\n0,0.2\n")
    (tmp_path / "metrics.csv").write_text("step,epoch\n0,0\n")
    assert write_figures(tmp_path) == []
    assert not (tmp_path / "figures").exists()
