"""Names in tables that a spreadsheet would run, and that come back as they were."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_meta.cells import as_cell, as_text
from lightning_meta.cli.predict import _write
from lightning_meta.errors import UserError
from lightning_meta.report.figures import columns_of
from lightning_meta.report.transfer import compare, write_report
from lightning_meta.run.gradient_table import COLUMNS, PAIRS, SHARES, append_rows, cut_rows, gradient_shares, read_rows
from lightning_meta.run.results import write_report as write_tables
from lightning_meta.run.tables import read_table
from tests.report.transfer_runs import Simulated, write_run
from tests.robustness.fuzzing import short

RUN = "=+-@\t\r\n"
NAMES = ["=HYPERLINK(1)", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\tx", "'=x", "''", "'", "plain", "-0.5", "x=1"]


def cells(file: Path) -> list[str]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [cell for row in csv.reader(lines) for cell in row]


def harmless(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return not cell or cell[0] not in RUN
    return True


@short
@given(st.text("=+-@\t\r\n'a1. ", max_size=5) | st.text(max_size=8))
def test_every_text_comes_back_and_none_is_run(text: str) -> None:
    assert as_text(as_cell(text)) == text
    assert as_text(text) == text or as_cell(text) != text
    assert harmless(as_cell(text))


def test_numbers_stay_numbers() -> None:
    for value in (-0.5, 3, float("-inf"), None, "-0.5", "+1e-05", "-inf"):
        assert as_cell(value) is value


class Answers:
    """A predictor of two classes."""

    classes = ("=a", "b")

    def probabilities(self, images: Any) -> Any:
        return torch.tensor([[0.75, 0.25]])


def test_no_table_that_is_written_holds_a_formula(tmp_path: Path) -> None:
    """All tables that are read again have the same names of tasks."""
    tasks = {name: Simulated(np.arange(40) % 2, gradient_share=0.1) for name in NAMES}
    for method in ("=independent", "shared"):
        run = write_run(tmp_path / method / "0", tasks)
        rows = [{"task": name, **dict.fromkeys(("train", "val", "test"), -0.5)} for name in NAMES]
        with (run / "per_task.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))  # as it was written before, which is still read
        write_tables(run, {"per_task": rows, "predictions": dict(np.load(run / "predictions.npz"))})
    report = compare([tmp_path / "shared"], [tmp_path / "=independent"])
    assert [task.task for task in report.methods[0].tasks] == NAMES
    write_report(report, tmp_path / "report")
    assert columns_of(run / "per_task.csv", "task")["task"].tolist() == NAMES
    append_rows(tmp_path / SHARES, 1, [(name, 1.0, 1 / len(NAMES)) for name in NAMES])
    append_rows(tmp_path / PAIRS, 1, [(a, b, -0.5, float("nan")) for a in NAMES for b in NAMES])
    before = (tmp_path / PAIRS).read_bytes()
    cut_rows(tmp_path / PAIRS, 2)
    assert (tmp_path / PAIRS).read_bytes() == before
    assert list(gradient_shares(tmp_path)) == NAMES
    with (tmp_path / "predictions.csv").open("w", newline="") as out:
        _write(out, Answers(), iter([([Path("=x.png")], torch.zeros(1))]), Counter())  # type: ignore[arg-type]
    tables = [*tmp_path.rglob("*.csv")]
    assert len(tables) == 8
    assert [(file.name, cell) for file in tables for cell in cells(file) if not harmless(cell)] == []
    assert json.loads((tmp_path / "report" / "transfer.json").read_text())["methods"][0]["tasks"][0]["task"] == NAMES[0]


def test_an_escaped_column_and_the_same_one_without_are_two_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("'=a,=a\n1,2\n")
    with pytest.raises(UserError, match="two of its columns have one name"):
        read_table(tmp_path / "a.csv")


@pytest.mark.parametrize("name", [SHARES, PAIRS])
@pytest.mark.parametrize("row", ["x,a,b,1,1", "1,a,b,x,1", "1,a," + "9" * 200_000 + ",1,1"])
def test_a_damaged_table_of_gradients_is_one_line(name: str, row: str, tmp_path: Path) -> None:
    row = row.replace(",b", "") if name == SHARES else row
    (tmp_path / name).write_text(",".join(COLUMNS[name]) + f"\n{row}\n")
    with pytest.raises(UserError, match=f"{name} is damaged"):
        list(read_rows(tmp_path / name))
