"""SIGKILL at a random moment of a command: as it is about to change a file, or after some of its CPU time.

Neither depends on how fast the machine is, or on what else it does.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lightning_meta.cli import main
from tests.forking import fork

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
TICKS = os.sysconf("SC_CLK_TCK")


class Length(NamedTuple):
    """The length of a whole command, in changes to files of the working directory and in seconds of CPU time."""

    changes: int
    seconds: float


class Moment(NamedTuple):
    """The moment of the kill: before a change, counted from 1, or after some CPU time."""

    change: int | None = None
    seconds: float | None = None


def drawn(draw: random.Random, length: Length) -> Moment:
    """A moment of a command of this length, rather early: one that goes on is shorter."""
    share = draw.random()
    if draw.random() < 0.7:
        return Moment(change=draw.randint(1, max(1, int(share * length.changes))))
    return Moment(seconds=draw.uniform(0, share * length.seconds))


def measured(command: list[str]) -> Length:
    """Run a command to its end in a process; how long it was."""
    changes = Path(f"changes_{time.monotonic_ns()}")
    pid = _forked(command, lambda: _on_change(lambda count: changes.write_text(str(count))))
    _, status, used = os.wait4(pid, 0)
    if status != 0:
        raise SystemExit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    count = int(changes.read_text())
    changes.unlink()
    return Length(count, used.ru_utime + used.ru_stime)


def killed(command: list[str], moment: Moment) -> bool:
    """Run a command in a process that is killed at a moment; False where it ended before, with status 0."""
    last = moment.change

    def at_change(count: int) -> None:
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = _forked(command, lambda: _on_change(at_change) if last is not None else None)
    if moment.seconds is not None:
        kill_after(pid, moment.seconds)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status) and status != 0:
        raise SystemExit(f"{command}, to be killed at {moment}, ended with {os.waitstatus_to_exitcode(status)}")
    return os.WIFSIGNALED(status)


def _forked(command: list[str], before: Callable[[], None]) -> int:
    sys.stdout.flush()
    pid = fork()
    if pid == 0:
        before()
        try:
            with Path("said").open("a", buffering=1) as said:
                sys.stdout = said
                status = main(command)
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
            status = 70
        sys.stderr.flush()
        os._exit(status)
    return pid


def _on_change(do: Callable[[int], Any]) -> None:
    """Call something with the number of the change before each change to a file below the working directory."""
    here, count, busy = Path.cwd(), 0, False

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count, busy
        if busy or (event not in CHANGES and event != "open"):
            return
        flags = args[2] if event == "open" and isinstance(args[2], int) else 0
        if event == "open" and not flags & (os.O_WRONLY | os.O_RDWR):
            return
        busy = True
        try:
            if not isinstance(args[0], int) and Path(os.fsdecode(args[0])).absolute().is_relative_to(here):
                count += 1
                do(count)
        finally:
            busy = False

    sys.addaudithook(watch)


def kill_after(pid: int, seconds: float) -> None:
    """Kill a process that this one has started, and not waited for, after so much of its CPU time, or at its end."""
    while _cpu_seconds(pid) < seconds:
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)  # of which a process that has ended takes no notice


def _cpu_seconds(pid: int) -> float:
    """The CPU time of a process; infinite if it has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return float("inf") if fields[0] == "Z" else (int(fields[11]) + int(fields[12])) / TICKS
