"""Starts `scripts/fit.py` on several ranks, and sends signals to a rank at a chosen step."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from lightning_meta.batches import Episode
from lightning_meta.meta import ProtoNet
from lightning_meta.meta.base import Outcome
from tests.waiting import ENDLESS, LIMIT

ROOT = Path(__file__).parents[1]

OPTIONS = [
    *("--model.backbone=lightning_meta.nn.Conv4", "--model.backbone.width=4"),
    *("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.05", "--model.optimizer.momentum=0.9"),
    *("--data=EpisodicDataModule", "--data.source=tests.ddp_driver.Tiny"),
    *("--data.ways=3", "--data.shots=2", "--data.queries=3", "--data.meta_batch_size=4"),
    *("--data.meta_batches_per_epoch=3", "--data.evaluation_meta_batch_size=2"),
    *("--data.val_tasks=5", "--data.test_tasks=5", "--trainer.max_steps=8", "--checkpoint.every_n_steps=2"),
    *("--trainer.accelerator=cpu", "--trainer.precision=64-true", "--trainer.log_every_n_steps=1"),
    *("--trainer.enable_progress_bar=false", "--name=tiny"),
]
ONE = ["--trainer.devices=1"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


class Accident(Callback):
    """Sends a signal to the process of one rank.

    Args:
        rank: Rank that gets the signal; -1 for all ranks, as after Ctrl-C in a terminal.
        step: Training step at which the signal is sent.
        number: Number of the signal.
        stall: Whether the ranks then wait for ever, as in a call that does not return.
        seconds: Duration of the step on all ranks, in seconds.
        hook: Hook of the callback in which the signal is sent.
        times: Number of signals.
    """

    def __init__(
        self,
        rank: int = 0,
        step: int = 5,
        number: int = 9,
        stall: bool = False,
        seconds: float = 0.0,
        hook: str = "on_train_batch_start",
        times: int = 1,
    ) -> None:
        self.rank, self.step, self.number, self.times = rank, step, number, times
        self.stall, self.seconds = stall, seconds
        setattr(self, hook, self._happen)

    def _happen(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            if self.rank in (-1, trainer.global_rank):
                for _ in range(self.times):
                    os.kill(os.getpid(), self.number)
            time.sleep(ENDLESS if self.stall else self.seconds)


class NotesWrites(Callback):
    """Leaves `rank_<r>` in the working directory: the files below `runs` that the process opened for writing."""

    def __init__(self) -> None:
        self.written: list[str] = []
        sys.addaudithook(self._watch)

    def _watch(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and "runs" in Path(str(args[0])).parts:
            self.written.append(str(args[0]))

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        Path(f"rank_{trainer.global_rank}").write_text("\n".join(self.written))


def accident(**options: Any) -> list[str]:
    """The options that cause an accident."""
    given = [f"--trainer.callbacks.{name}={str(value).lower()}" for name, value in options.items()]
    return ["--trainer.callbacks+=tests.launching.Accident", *given]


class Sparse(ProtoNet):
    """Prototypical networks with a table that no other rank sees, whose gradient is sparse."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.table = torch.nn.Embedding(4, 2, sparse=True)
        self._ddp_params_and_buffers_to_ignore = ["table.weight"]

    def meta_batch_loss(self, batch: Episode) -> Outcome:
        outcome = super().meta_batch_loss(batch)
        row = self.table(torch.tensor([self.global_step % 4], device=self.device))
        bad = self.global_step == 5 and self.global_rank == 1
        return outcome._replace(loss=outcome.loss + row.square().sum() + (torch.nan if bad else 0.0))


class Breaks(ProtoNet):
    """Prototypical networks whose loss is NaN on the second rank alone in step 5."""

    def meta_batch_loss(self, batch: Episode) -> Outcome:
        outcome = super().meta_batch_loss(batch)
        bad = self.global_step == 5 and self.global_rank == 1
        return outcome._replace(loss=outcome.loss + (torch.nan if bad else 0.0))


def start(
    folder: Path, *options: str, model: str = "ProtoNet", before: list[str] | None = None
) -> subprocess.Popen[str]:
    """`[before] scripts/fit.py ...` in a folder, in a process group of its own."""
    kept = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "MASTER_PORT", "PL_GLOBAL_SEED")}
    env = {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    script = [*(before or [sys.executable]), str(ROOT / "scripts" / "fit.py"), f"--model={model}"]
    return subprocess.Popen(
        [*script, *OPTIONS, *options],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    """The exit status and the output of each process, once all that it started have ended too; they may not hang."""
    found = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=LIMIT)  # until the last of them closes its output
            found.append((process.returncode, output))
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def torchrun(nodes: int, node: int, port: int, each: int = 1) -> list[str]:
    """The beginning of a command line that runs on one of several machines."""
    options = [f"--nnodes={nodes}", f"--nproc_per_node={each}", f"--node_rank={node}"]
    return [
        *(sys.executable, "-m", "torch.distributed.run", *options),
        *("--master_addr=127.0.0.1", f"--master_port={port}"),
    ]
