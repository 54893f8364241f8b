"""One trial of a sweep: a run of `fit` in a process of its own, and locks that say whether anybody works on it."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lightning_meta.cli.sweep.signals import POLL, Signals
from lightning_meta.errors import UserError
from lightning_meta.run.tables import numbers_of, read_table

LOCK, RUN, LOG = "lock", "run.pid", "log"
FIT = (sys.executable, "-m", "lightning_meta.cli", "fit")
ERROR = "lightning-meta: error: "
GRACE = 60.0  # seconds to write a checkpoint in
TOGETHER = 1.0  # seconds within which a signal that is meant for all reaches all
STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM)}


class OtherMetricError(UserError):
    """A run has validation metrics, but not the one that the sweep is about."""


@contextmanager
def working_on(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a folder; False where somebody else holds it. Nobody does once its holder is dead.

    Args:
        folder: Of a sweep or of a trial.
        wait: Until nobody else does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        yield _locked(file, wait)


def run_trial(folder: Path, options: Sequence[str], signals: Signals) -> None:
    """Train, or go on with, the run of a trial; what it prints goes to `folder/log`.

    Args:
        folder: The trial's folder, where the run directory becomes `folder/0`.
        options: Of `fit`.
        signals: Those that stop this process; the run is stopped, too.

    Raises:
        StoppedBySignal: There was one; the run can be gone on with.
        UserError: `fit` refused the options, with its line, crashed, or was killed.
        FloatingPointError: Training failed; its line.
    """
    with (folder / RUN).open("ab") as running:
        _wait_for_orphan(folder, running, signals)
        if _is_finished(folder):
            return
        place = ["--runs", str(folder.parent), "--name", folder.name, "--trainer.enable_progress_bar=false"]
        command = [*FIT, *options, *place, *_resumed(folder)]
        running.truncate(0)
        with (folder / LOG).open("ab") as log:
            # The run holds the lock beside this process. A session of its own: Ctrl-C reaches it once, from here.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[running.fileno()],
                start_new_session=True,
            )
        running.write(str(process.pid).encode())
        running.flush()
        _check_status(_tended(process, signals), folder / LOG, signals)


def reached(folder: Path, metric: str, maximize: bool) -> float:
    """The best value of a validation metric in a finished run.

    Raises:
        OtherMetricError: Only other metrics were logged.
        UserError: None was, or the file is damaged.
        FloatingPointError: It was never finite.
    """
    file = folder / "0" / "metrics.csv"
    columns, rows = read_table(file) if file.is_file() else ([], [])
    values = dict(zip(columns, zip(*rows, strict=True), strict=False))
    logged = sorted(name for name, column in values.items() if any(column) and name.startswith("val/"))
    if not logged:
        raise UserError("no validation metric was logged: train for longer or validate sooner")
    if metric not in logged:
        raise OtherMetricError(f"metric: {metric} was never logged; mend the sweep's file: {', '.join(logged)} were")
    finite = [value for value in numbers_of(file, metric, values[metric]) if math.isfinite(value)]
    if not finite:
        raise FloatingPointError(f"{metric} was never finite")
    return max(finite) if maximize else min(finite)


def _locked(file: IO[bytes], wait: bool) -> bool:
    try:
        import fcntl
    except ImportError as error:
        raise UserError(
            "a search here needs the file locks of Linux or macOS; elsewhere run the same file by `wandb sweep`"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _wait_for_orphan(folder: Path, running: IO[bytes], signals: Signals) -> None:
    """Let a run end whose sweep was killed while it was not."""
    told = False
    while not _locked(running, wait=False):
        if not told:
            pid = (folder / RUN).read_text(encoding="utf-8")
            print(f"{folder.name} still runs by itself (process {pid}); waiting for its end", flush=True)
        told = True
        signals.check_for(POLL)


def _is_finished(folder: Path) -> bool:
    return (folder / "0" / "results.json").is_file()


def _resumed(folder: Path) -> list[str]:
    """How `fit` goes on with the run; one that was killed before its first checkpoint makes room for another."""
    if (folder / "0" / "checkpoints" / "last.ckpt").is_file():
        return ["--ckpt_path", str(folder / "0")]
    for old in folder.iterdir():
        if old.name.isdigit():
            shutil.rmtree(old)
    return []


def _tended(process: subprocess.Popen[bytes], signals: Signals) -> int:
    """The status of a run that ends by itself; one that is stopped has a while for its last checkpoint."""
    while signals.number is None:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(POLL)
    process.terminate()
    end = time.monotonic() + GRACE
    while process.poll() is None and signals.count == 1 and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()  # nothing, where it has ended
    process.wait()
    signals.check()
    raise AssertionError


def _check_status(status: int, log: Path, signals: Signals) -> None:
    if status == 0:
        return
    if status < 0 or status in STOPPED:
        signals.check_for(TOGETHER)
        name = signal.Signals(-status if status < 0 else status - 128).name
        hint = " (is there too little memory?)" if name == "SIGKILL" else ""
        raise UserError(f"its process was ended by {name}{hint}, see {log}")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["failed without a word"]
    if status == 1 and lines[-1].startswith(ERROR):
        raise FloatingPointError(lines[-1].removeprefix(ERROR))
    raise UserError(f"{lines[-1].removeprefix(ERROR)} (see {log})")
