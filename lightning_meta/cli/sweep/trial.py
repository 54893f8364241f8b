"""One trial of a sweep: a run of `fit` in a child process, and the value of its metric."""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from lightning_meta.cli.children import ERROR, POLL, Children, last_line
from lightning_meta.errors import UserError
from lightning_meta.run.directory import is_held
from lightning_meta.run.tables import numbers_of, read_columns
from lightning_meta.signals import Signals

RUN, LOG = "0", "log"
TOGETHER = 1.0  # seconds within which a signal to the process group reaches all processes
HELD = 300.0  # seconds to wait for the run of a killed sweep, which stops on its own
STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM)}


class OtherMetricError(UserError):
    """A run logged validation metrics, but not the metric of the sweep."""


def run_trial(folder: Path, options: Sequence[str], signals: Signals) -> None:
    """Train or resume the run of a trial, with its output in `folder/log`.

    Args:
        folder: Folder of the trial; the run directory is `folder/0`.
        options: Options of `fit`.
        signals: Signals that stop this process and the run.

    Raises:
        StoppedBySignal: A signal stopped the run, which can be resumed.
        UserError: `fit` refused the options, crashed or was killed.
        FloatingPointError: Training failed, with the message of `fit`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _wait_for_orphan(folder, signals)
    if (folder / RUN / "results.json").is_file():
        return
    place = ["--runs", str(folder.parent), "--name", folder.name]
    with Children(signals) as children:
        children.start([*options, *place, *_resumed(folder)], folder / LOG)
        status = children.next_ended().returncode
    _check_status(status, folder / LOG, signals)


def reached(run: Path, metric: str, maximize: bool) -> float:
    """The best value of a validation metric in a finished run.

    Args:
        run: The run directory.
        metric: Logged name of the metric.
        maximize: Whether higher is better.

    Raises:
        OtherMetricError: Only other validation metrics were logged.
        UserError: No validation metric was logged, or the file is damaged.
        FloatingPointError: The metric was never finite.
    """
    file = run / "metrics.csv"
    values = read_columns(file) if file.is_file() else {}
    logged = sorted(name for name, column in values.items() if any(column) and name.startswith("val/"))
    if not logged:
        raise UserError("no validation metric was logged: train for longer or validate sooner")
    if metric not in logged:
        raise OtherMetricError(
            f"metric: {metric} was never logged; name one of {', '.join(logged)} in the sweep's file"
        )
    finite = [value for value in numbers_of(file, metric, values[metric]) if math.isfinite(value)]
    if not finite:
        raise FloatingPointError(f"{metric} was never finite")
    return max(finite) if maximize else min(finite)


def _wait_for_orphan(folder: Path, signals: Signals) -> None:
    """Wait for the end of a run whose sweep was killed."""
    if is_held(folder / RUN):
        print(
            f"{folder.name} is still running after its sweep was killed; waiting for its end, at most {HELD:.0f} s",
            flush=True,
        )
    end = time.monotonic() + HELD
    while is_held(folder / RUN):
        if time.monotonic() > end:
            raise UserError(
                f"another process is still training {folder / RUN} after {HELD:.0f} s; stop it, then try again"
            )
        signals.check(POLL)


def _resumed(folder: Path) -> list[str]:
    """The options that resume the run; a run without a checkpoint is removed, and started again."""
    if (folder / RUN / "checkpoints" / "last.ckpt").is_file():
        return ["--ckpt_path", str(folder / RUN)]
    for old in folder.iterdir():
        if old.name.isdigit():
            shutil.rmtree(old)
    return []


def _check_status(status: int, log: Path, signals: Signals) -> None:
    if status == 0:
        return
    if status < 0 or status in STOPPED:
        signals.check(TOGETHER)
        name = signal.Signals(-status if status < 0 else status - 128).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise UserError(f"its process was killed by {name}{hint}, see {log}")
    line = last_line(log)
    if status == 1 and line.startswith(ERROR):
        raise FloatingPointError(line.removeprefix(ERROR))
    raise UserError(f"{line.removeprefix(ERROR)} (see {log})")
