"""One trial of a sweep: a run of `fit` in a process of its own, and a lock that says whether anybody works on it."""

from __future__ import annotations

import csv
import fcntl
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning_meta.errors import UserError

LOCK, LOG = "lock", "log"
GRACE = 60.0  # seconds to write a checkpoint in


@contextmanager
def working_on(folder: Path, wait: bool = False) -> Iterator[int | None]:
    """Hold a trial's folder; the descriptor of its lock, or None where somebody else holds it.

    A process that is given the descriptor holds it, too, for as long as it lives, and nobody does once all are dead.

    Args:
        folder: The folder.
        wait: Until nobody else does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield file.fileno()


def run_trial(folder: Path, options: Sequence[str], lock: int) -> None:
    """Train, or go on with, the run of a trial; what it prints goes to `folder/log`.

    Args:
        folder: The trial's folder, where the run directory becomes `folder/0`.
        options: Of `fit`.
        lock: The descriptor that says that somebody works here.

    Raises:
        KeyboardInterrupt: It was stopped, and can be gone on with.
        UserError: `fit` refused the options; its line.
        FloatingPointError: Training failed; its line.
    """
    place = ["--runs", str(folder.parent), "--name", folder.name, "--trainer.enable_progress_bar=false"]
    started = (folder / "0" / "checkpoints" / "last.ckpt").is_file()
    again = ["--ckpt_path", str(folder / "0")] if started else []
    command = [sys.executable, "-m", "lightning_meta.cli", "fit", *options, *place, *again]
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock])
        try:
            status = process.wait()
        except KeyboardInterrupt:  # which the run was sent, too: it writes its last checkpoint
            process.wait(GRACE)
            raise
    if status in (130, 143):
        raise KeyboardInterrupt
    if status:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        line = lines[-1].removeprefix("lightning-meta: error: ")
        if status == 1:
            raise FloatingPointError(line)
        raise UserError(f"{line or 'failed without a word'} (see {folder / LOG})")


def is_finished(folder: Path) -> bool:
    """Whether the trial's run has its results."""
    return (folder / "0" / "results.json").is_file()


def reached(folder: Path, metric: str, maximize: bool) -> float:
    """The best value of a validation metric in a finished run.

    Raises:
        UserError: It was never logged.
    """
    with (folder / "0" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        values = [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        raise UserError(f"{metric} was never logged: train for longer or validate sooner, or mend the sweep's metric")
    return max(finite) if maximize else min(finite)
