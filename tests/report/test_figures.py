"""Pictures are drawn from what a run left behind, and only where there is something to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_meta.report import write_figures
from lightning_meta.report.figures import _edges, columns_of


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


@pytest.mark.parametrize("queries", [10, 50, 75])
def test_a_histogram_of_shares_has_as_many_possible_scores_in_each_bin(queries: int) -> None:
    """Scores are k / Q: bins of another width hold now three, now two possible ones, and show peaks that are not."""
    scores = np.arange(queries // 2, queries + 1) / queries
    edges = _edges(scores)
    counts, _ = np.histogram(scores, edges)
    assert edges[0] < scores.min()
    assert scores.max() < edges[-1]
    assert len(set(counts[:-1])) == 1
    assert counts[-1] <= counts[0]


def test_bins_of_other_scores_cover_them() -> None:
    for scores in (np.random.default_rng(0).exponential(size=200), np.full(5, 0.3)):
        counts, _ = np.histogram(scores, _edges(scores))
        assert counts.sum() == len(scores)


def test_the_name_of_a_task_keeps_its_digits(tmp_path: Path) -> None:
    (tmp_path / "named.csv").write_text("task,metric,test\n7,r2,0.5\n9007199254740993,r2,\n")
    named = columns_of(tmp_path / "named.csv", words=True)
    assert named["task"].tolist() == ["7", "9007199254740993"]
    assert named["test"][0] == 0.5
