"""Runs of `fit` in child processes, for ladders and searches.

A child, `python -m lightning_meta.cli.children fit ...`, stops with its parent. Its standard input is a pipe that the
parent holds open and writes nothing to. It ends when the parent does, even by SIGKILL; the command then ends as by
SIGTERM, with a checkpoint.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from lightning_meta.signals import Signals

FIT: tuple[str, ...] = (sys.executable, "-m", "lightning_meta.cli.children", "fit")
ERROR = "lightning-meta: error: "
GRACE = 60.0  # seconds that a child has to write its last checkpoint
POLL = 0.1  # seconds


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
            process.wait()
            _close(process)
        self._running.clear()

    def start(self, arguments: Sequence[str], log: Path, threads: int | None = None) -> subprocess.Popen[bytes]:
        """Start a run with these options of `fit`, whose output is appended to the log."""
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
        """Wait until a run has ended.

        Raises:
            StoppedBySignal: This process was told to stop.
        """
        while True:
            self._signals.check()
            for process in self._running:
                if process.poll() is not None:
                    self._running.remove(process)
                    _close(process)
                    return process
            time.sleep(POLL)


def last_line(log: Path) -> str:
    """The last line that a run printed."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "failed without a message"


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _stop_with_parent() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from lightning_meta.cli import main

    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(main())
