"""SIGTERM, by which schedulers and launchers stop a run, lets the step end and leaves a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_meta.run.checkpoints import RunCheckpoint

STATUS = 128 + signal.SIGTERM  # what a shell expects after SIGTERM


class Termination(Callback):
    """Stops a run that is told to by SIGTERM, with status 143, at a moment from which it goes on bit for bit.

    In training the step ends first, on all ranks, and the last checkpoint is written. A validation or a test is broken
    off: the run goes on from its last checkpoint. Within `with`, SIGTERM is heeded before and after training too.

    Lightning's own handler speaks to the other ranks from within the signal, amid whatever else they were saying, and
    writes no checkpoint; it is replaced. Stand this callback right behind the checkpoint.

    Args:
        checkpoint: What writes the last checkpoint.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._requested = self._agreed = False
        self._at_once = True  # no step is under way that should end first
        self._before: Any = None
        self._device = torch.device("cpu")

    def __enter__(self) -> Termination:
        """Take SIGTERM over."""
        self._before = signal.getsignal(signal.SIGTERM)
        self._register(self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give SIGTERM back."""
        self._register(signal.SIG_DFL if self._before is None else self._before)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM over from Lightning; let steps end."""
        self._register(self._handle)
        self._at_once = False
        self._device = trainer.strategy.root_device
        if trainer.world_size > 1:  # in place of Lightning's question to rank 0 alone, which every step asks
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = self._ask_all  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop, if any rank was told to, between two steps."""
        if trainer.world_size == 1:
            self._agreed = self._requested
        if self._agreed and self._checkpoint.between_steps:
            self._checkpoint.write_last(trainer)
            raise SIGTERMException(STATUS)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not begin a validation, which may take long."""
        if trainer.world_size > 1 and trainer.state.fn == "fit":
            self._ask_all()
        if self._requested or self._agreed:
            raise SIGTERMException(STATUS)
        self._at_once = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let steps end again."""
        self._at_once = trainer.state.fn != "fit"

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last step, before the test."""
        self._at_once = True
        self._register(self._handle)  # Lightning has put back what was before
        if self._requested or self._agreed:
            raise SIGTERMException(STATUS)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM over from Lightning."""
        self._register(self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        self._requested = True
        if self._at_once:
            raise SIGTERMException(STATUS)

    def _ask_all(self) -> None:
        told = torch.tensor([int(self._requested)], device=self._device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        self._agreed |= bool(told.item())

    @staticmethod
    def _register(handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # the only one that may
            signal.signal(signal.SIGTERM, handler)
