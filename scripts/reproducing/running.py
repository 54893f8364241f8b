"""Running one row with one seed, in child processes: `lightning-meta fit`, then `test` for its further figures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning_meta.run.logger import versions
from reproducing.claim import Claim
from reproducing.rows import ROOT, Device
from reproducing.storing import Stored

End = Literal["finished", "held", "out of time", "failed"]
GRACE = 60.0  # seconds that a process has to write its last checkpoint
POLL = 0.1  # seconds
ACCELERATOR = {"cpu": "cpu", "gpu": "cuda"}
CLI = ["-m", "lightning_meta.cli"]


def run(stored: Stored, device: Device, machine: str, deadline: float, begin: Callable[[], None]) -> End:
    """Train, or resume, and test; nothing is done again that is there.

    Args:
        stored: The folder of the row and seed.
        device: What trains.
        machine: In words, to be noted.
        deadline: By `time.monotonic`: then it is stopped, and can be resumed.
        begin: Called once, when it is sure that no other runner has it.

    Returns:
        How it ended; "held" where another runner has it.

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
        (made,) = set(versions(stored.run / "tests")) - set(before)  # nobody else tests a run that is held
        stored.note_test(stored.run / "tests" / str(made), figure)
    return "finished"


def last_line(log: Path) -> str:
    """What a process that failed said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1].removeprefix("lightning-meta: error: ") if lines else "it failed without a message"


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a runner and its child as Ctrl-C does."""
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


def child(arguments: Sequence[str], claim: Claim, log: Path, deadline: float) -> End:
    """Run Python in a process of its own, which is stopped as by SIGTERM when the time is over.

    Args:
        arguments: Those of Python, such as `-m` and a module.
        claim: The lock of its folder, which the process gets as well.
        log: The file that its output is appended to.
        deadline: By `time.monotonic`.
    """
    paths = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,  # whose revision is noted
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the runner alone, which passes it on once
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
    process.send_signal(signal.SIGTERM)  # not SIGINT, which is ignored in the background of a script
    try:
        process.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
