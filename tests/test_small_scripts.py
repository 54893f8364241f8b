"""Scripts that print a table: the best possible results, and columns of a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

import best_possible
import pytest
import show_csv
from reproducing.rows import ROOT


def test_columns_of_a_file_are_shown_in_the_order_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "verdicts.csv"
    file.write_text(
        'rung,delta,verdict\nequal,0.00331234,"no difference, a|b"\nlong name.of many words,-12.34567,hurt\n'
    )
    assert show_csv.main([str(file), "--columns", "verdict", "rung", "delta"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| verdict | rung | delta |",
        "| --- | --- | --- |",
        r"| no difference, a\|b | equal | 0.0033 |",
        "| hurt | long name.of many words | -12.3 |",
    ]
    assert show_csv.main([str(file), "--columns", "delte"]) == 2
    assert "has no column 'delte', only rung, delta, verdict" in capsys.readouterr().err
    assert show_csv.main([str(tmp_path / "none.csv")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_published_figure_beats_the_best_possible_one() -> None:
    likelihood, error = best_possible.gaussian_process()
    with (ROOT / "docs" / "reproduction" / "few_shot_seeds.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["row"].endswith("gaussian_process")]
    for name, best in (("negative log likelihood", likelihood), ("MSE", error)):
        reached = min(float(row["value"]) for row in rows if name in row["figure"])
        assert best < reached < best + 0.3
