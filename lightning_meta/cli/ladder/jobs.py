"""Several runs of a ladder at a time, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.errors import UserError

GRACE = 60.0  # seconds that a process has to write its last checkpoint
POLL = 0.1  # seconds


def run_in_processes(runs: Sequence[tuple[str, PlannedRun]], jobs: int, threads: int, logs: Path) -> None:
    """Train runs in child processes, at most so many at a time; what they print goes to a file each.

    Args:
        runs: What to print when a run begins, and the run.
        jobs: How many run at once.
        threads: Of each.
        logs: The folder of the files.

    Raises:
        UserError: One failed. Those beside it are interrupted, as by Ctrl-C, and can be gone on with.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(runs)
    active: dict[subprocess.Popen[bytes], tuple[PlannedRun, Path, float]] = {}
    with _terminated_like_interrupted():
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    line, run = waiting.pop(0)
                    print(line, flush=True)
                    log = logs / f"{run.rung}_seed_{run.seed}.log"
                    with log.open("ab") as output:
                        active[_start(run, threads, output)] = (run, log, time.monotonic())
                for process in [p for p in active if p.poll() is not None]:
                    run, log, began = active.pop(process)
                    if process.returncode:
                        raise UserError(f"{run.title}: {_last_line(log) or 'failed without a word'} (see {log})")
                    print(f"{run.title}: done in {time.monotonic() - began:.0f} s", flush=True)
                time.sleep(POLL)
        finally:
            _stop(list(active))


def _start(run: PlannedRun, threads: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lightning_meta.cli", "fit", *run.arguments, "--trainer.enable_progress_bar=false"]
    share = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    # A session of its own: Ctrl-C reaches the ladder alone, which passes it on once.
    return subprocess.Popen(
        command,
        env={**os.environ, **share},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the children as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("lightning-meta: error: ") if lines else ""
