"""SIGTERM stops a run with status 143 and one line, and the run goes on as if it had never stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from lightning_meta.cli import main
from tests.run.test_resume import MODEL, SCHEDULES, fingerprint

MOMENTS = {
    "before the first step": ("on_train_batch_start", 0),
    "in a step": ("on_before_optimizer_step", 5),
    "in the step before a checkpoint": ("on_before_optimizer_step", 8),
    "in the step before a validation": ("on_before_optimizer_step", 7),
    "in the last step of an epoch": ("on_before_optimizer_step", 9),
    "in a validation": ("on_validation_batch_end", 8),
    "in the last step of all": ("on_before_optimizer_step", 22),
    "in the test": ("on_test_batch_end", 23),
}


class Terminated(Callback):
    """Sends SIGTERM to this process.

    Args:
        hook: Within which hook.
        step: After how many training steps.
    """

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._send)

    def _send(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(folder: Path, schedule: str, *options: str) -> int:
    every = ["--trainer.max_steps=23", "--trainer.log_every_n_steps=1"]
    return main(["fit", *MODEL, f"--runs={folder}", *SCHEDULES[schedule], *every, *options])


@pytest.mark.parametrize("schedule", ["apart", "accumulating"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_terminated_run_goes_on_bit_for_bit(
    tmp_path: Path, moment: str, schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hook, step = MOMENTS[moment]
    handler = signal.getsignal(signal.SIGTERM)
    sends = ["--trainer.callbacks+=tests.robustness.test_sigterm.Terminated"]
    sends += [f"--trainer.callbacks.hook={hook}", f"--trainer.callbacks.step={step}"]
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path / "stopped", schedule, *sends)
    assert stopped.value.code == 143
    said = capsys.readouterr().err.strip()
    last = tmp_path / "stopped" / "toy" / "0" / "checkpoints" / "last.ckpt"
    assert said.count("\n") == 0
    assert said.startswith("stopped in step")
    assert said.endswith(f"by SIGTERM; go on with --ckpt_path {last}")
    assert signal.getsignal(signal.SIGTERM) is handler
    assert fit(tmp_path / "stopped", schedule, f"--ckpt_path={last}") == 0
    assert fit(tmp_path / "whole", schedule) == 0
    assert fingerprint(tmp_path / "stopped" / "toy" / "0") == fingerprint(tmp_path / "whole" / "toy" / "0")


def test_a_step_that_ends_is_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sends = ["--trainer.callbacks+=tests.robustness.test_sigterm.Terminated"]
    sends += ["--trainer.callbacks.hook=on_before_optimizer_step", "--trainer.callbacks.step=5"]
    with pytest.raises(SystemExit):
        fit(tmp_path, "apart", "--checkpoint.every_n_steps=1000", *sends)
    assert capsys.readouterr().err.strip().startswith("stopped in step 6 ")
    metrics = (tmp_path / "toy" / "0" / "metrics.csv").read_text()
    assert len(metrics.splitlines()) > 6
