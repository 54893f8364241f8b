"""A script that replaces `fit` in tests of the search alone, as it starts at once."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from lightning_meta.cli import children, main
from lightning_meta.cli.sweep import command, study
from tests.waiting import LIMIT, wait_for

TOY = (sys.executable, "-S", "toy_fit.py")
# Processes that start afresh, from a server which has imported what they need, and nothing else.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.sweep_toy"])

PRELUDE = """
import fcntl, json, os, pathlib, random, shutil, signal, sys, time
words = sys.argv[1:]
given = dict(word[2:].split("=", 1) for word in words if "=" in word)
pairs = dict(zip(words, words[1:]))
place = pathlib.Path(pairs["--runs"]) / pairs["--name"]
number = int(place.name.rpartition("_")[2])
with open("starts.txt", "a") as file:
    file.write(json.dumps([place.name, given, "--ckpt_path" in pairs]) + "\\n")
alone = open(place / "alone", "a")
fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the run fails where another is at the same trial
(place / "pid").write_text(f"{os.getpid()} {os.getppid()}")
versions = [int(old.name) for old in place.iterdir() if old.name.isdigit()]
run = place / str(0 if "--ckpt_path" in pairs else max(versions, default=-1) + 1)
run.mkdir(exist_ok=True)
held = open(run / "run.lock", "a")
fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as a run does

def checkpoint():
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "last.ckpt").touch()

def finish(value=1.0, metric="val/mse"):
    (run / "metrics.csv").write_text(f"step,{metric}\\n1,{value}\\n")
    (run / "results.json").write_text("{}")

def refuse(line):
    shutil.rmtree(run)
    print("lightning-meta: error: " + line, file=sys.stderr)
    sys.exit(2)
"""


def stand_in(monkeypatch: pytest.MonkeyPatch, body: str = "finish()") -> None:
    """Let trials run a script: `given` are its options, `run` its directory."""
    Path("toy_fit.py").write_text(PRELUDE + body)
    monkeypatch.setattr(children, "FIT", TOY)
    monkeypatch.setattr(command, "_check_ends", lambda space: None)  # asks `fit` itself


def starts() -> list[tuple[str, dict[str, str], bool]]:
    """The trial, the options, and whether it was gone on with, of all runs that were started."""
    file = Path("starts.txt")
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []


def started(
    *options: str, changed: Mapping[str, Any] | None = None, before: Callable[[], None] | None = None
) -> BaseProcess:
    """A sweep in a process of its own, whose trials run the script of `stand_in`, if there is one.

    Args:
        options: Options of the command.
        changed: Other values of the constants of the modules, such as `GRACE`.
        before: Function that the process calls first.
    """
    process = _CONTEXT.Process(target=_sweep, args=(options, str(Path.cwd()), before, changed or {}))
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    """Wait for the end of a process, and return its exit status."""
    process.join(LIMIT)
    return process.exitcode


def run_of(trial: Path, but_of: Collection[int | None] = ()) -> int | None:
    """The process of a trial's run; None where it has none.

    Args:
        trial: The trial's folder.
        but_of: Sweeps whose runs are none.
    """
    words = (trial / "pid").read_text().split() if (trial / "pid").is_file() else []
    if not words or int(words[1]) in but_of:
        return None
    try:
        # Its number may be another process's by now.
        alive = trial.name.encode() in Path(f"/proc/{words[0]}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(words[0]) if alive else None


def kill_run(trial: Path, but_of: Collection[int | None] = ()) -> bool:
    """Kill the run of a trial and wait for its end; False where it has none."""
    pid = run_of(trial, but_of)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: run_of(trial) != pid)
    return True


def _sweep(
    options: tuple[str, ...], folder: str, before: Callable[[], None] | None, changed: Mapping[str, Any]
) -> None:
    os.chdir(folder)
    if before is not None:
        before()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if Path("toy_fit.py").exists():
        children.FIT = TOY
        command._check_ends = lambda space: None
    for module in (children, study, command):
        for name, value in changed.items():
            if hasattr(module, name):
                setattr(module, name, value)
    with Path(f"said_{os.getpid()}.txt").open("w", buffering=1) as said:
        sys.stdout = sys.stderr = said
        status = main(["sweep", *options])
    os._exit(status)
