"""`lightning-meta compare`, as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_meta.cli import main
from tests.report.transfer_runs import Simulated, write_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    for method, better in (("independent", 0), ("multi_head", 25)):
        for seed in (1, 2, 3):
            right = {"greek": np.arange(80) < 40 + better + seed, "latin": np.arange(80) < 50 + seed}
            tasks = {name: Simulated(scores.astype(float)) for name, scores in right.items()}
            write_run(tmp_path / "runs" / method / str(seed), tasks, seed=seed)
    return tmp_path


def test_the_report_on_the_terminal_and_in_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "runs/multi_head", "--baseline", "runs/independent", "--out", "there"]) == 0
    said = capsys.readouterr().out
    for shown in ("greek", "+31.2", "▲ helped", "no difference shown", "Δm ↑", "3 seeds (1, 2, 3)", "written to there"):
        assert shown in said
    assert {f.name for f in Path("there").iterdir()} == {"transfer.csv", "transfer.json", "forest.png", "gap.png"}


@pytest.mark.slow
def test_the_script_takes_a_shell_pattern() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), *sorted(map(str, Path("runs").iterdir()))]
    done = subprocess.run([*command, "--baseline", "runs/independent"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "multi_head against independent" in done.stdout
    assert Path("report/transfer.csv").is_file()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["runs/multi_head"], "--baseline"),
        (["--baseline", "runs/independent"], "RUN must be given"),
        (["runs/none", "--baseline", "runs/independent"], "runs/none: there is no such run directory"),
        (["runs/multi_head", "--baseline", "runs/independent/1"], "runs are paired by seed"),
        (["runs/multi_head", "--baseline", "runs/independent", "--ot=x"], "--ot: there is no such option"),
        (
            ["runs/multi_head", "--baseline", "runs/independent", "--out", "runs/multi_head/1/config.yaml"],
            "name another",
        ),
    ],
)
def test_mistakes_end_in_one_line(options: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("lightning-meta: error: ")
    assert line in said


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["compare", "--help"])
    assert "--wandb_project" in capsys.readouterr().out


@pytest.mark.slow
def test_tables_go_to_wandb_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # which reads the environment once a process
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = ["compare", "runs/multi_head", "--baseline", "runs/independent", "--wandb_project", "transfer"]
    assert main(options) == 0
    (run,) = Path("report/wandb").glob("offline-run-*")
    (table,) = run.glob("files/media/table/transfer/tasks*.json")
    content = json.loads(table.read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert {row["task"]: row["verdict"] for row in rows} == {"greek": "helped", "latin": "no difference shown"}
    assert list(run.glob("files/media/images/transfer/forest*.png"))
