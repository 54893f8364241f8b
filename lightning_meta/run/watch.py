"""When a rank dies, the other ranks end soon with an error message instead of waiting for ever."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from types import TracebackType

import torch.distributed
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_meta.functional.ranks import leave_group
from lightning_meta.run.naming import Naming, as_argument
from lightning_meta.run.termination import NAMES, status_of, stopping_signal

PERIOD = 0.5  # seconds between two checks
GRACE = 3.0  # seconds in which the ranks of a run may end one after the other
DYING = 30.0  # seconds between the end of a rank's connection and of its process, whose exit status tells the cause

_OF_GLOO = re.compile(r"\[\S*/gloo/\S+\.cc:\d+\]")  # the source file, by which gloo marks its errors; they have no type


def lost_connection(error: BaseException | None) -> bool:
    """Whether an error means that the connection to another rank was lost."""
    if isinstance(error, torch.distributed.DistError | ConnectionError):
        return True
    return isinstance(error, RuntimeError) and _OF_GLOO.search(str(error)) is not None


class RankWatch(Callback):
    """Ends this process if another rank on this machine dies, which a collective operation might wait for in vain.

    A thread checks the other processes: the first rank of a machine those that it started, these the first rank, and
    ranks of torchrun its agent. SLURM and MPI end their processes themselves, and a shell that started a rank may end
    before it. If another rank is dead, this process ends with status 1 and one line on stderr; if a signal stopped the
    other rank, with its status, 143 for SIGTERM or 130 for Ctrl-C.

    It replaces Lightning's observer, which only runs on the first rank and kills all ranks without a message.

    Args:
        say: Function that formats an argument name for messages.
    """

    def __init__(self, say: Naming = as_argument) -> None:
        self._say = say
        self.last: Path | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        self._parent: int | None = None
        self._rank, self._local_rank = 0, 0
        self._starter, self._started_by_rank = "the process that started the ranks", False
        self._trainer: Trainer | None = None
        self._killed: set[int] = set()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RankWatch:
        """The watch starts in `setup`, when the ranks exist."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the watch, and wait for the ranks that this one started, which would take its end for a failure.

        After an error, ranks that are still waiting for this one are ended.
        """
        self._ended.set()
        atexit.unregister(leave_group)
        if self._thread is not None:
            self._thread.join()
            if kind is None:  # after an error it might wait for ranks that do not answer
                atexit.register(leave_group)
        patience = DYING if kind is None or lost_connection(error) else GRACE
        _wait(lambda: all(other.poll() is not None for other in self._others), patience)
        if kind is not None:
            self._kill_others()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the watch."""
        self._trainer = trainer
        if trainer.world_size == 1 or self._thread is not None:
            return
        self._rank, self._local_rank = trainer.global_rank, trainer.local_rank
        self._others = getattr(trainer.strategy.launcher, "procs", [])
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if self._local_rank and isinstance(environment, LightningEnvironment):
            self._parent, self._starter = os.getppid(), f"rank {self._rank - self._local_rank}"
            self._started_by_rank = True
        elif isinstance(environment, TorchElasticEnvironment):
            self._parent = os.getppid()
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":  # Lightning's, which nothing public stops
                thread._child_processes = []  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._run, name="rank-watch", daemon=True)
        self._thread.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the path of the last checkpoint: rank 0, which knows it, may die."""
        self.last = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the watch: this rank reports its own error."""
        self._ended.set()

    @property
    def reports(self) -> bool:
        """Whether this rank reports that a rank died: the first one, or the second if the first one died."""
        return self._local_rank == 0 or (self._local_rank == 1 and self.dead() is not None)

    def how_to_resume(self) -> str:
        """How to resume this run after it was stopped, for messages."""
        if self.last is None or not self.last.is_file():
            return "there is no checkpoint yet: start it again"
        run, option = self.last.parent.parent, self._say("resume", str(self.last))
        config = run / "config.yaml"
        if not option.startswith("--") or not config.is_file():  # in Python, the call is repeated with the argument
            return f"resume with {option}"
        return f"resume with `lightning-meta fit --config {quote(str(config))} --ckpt_path {quote(str(run))}`"

    def dead(self) -> str | None:
        """Which other rank has died, and how; None if all visible ranks are alive."""
        if self._parent is not None and os.getppid() != self._parent:
            return f"{self._starter} died"
        for i, other in enumerate(self._others):
            if other.pid not in self._killed and (status := other.poll()):
                return f"rank {self._rank + 1 + i} {_how(status)}"
        return None

    def await_end_of_starter(self) -> None:
        """Wait for the end of the rank that started this one: its process ends a moment after its connection."""
        if self._started_by_rank:
            _wait(lambda: self.dead() is not None, GRACE)

    def stopped_by(self) -> int | None:
        """The signal after which another rank stopped properly; None if there is none."""
        return next((n for other in self._others if (n := stopping_signal(other.poll()))), None)

    def stopped_line(self, number: int) -> str:
        """The message about a run that a signal stopped."""
        step = self._trainer.global_step if self._trainer else 0
        return f"\nstopped in step {step} by {NAMES[signal.Signals(number)]}; {self.how_to_resume()}"

    def _run(self) -> None:
        while not self._ended.wait(PERIOD):
            if self.dead() and not self._ended.wait(GRACE):
                self._report_and_end()

    def _report_and_end(self) -> None:
        line, status = f"\nlightning-meta: error: {self.dead()}; {self.how_to_resume()}", 1
        if number := self.stopped_by():
            line, status = self.stopped_line(number), status_of(number)
        if self.reports:
            print(line, file=sys.stderr, flush=True)
        self._kill_others()
        os._exit(status)  # the main thread may be blocked in a collective operation

    def _kill_others(self) -> None:
        for other in self._others:
            if other.poll() is None:
                self._killed.add(other.pid)
                with contextlib.suppress(ProcessLookupError):
                    other.kill()


def _wait(until: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition is true, at most for some seconds."""
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(0.05)


def _how(status: int) -> str:
    if status > 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
