"""Runs `lightning-meta fit` in forked processes that are killed, until one gets to the end.

    python -m tests.run.kill_driver FOLDER KILLS SEED EVENTS SECONDS [options of fit]

KILLS is how many are killed, each by SIGKILL: after a random time of at most SECONDS, or at one of the first EVENTS
calls and returns of functions that end a step, log or write.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
import types
from pathlib import Path

from lightning_meta.cli import main
from tests.forking import fork

# The kill falls just before or just after one of these is called or returns.
WATCHED = {
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_end",
    "on_validation_start",
    "on_train_epoch_end",
    "on_train_end",
    "on_test_end",
    "flush",
    "save_checkpoint",
    "log_metrics",
    "_rewrite",
    "replacing",
    "write_results",
}


def kill_at(event: int) -> None:
    """SIGKILL this process at the n-th call or return of a watched function."""
    left = event

    def trace(frame: types.FrameType, what: str, arg: object) -> object:
        nonlocal left
        if frame.f_code.co_name not in WATCHED:
            return None
        if what in ("call", "return"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]


def attempt(command: list[str], event: int | None, delay: float | None) -> int | None:
    """Run a command in a new process, and return its exit status, or None if it was killed."""
    pid = fork()
    if pid == 0:
        if event is not None:
            kill_at(event)
        try:
            status = main(command)
        except BaseException:
            traceback.print_exc()
            status = 70
        sys.stderr.flush()
        os._exit(status)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def drive(folder: Path, kills: int, seed: int, args: list[str], events: int, seconds: float) -> dict[str, object]:
    """Kill and resume; what happened."""
    os.chdir(folder)
    draw = random.Random(seed)
    log: list[str] = []
    for number in range(kills + 1):
        last = number == kills
        by_event = draw.random() < 0.7
        event = draw.randint(1, events) if by_event and not last else None
        delay = draw.uniform(0, seconds) if not by_event and not last else None
        # A run that was killed before its first checkpoint starts again.
        started = any(Path("runs").glob("*/*/checkpoints/last.ckpt"))
        if not started:
            for old in Path("runs").glob("*/*"):
                old.rename(folder / f"dead_{number}")
        status = attempt(["fit", *args, *(["--ckpt_path", "last"] if started else [])], event, delay)
        log.append(f"event {event}" if event else f"{delay:.2f} s" if delay else "end")
        if status not in (None, 0):
            raise SystemExit(f"attempt {number} ({log}) exited with {status}")
    return {"killed": log}


if __name__ == "__main__":
    folder, kills, seed, events, seconds, *rest = sys.argv[1:]
    print(json.dumps(drive(Path(folder), int(kills), int(seed), rest, int(events), float(seconds))))
