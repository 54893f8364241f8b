"""Pictures and tables of runs whose numbers are NaN, infinite or huge."""

from __future__ import annotations

import csv
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_meta.cli import main
from lightning_meta.errors import UserError
from lightning_meta.report import write_figures
from lightning_meta.report.gradients import write_conflict_figures
from lightning_meta.run.gradient_table import COLUMNS, PAIRS, SHARES, cut_rows, gradient_shares

BAD = ["nan", "inf", "-inf", "3e38", "-1", ""]


@pytest.fixture(autouse=True)
def no_warnings() -> None:
    warnings.simplefilter("error")


def write(file: Path, rows: Sequence[Sequence[object]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def is_picture(file: Path) -> bool:
    return bool((np.asarray(Image.open(file).convert("L")) < 128).mean() > 0.001)


@pytest.mark.parametrize(("metric", "bad"), [("accuracy", "nan"), ("mse", "nan"), *(("mse", bad) for bad in BAD[1:])])
def test_training_curves(metric: str, bad: str, tmp_path: Path) -> None:
    header = ["step", f"train/{metric}", f"val/{metric}", f"val/{metric}_ci95"]
    (tmp_path / "results.json").write_text(f'{{"test/{metric}": null}}')
    for values in ([bad] * 3, [bad, "0.5", bad]):
        write(tmp_path / "metrics.csv", [header, *([4 * i, v, v, v] for i, v in enumerate(values))])
        drawn = write_figures(tmp_path)
        finite = any(np.isfinite(float(v or "nan")) for v in values)
        assert [file.name for file in drawn] == (["training.png"] if finite else [])
        assert all(map(is_picture, drawn))
        out = ["--out", str(tmp_path / "c.png"), "--overwrite"]
        status = main(["curves", str(tmp_path), "--metric", f"val/{metric}", *out])
        assert status == (0 if finite else 2)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("bad", BAD)
def test_test_tasks(bad: str, columns: int, tmp_path: Path) -> None:
    """A task that is not finite is left out, and the picture says so."""
    header = ["task", *(f"step_{i}" for i in range(columns))]
    for count in (1, 5):  # of six tasks
        rows = [[t, *([bad if t < count else f"0.{t + 1}"] * columns)] for t in range(6)]
        write(tmp_path / "per_task.csv", [header, *rows])
        drawn = write_figures(tmp_path)
        finite = 6 if np.isfinite(float(bad or "nan")) else 6 - count
        assert [file.name for file in drawn] == (["tasks.png"] if finite >= 2 else [])
        assert all(map(is_picture, drawn))


@pytest.mark.parametrize(("metric", "bad"), [("accuracy", "nan"), *(("r2", bad) for bad in BAD)])
def test_named_tasks(metric: str, bad: str, tmp_path: Path) -> None:
    header = ["task", "metric", "better", "train_examples", "train", "val", "test", "constant"]
    for columns in ([0, 1, 2], [2]):
        scores = [bad if i in columns else "0.5" for i in range(3)]
        rows = [["1", metric, "higher", 40, *scores, bad], ["other", metric, "higher", 20, "0.1", "0.2", "0.3", ""]]
        write(tmp_path / "per_task.csv", [header, *rows])
        (file,) = write_figures(tmp_path)
        assert is_picture(file)


@pytest.mark.parametrize("bad", BAD[:-1])
def test_gradients(bad: str, tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    for affected in (1, 6):
        pairs = [
            [s, i, j, *([bad, bad] if n < affected else ["0.5", "1e-3"])]
            for s in (0, 8)
            for n, (i, j) in enumerate(itertools.permutations(names, 2))
        ]
        shares = [[s, name, bad, bad if n < affected else "0.3"] for s in (0, 8) for n, name in enumerate(names)]
        write(tmp_path / PAIRS, [[*COLUMNS[PAIRS]], *pairs])
        write(tmp_path / SHARES, [[*COLUMNS[SHARES]], *shares])
        assert all(map(is_picture, write_conflict_figures(tmp_path)))
        assert set(gradient_shares(tmp_path)) == set(names)


@pytest.mark.parametrize(
    "damage", ["a,b\r\n", "step,task,norm,share\r\n0,a,x,1\r\n", "step,task,norm,share\r\n0,a\r\n", "\0"]
)
def test_a_damaged_table_of_gradients_is_a_line(damage: str, tmp_path: Path) -> None:
    (tmp_path / SHARES).write_text(damage + "\n")
    for read in (lambda: cut_rows(tmp_path / SHARES, 3), lambda: gradient_shares(tmp_path)):
        with pytest.raises(UserError, match=r"gradient_share\.csv is damaged"):
            read()


def test_gradients_of_tasks_without_a_share_are_a_line(tmp_path: Path) -> None:
    write(tmp_path / PAIRS, [[*COLUMNS[PAIRS]], [0, "a", "b", "0.5", ""]])
    write(tmp_path / SHARES, [[*COLUMNS[SHARES]], [0, "a", "1", "1"]])
    with pytest.raises(UserError, match=r"gradient_conflict\.csv is damaged"):
        write_conflict_figures(tmp_path)
