"""The best checkpoint is the one that a person would pick from the table of validations."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_meta.cli import main
from lightning_meta.modes import Mode
from lightning_meta.run import read_checkpoint
from lightning_meta.run.monitors import BestScore
from tests.run.scripted import OPTIONS

VALUES = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 1.0])


@given(st.lists(st.tuples(VALUES, VALUES), max_size=8), st.sampled_from(["max", "min"]), st.integers(0, 8))
def test_the_best_of_any_validations(pairs: list[tuple[float, float]], mode: Mode, resumed_at: int) -> None:
    best, chosen = BestScore(mode), None
    for i, (score, loss) in enumerate(pairs):
        if i == resumed_at:
            state, best = best.state_dict(), BestScore(mode)
            best.load_state_dict(state)
        if best.take(score, loss):
            chosen = i
    bad_end = -math.inf if mode == "max" else math.inf
    sign = -1 if mode == "max" else 1
    usable = [i for i, (score, _) in enumerate(pairs) if not math.isnan(score) and score != bad_end]

    def rank(i: int) -> tuple[float, float, int]:
        score, loss = pairs[i]
        return sign * score, math.inf if math.isnan(loss) else loss, i

    assert chosen == min(usable, key=rank, default=None)
    assert best.validations == len(pairs)


def test_in_a_damaged_checkpoint_nan_is_not_the_best_and_text_is_refused() -> None:
    best = BestScore("max")
    with pytest.raises(TypeError):  # which the run reports in one line
        best.load_state_dict({"best_score": "a", "best_loss": 1.0, "validations": 2})
    best.load_state_dict({"best_score": math.nan, "best_loss": 1.0, "validations": 2})
    assert best.take(0.1)


def fit(folder: Path, validations: int, *options: str) -> tuple[int, Path]:
    status = main(["fit", *OPTIONS, f"--runs={folder}", f"--trainer.max_steps={2 * validations}", *options])
    return status, folder / "toy" / "0"


def best_validation(run: Path) -> int:
    return read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] // 2 - 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["scores=nan,3.9,4.0"], 2),
        (["scores=nan,0.5,inf,nan", "metric=val/mse"], 1),  # infinite at the bad end
        (["scores=0.5,0.7,0.7", "losses=1,3,2"], 2),
        (["scores=0.5,0.7,0.7", "losses=1,2,2"], 1),
        (["scores=0.7,0.7,nan", "losses=nan,5,1"], 1),
        (["scores=0.7,0.7"], 0),
        (["scores=3,2,4", "metric=val/loss"], 1),
        (["scores=3,2,4", "metric=val/error_rate"], 1),
    ],
)
def test_a_run_keeps_and_tests_the_best(tmp_path: Path, options: list[str], expected: int) -> None:
    given_options = [f"--model.{option}" for option in options]
    metric = next((o.partition("=")[2] for o in options if o.startswith("metric")), "val/accuracy")
    validations = len(options[0].split(","))
    status, run = fit(tmp_path, validations, *given_options, f"--checkpoint.monitor={metric}")
    assert status == 0
    assert best_validation(run) == expected


def test_a_run_without_any_score_says_so_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, run = fit(tmp_path, 3, "--model.scores=nan,nan,-inf")
    assert status == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "none of 3 validations had a finite val/accuracy" in line
    assert str(run / "checkpoints" / "last.ckpt") in line
    assert {file.name for file in (run / "checkpoints").iterdir()} == {"last.ckpt"}
    assert not (run / "results.json").exists()
    # With more validations the run has a best one.
    status, run = fit(tmp_path, 4, "--model.scores=nan,nan,-inf,0.5", "--ckpt_path=last", "--allow_changes")
    assert status == 0
    assert best_validation(run) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint.monitor=val/foo"], "checkpoint.mode: give max or min"),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/accuracy"],
            "EarlyStopping: val/accuracy is good where it is large, and mode is min; give mode: max",
        ),
        (
            ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.monitor=val/accuracy"],
            "ModelCheckpoint: val/accuracy is good where it is large",
        ),
    ],
)
def test_the_wrong_way_round_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    status, run = fit(tmp_path, 1, *options)
    assert status == 2
    assert message in capsys.readouterr().err
    assert not run.exists()


def test_a_mode_that_is_given_holds_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        status, run = fit(tmp_path, 3, "--model.scores=3,2,4", "--checkpoint.mode=min")
    assert status == 0
    assert best_validation(run) == 1
    assert "val/accuracy is good where it is large, and mode is min" in caplog.text


@pytest.mark.parametrize("lost", ["missing", "damaged"])
def test_a_resumed_run_without_its_best_checkpoint_keeps_the_best_from_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    scores = "--model.scores=0.9,0.1,0.3,0.2"
    assert fit(tmp_path, 2, scores)[0] == 0
    best = tmp_path / "toy" / "0" / "checkpoints" / "best.ckpt"
    data: Any = best.read_bytes()
    best.unlink()
    if lost == "damaged":
        best.write_bytes(data[: len(data) // 2])
    with caplog.at_level(logging.WARNING):
        status, run = fit(tmp_path, 4, scores, "--ckpt_path=last")
    assert status == 0
    assert best_validation(run) == 2
    assert "best.ckpt (val/accuracy 0.9)" in caplog.text
