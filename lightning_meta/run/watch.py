"""A rank that dies takes the others with it, soon and with a word, in place of leaving them to wait."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

PERIOD = 0.5  # seconds between two looks
GRACE = 3.0  # seconds in which the ranks of one run may end one after the other


class RankWatch(Callback):
    """Watches the other ranks that this machine can see, from a thread, while this rank may wait for them in vain.

    The first rank of a machine sees those that it started, they see it; ranks that torchrun or SLURM started are ended
    by that, and see it. Whoever finds another one dead ends this process with status 1 and one line on stderr.

    Lightning has a watch of its own, of the first rank alone, that kills all without a word; it is replaced.
    """

    def __init__(self) -> None:
        self.last: Path | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        self._parent: int | None = None
        self._rank, self._local_rank = 0, 0
        self._starter = "the process that started the ranks"
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RankWatch:
        """Begin as soon as the ranks are there."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the watch; after an error, ranks that still wait for this one are ended as well."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if kind is not None:
            until = time.monotonic() + GRACE
            while time.monotonic() < until and any(other.poll() is None for other in self._others):
                time.sleep(0.05)
            self._kill_others()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch."""
        if trainer.world_size == 1 or self._thread is not None:
            return
        self._rank, self._local_rank = trainer.global_rank, trainer.local_rank
        self._others = getattr(trainer.strategy.launcher, "procs", [])
        self._parent = None if self._others else os.getppid()
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if self._local_rank and isinstance(environment, LightningEnvironment):
            self._starter = f"rank {self._rank - self._local_rank}"
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":  # Lightning's
                thread._child_processes = []  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._run, name="rank-watch", daemon=True)
        self._thread.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the last checkpoint will be: rank 0, which knows, may not be there to be asked."""
        self.last = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the watch: this rank has a word of its own to say."""
        self._ended.set()

    @property
    def speaks(self) -> bool:
        """Whether this rank is the one to tell of a rank's death: the first one, or the second where that died."""
        return self._local_rank == 0 or (self._local_rank == 1 and self.dead() is not None)

    def how_to_go_on(self) -> str:
        """What to do after this run was stopped."""
        if self.last is None or not self.last.is_file():
            return "there is no checkpoint yet: start it again"
        return f"go on with --ckpt_path {self.last}"

    def dead(self) -> str | None:
        """Who of the others has died, and how; None where all that can be seen are alive."""
        if self._parent is not None and os.getppid() != self._parent:
            return f"{self._starter} died"
        for i, other in enumerate(self._others):
            if status := other.poll():
                return f"rank {self._rank + 1 + i} {_how(status)}"
        return None

    def _run(self) -> None:
        while not self._ended.wait(PERIOD):
            if self.dead() and not self._ended.wait(GRACE):
                self._say_and_end(self.dead())

    def _say_and_end(self, dead: str | None) -> None:
        if self.speaks:
            print(f"\nlightning-meta: error: {dead}; {self.how_to_go_on()}", file=sys.stderr, flush=True)
        self._kill_others()
        os._exit(1)  # the main thread may wait for ever in a call to the dead rank

    def _kill_others(self) -> None:
        for other in self._others:
            if other.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    other.kill()


def _how(status: int) -> str:
    if status > 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
