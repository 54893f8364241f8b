"""Several runs of a ladder at a time, in processes of their own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_meta.cli.children import ERROR, Children, last_line
from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.cli.signals import heeding
from lightning_meta.errors import UserError


def run_in_processes(
    runs: Sequence[tuple[str, PlannedRun]],
    jobs: int,
    threads: int,
    logs: Path,
    failed: Callable[[PlannedRun], None] | None = None,
) -> None:
    """Train runs in child processes, at most so many at a time; what they print goes to a file each.

    Args:
        runs: What to print when a run begins, and the run.
        jobs: How many run at once.
        threads: Of each.
        logs: The folder of the files.
        failed: Takes note of a run whose training failed, as by a loss that is not finite; by default it is an error.

    Raises:
        UserError: One failed. Those beside it are stopped, and can be gone on with.
        StoppedBySignal: The ladder was told to stop; so are its runs.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(runs)
    active: dict[subprocess.Popen[bytes], tuple[PlannedRun, Path, float]] = {}
    with heeding() as signals, Children(signals) as children:
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
