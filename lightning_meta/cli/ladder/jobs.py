"""Train several runs of a ladder at a time, each in a child process."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_meta.cli.children import ERROR, Children, last_line
from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.errors import UserError
from lightning_meta.signals import recording


def run_in_processes(
    runs: Sequence[tuple[str, PlannedRun]],
    jobs: int,
    threads: int,
    logs: Path,
    failed: Callable[[PlannedRun], None] | None = None,
) -> None:
    """Train runs in child processes, whose output goes to one log file each.

    Args:
        runs: The runs, each with a line to print when it starts.
        jobs: Largest number of processes at a time.
        threads: Threads of each process.
        logs: Folder of the log files.
        failed: Called with each run whose training failed, such as by a NaN loss, which is an error without it.

    Raises:
        UserError: A run failed. The other active runs are stopped and can be resumed.
        StoppedBySignal: A signal stopped the ladder, and with it the active runs.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(runs)
    active: dict[subprocess.Popen[bytes], tuple[PlannedRun, Path, float]] = {}
    with recording() as signals, Children(signals) as children:
        while waiting or active:
            while waiting and len(active) < jobs:
                line, run = waiting.pop(0)
                print(line, flush=True)
                log = logs / f"{run.rung}_seed_{run.seed}.log"
                active[children.start(run.arguments, log, threads)] = (run, log, time.monotonic())
            process = children.next_ended()
            run, log, began = active.pop(process)
            if process.returncode == 1 and failed is not None and last_line(log).startswith(ERROR):
                failed(run)
                print(f"{run.title} failed: {last_line(log).removeprefix(ERROR)}", flush=True)
                continue
            if process.returncode:
                raise UserError(f"{run.title}: {last_line(log).removeprefix(ERROR)} (see {log})")
            print(f"{run.title}: done in {time.monotonic() - began:.0f} s", flush=True)
