"""The run directory is claimed once, and its metrics file can be cut and continued."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning_meta.run import RunLogger


def test_no_directory_before_it_is_asked_for(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "runs", "a")
    assert not (tmp_path / "runs").exists()
    assert logger.directory == tmp_path / "runs" / "a" / "0"
    assert RunLogger(tmp_path / "runs", "a").directory.name == "1"


def test_runs_that_start_at_once_get_different_versions(tmp_path: Path) -> None:
    loggers = [RunLogger(tmp_path, "a") for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        directories = list(pool.map(lambda logger: logger.directory, loggers))
    assert len(set(directories)) == 16


def test_one_row_a_step_and_new_columns_later(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.log_metrics({"lr": 0.1}, 0)
    logger.log_metrics({"train/loss": 2.0}, 0)
    logger.log_metrics({"lr": 0.1, "train/loss": 1.0}, 1)
    logger.log_metrics({"val/accuracy": 0.5}, 1)
    logger.finalize("success")
    assert logger.file.read_text().splitlines() == [
        "step,lr,train/loss,val/accuracy",
        "0,0.1,2.0,",
        "1,0.1,1.0,0.5",
    ]


def test_a_cut_file_forgets_rows_and_columns(tmp_path: Path) -> None:
    first = RunLogger(tmp_path)
    first.log_metrics({"a": 1.0}, 0)
    first.log_metrics({"b": 2.0}, 1)
    first.flush()
    with first.file.open("a") as file:
        file.write("2,3.")  # what a kill leaves
    assert first.version is not None
    second = RunLogger(tmp_path, version=first.version)
    second.cut(1)
    second.log_metrics({"c": 3.0}, 1)
    second.flush()
    assert second.file.read_text().splitlines() == ["step,a,c", "0,1.0,", "1,,3.0"]


def test_discarding_leaves_nothing(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "runs", "a")
    logger.log_metrics({"a": 1.0}, 0)
    logger.flush()
    logger.discard()
    assert list(tmp_path.iterdir()) == []
