"""Output that goes to a file shows progress by lines."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lightning_meta as lm
from lightning_meta.fitting import progress_bar
from lightning_meta.fitting.progress_bar import Bar, Lines, in_words
from lightning_meta.nn import MLP
from lightning_meta.testing import toys


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "PERIOD", 0.0)


def lines_of(folder: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> list[str]:
    data = toys.pictures()
    lm.fit(lm.ProtoNet(MLP(256, (8,))), data, name="run", runs=folder, seed=0, enable_model_summary=False, **options)
    return capsys.readouterr().out.splitlines()


def test_lines_say_the_step_what_was_logged_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_of(tmp_path, capsys, max_steps=3, limit_train_batches=2, log_every_n_steps=1)
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split(",")[0] for line in steps] == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert all(line.endswith(" s left") for line in steps)
    assert "val/accuracy" in steps[2]  # after the first epoch
    assert any(line.startswith("validation, batch 1 of ") for line in lines)
    assert any(line.startswith("test, batch 1 of ") for line in lines)


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_lines_of_an_evaluation_say_the_time_left(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, *(moment for moment in (10.0, 14.0, 18.0) for _ in range(2))])
    monkeypatch.setattr("lightning_meta.fitting.progress_bar.time.monotonic", lambda: next(clock))
    lines = Lines()
    trainer: Any = SimpleNamespace(num_val_batches=[11], num_test_batches=[11])
    for batch in range(3):
        getattr(lines, f"on_{stage}_batch_end")(trainer, None, None, None, batch)
    assert capsys.readouterr().out.splitlines() == [
        f"{stage}, batch 1 of 11",
        f"{stage}, batch 2 of 11, about 36 s left",  # 4 seconds a batch, the first of which is not counted
        f"{stage}, batch 3 of 11, about 32 s left",
    ]


def test_epochs_and_accumulated_batches_are_counted_in_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"limit_train_batches": 4, "accumulate_grad_batches": 2}
    first = [line.split(",")[0] for line in lines_of(tmp_path, capsys, max_epochs=2, **options) if "step " in line]
    assert first[-1] == "step 4 of 4"


@pytest.mark.parametrize("total", [math.inf, -1])
def test_where_no_end_is_known_none_is_said(total: float, capsys: pytest.CaptureFixture[str]) -> None:
    trainer: Any = SimpleNamespace(global_step=5, estimated_stepping_batches=total, progress_bar_metrics={"a": 0.5})
    Lines().on_train_batch_end(trainer, lm.ProtoNet(MLP(4, (8,))), None, None, 0)
    assert capsys.readouterr().out == "step 5, a 0.5\n"


def test_nothing_is_printed_where_bars_are_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(tmp_path, capsys, max_steps=2, enable_progress_bar=False)
    assert not [line for line in lines if line.startswith(("step ", "test, ", "validation, "))]


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    assert isinstance(progress_bar.progress_bar(), Bar)
    monkeypatch.setattr("rich.console.Console.is_terminal", False)
    assert isinstance(progress_bar.progress_bar(), Lines)


def test_times_are_rounded() -> None:
    assert [in_words(t) for t in (3.4, 80, 600, 5 * 3600)] == ["3 s", "80 s", "10 min", "5.0 h"]
