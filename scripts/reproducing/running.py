"""Run a row with a seed in child processes: `lightning-meta fit`, then `test` for further figures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lightning_meta.run.directory import versions
from lightning_meta.signals import handling
from reproducing.claim import Claim
from reproducing.rows import ROOT, Device
from reproducing.storing import Stored

End = Literal["finished", "held", "out of time", "failed"]
GRACE = 60.0  # seconds for a process to write its last checkpoint
POLL = 0.1  # seconds
ACCELERATOR = {"cpu": "cpu", "gpu": "cuda"}
CLI = ["-m", "lightning_meta"]


def run(stored: Stored, device: Device, machine: str, deadline: float, begin: Callable[[], None]) -> End:
    """Train or resume, and test; finished parts are skipped.

    Args:
        stored: Folder of the row and seed.
        device: Device of the training.
        machine: Description of the machine, which is recorded.
        deadline: Time of `time.monotonic` at which the run is stopped; it can be resumed.
        begin: Called once this process has the lock.

    Returns:
        How the run ended; "held" if another process has the lock.

    Raises:
        UserError: The folder cannot be used.
        KeyboardInterrupt: Ctrl-C. The child has written its last checkpoint.
    """
    with Claim(stored.folder) as claim:
        if not claim.held:
            return "held"
        begin()
        if stored.finished:
            return "finished"
        began = time.monotonic()
        stored.note(machine)
        try:
            return _train_and_test(stored, device, claim, deadline)
        finally:
            stored.note(machine, time.monotonic() - began)


def _train_and_test(stored: Stored, device: Device, claim: Claim, deadline: float) -> End:
    log = stored.folder / "log.txt"
    common = [f"--trainer.accelerator={ACCELERATOR[device]}", "--trainer.devices=1"]
    common.append("--trainer.enable_progress_bar=false")
    if not stored.trained:
        place = [f"--runs={stored.folder.parent}", f"--name={stored.folder.name}"]
        if stored.run is not None:
            place = [f"--ckpt_path={stored.run}"]
        command = ["fit", *stored.row.arguments(stored.seed), *place, *common]
        if (end := child(CLI + command, claim, log, deadline)) != "finished":
            return end
    assert stored.run is not None
    for figure in stored.row.figures:
        if stored.results(figure) is not None:
            continue
        before = versions(stored.run / "tests")
        command = ["test", f"--ckpt_path={stored.run}", *figure.test, *common]
        if (end := child(CLI + command, claim, log, deadline)) != "finished":
            return end
        (made,) = set(versions(stored.run / "tests")) - set(before)  # no other process tests a locked run
        stored.note_test(stored.run / "tests" / str(made), figure)
    return "finished"


def last_line(log: Path) -> str:
    """The last line of the log of a failed process."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1].removeprefix("lightning-meta: error: ") if lines else "it failed without a message"


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, also for the child process."""
    with handling([signal.SIGTERM], signal.default_int_handler):
        yield


def child(arguments: Sequence[str], claim: Claim, log: Path, deadline: float, output: Path | None = None) -> End:
    """Run Python in a child process, which gets SIGTERM at the deadline.

    Args:
        arguments: Arguments of Python, such as `-m` and a module.
        claim: Lock of the folder, which the child process inherits.
        log: File to which the output is appended.
        deadline: Time of `time.monotonic`.
        output: File for the standard output, which is replaced; None for the log.
    """
    paths = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    with log.open("ab") as errors, errors if output is None else output.open("wb") as printed:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,  # for the recorded revision
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=errors,
            start_new_session=True,  # Ctrl-C reaches only this process, which passes it on once
            pass_fds=(claim.descriptor,),
        )
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    return "out of time"
                time.sleep(POLL)
        finally:
            _stop(process)
    return "failed" if process.returncode else "finished"


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)  # not SIGINT, which background processes of a shell script ignore
    try:
        process.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
