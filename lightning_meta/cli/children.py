"""Runs of `fit` for ladders and sweeps: their options, configurations and child processes.

A child, `python -m lightning_meta.cli.children fit ...`, stops with its parent. Its standard input is a pipe that the
parent holds open and writes nothing to. It ends when the parent does, even by SIGKILL; the command then ends as by
SIGTERM, with a checkpoint.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_meta.cli.fit import ParsedOnly
from lightning_meta.errors import UserError
from lightning_meta.run.tables import numbers_of, read_columns
from lightning_meta.signals import Signals

FIT: tuple[str, ...] = (sys.executable, "-m", "lightning_meta.cli.children", "fit")
ERROR = "lightning-meta: error: "
GRACE = 60.0  # seconds that a child has to write its last checkpoint
POLL = 0.1  # seconds
TOGETHER = 1.0  # seconds within which a signal to the process group reaches all processes
STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM)}


def by_option(words: Iterable[str]) -> list[tuple[str, str, list[str]]]:
    """Split a command line into options: the name, such as `--trainer.max_steps`, the value, and the words of each."""
    options: list[list[str]] = []
    for word in words:
        if not options or (word.startswith("-") and not word[1:2].isdigit()):
            options.append([])
        options[-1].append(word)
    parts = [(*option[0].partition("="), option) for option in options]
    return [(name, " ".join([value, *option[1:]]).strip(), option) for name, _, value, option in parts]


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration of `fit` for its options, as plain data; a `UserError` if `fit` refuses them."""
    cli = ParsedOnly(arguments)
    config: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))
    return config


class Children:
    """Starts runs and waits for them. At the end of `with`, runs that have not ended are stopped.

    A child is asked by SIGTERM, so that it writes a checkpoint, and killed after a minute or at a further signal. If
    this process is killed, its children stop by themselves.
    """

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Children:
        """Enter the context; no process is started."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the runs that have not ended."""
        for process in self._running:
            process.terminate()
        before, deadline = self._signals.count, time.monotonic() + GRACE
        while any(process.poll() is None for process in self._running):
            if before >= 2 or self._signals.count > before or time.monotonic() >= deadline:
                break
            time.sleep(0.02)
        for process in self._running:
            process.kill()  # does nothing to one that has ended
            process.communicate()  # closes its input

    def start(self, arguments: Sequence[str], log: Path, threads: int | None = None) -> subprocess.Popen[bytes]:
        """Start `fit` with options, a log to which its output is appended, and by default as many threads as here."""
        share = {} if threads is None else {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        with log.open("ab") as output:
            # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
            process = subprocess.Popen(
                [*FIT, *arguments, "--trainer.enable_progress_bar=false"],
                env={**os.environ, **share},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def next_ended(self) -> subprocess.Popen[bytes]:
        """Wait until a run has ended, or raise `StoppedBySignal` if this process is told to stop."""
        while True:
            self._signals.check()
            for process in self._running:
                if process.poll() is not None:
                    self._running.remove(process)
                    process.communicate()  # closes its input
                    return process
            time.sleep(POLL)


def check_status(status: int, log: Path, signals: Signals) -> None:
    """Raise the error of a run that has ended, from the exit status of its process and its log.

    Raises:
        StoppedBySignal: A signal stopped the run, which can be resumed.
        UserError: `fit` refused the options, crashed or was killed.
        FloatingPointError: Training failed, with the message of `fit`.
    """
    if status == 0:
        return
    if status < 0 or status in STOPPED:
        signals.check(TOGETHER)
        name = signal.Signals(-status if status < 0 else status - 128).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise UserError(f"its process was killed by {name}{hint}, see {log}")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    line = lines[-1] if lines else "failed without a message"
    kind = FloatingPointError if status == 1 and line.startswith(ERROR) else UserError
    raise kind(f"{line.removeprefix(ERROR)} (see {log})")


class OtherMetricError(UserError):
    """A run logged validation metrics, but not the requested one."""


def reached(run: Path, metric: str, maximize: bool) -> float:
    """The best value of a validation metric in a finished run.

    Raises:
        UserError: The metric was not logged, or the file is damaged.
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


def _stop_with_parent() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from lightning_meta.cli import main

    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(main())
