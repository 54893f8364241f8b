"""SIGTERM and Ctrl-C stop a run with their status and one line, and it goes on as if it had never stopped."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_meta.cli import main
from lightning_meta.cli.main import COMMANDS
from lightning_meta.run import read_checkpoint
from tests.run.test_resume import MODEL, SCHEDULES, fingerprint
from tests.run.toys import ToyData, ToyModule

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


CASES: list[Any] = [("SIGTERM", "apart", moment) for moment in MOMENTS]
CASES += [pytest.param("SIGTERM", "accumulating", moment, marks=pytest.mark.slow) for moment in MOMENTS]
CASES += [("Ctrl-C", "apart", moment) for moment in ("in a step", "in a validation", "in the test")]
SIGNALS = {"SIGTERM": (signal.SIGTERM, 143), "Ctrl-C": (signal.SIGINT, 130)}


class Stops(Callback):
    """Sends a signal to this process.

    Args:
        hook: Hook of the callback in which the signal is sent.
        step: Number of training steps after which the signal is sent.
        number: Number of the signal.
        times: Number of signals.
    """

    def __init__(self, hook: str, step: int, number: int, times: int = 1) -> None:
        self.step, self.number, self.times = step, number, times
        setattr(self, hook, self._send)

    def _send(self, trainer: Any, *args: Any, **options: Any) -> None:
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def sends(**options: Any) -> list[str]:
    given = [f"--trainer.callbacks.{name}={value}" for name, value in options.items()]
    return ["--trainer.callbacks+=tests.robustness.test_sigterm.Stops", *given]


def fit(folder: Path, schedule: str, *options: str) -> int:
    every = ["--trainer.max_steps=23", "--trainer.log_every_n_steps=1"]
    return main(["fit", *MODEL, f"--runs={folder}", *SCHEDULES[schedule], *every, *options])


@pytest.mark.parametrize(("name", "schedule", "moment"), CASES)
def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, name: str, schedule: str, moment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hook, step = MOMENTS[moment]
    number, status = SIGNALS[name]
    handlers = [signal.getsignal(n) for n, _ in SIGNALS.values()]
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path / "stopped", schedule, *sends(hook=hook, step=step, number=int(number)))
    assert stopped.value.code == status
    said = capsys.readouterr().err.strip()
    last = tmp_path / "stopped" / "toy" / "0" / "checkpoints" / "last.ckpt"
    assert said.count("\n") == 0
    assert said.startswith("stopped in step")
    run = tmp_path / "stopped" / "toy" / "0"
    assert said.endswith(f"by {name}; resume with `lightning-meta fit --config {run}/config.yaml --ckpt_path {run}`")
    assert [signal.getsignal(n) for n, _ in SIGNALS.values()] == handlers
    assert fit(tmp_path / "stopped", schedule, f"--ckpt_path={last}") == 0
    assert fit(tmp_path / "whole", schedule) == 0
    assert fingerprint(tmp_path / "stopped" / "toy" / "0") == fingerprint(tmp_path / "whole" / "toy" / "0")


def test_the_printed_command_resumes_the_run_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my runs"
    with pytest.raises(SystemExit):
        fit(folder, "apart", *sends(hook="on_before_optimizer_step", step=5, number=int(signal.SIGTERM)))
    command = re.findall(r"resume with `lightning-meta (.*)`", capsys.readouterr().err)[0]
    assert main(shlex.split(command)) == 0
    assert [run.name for run in (folder / "toy").iterdir() if run.is_dir()] == ["0"]
    results = json.loads((folder / "toy" / "0" / "results.json").read_text())
    assert results["steps"] == 23


@pytest.mark.parametrize("name", SIGNALS)
def test_a_step_that_ends_is_not_lost(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    number, status = SIGNALS[name]
    stop = sends(hook="on_before_optimizer_step", step=5, number=int(number))
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, "apart", "--checkpoint.every_n_steps=1000", *stop)
    assert stopped.value.code == status
    assert capsys.readouterr().err.strip().startswith(f"stopped in step 6 by {name}; ")
    assert read_checkpoint(tmp_path / "toy" / "0" / "checkpoints" / "last.ckpt")["global_step"] == 6
    metrics = (tmp_path / "toy" / "0" / "metrics.csv").read_text()
    assert len(metrics.splitlines()) > 6


def test_a_second_control_c_interrupts_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = sends(hook="on_before_optimizer_step", step=5, number=int(signal.SIGINT), times=2)
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, "apart", *stop)
    assert stopped.value.code == 130
    assert capsys.readouterr().err.strip().startswith("stopped in step 5 by Ctrl-C; ")
    assert read_checkpoint(tmp_path / "toy" / "0" / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_control_c_in_the_set_up_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, "apart", *sends(hook="setup", step=0, number=int(signal.SIGINT)))
    assert stopped.value.code == 130
    assert capsys.readouterr().err.strip() == (
        "stopped in step 0 by Ctrl-C; there is no checkpoint yet: start it again"
    )
    assert not (tmp_path / "toy").exists()  # the next run is the first one


def test_control_c_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """A run in the background of a script ignores it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert fit(tmp_path, "apart", *sends(hook="on_test_batch_end", step=23, number=int(signal.SIGINT))) == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("command", ["predict", "curves", "compare", "test", "fit"])
def test_control_c_in_any_command_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, command, pressed)
    assert main([command]) == 130
    assert capsys.readouterr().err.strip() == "lightning-meta: stopped by Ctrl-C"


def test_control_c_that_lightning_heeds_itself_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(self: Any, *args: Any) -> None:
        raise KeyboardInterrupt

    module, data = ToyModule(torch.nn.Linear(5, 5)), ToyData()
    monkeypatch.setattr(ToyModule, "test_step", pressed)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    monkeypatch.setitem(COMMANDS, "test", lambda args: trainer.test(module, datamodule=data))
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(["test"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    assert capsys.readouterr().err.strip().endswith("lightning-meta: stopped by Ctrl-C")
