"""SIGTERM, by which schedulers and launchers stop a run, and Ctrl-C let the step end and leave a checkpoint."""

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

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


def status_of(number: int) -> int:
    """The exit status that a shell expects after a signal."""
    return 128 + number


def stopping_signal(status: int | None) -> int | None:
    """The signal that let a run end well with this status; None where the status says something else."""
    return next((int(number) for number in NAMES if status == status_of(number)), None)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a run, which keeps its last checkpoint; one line on stderr has said how to resume it."""


class Stopped(SIGTERMException):
    """The run was told to stop.

    Args:
        number: The signal that told it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(status_of(number))
        self.number = number


class Termination(Callback):
    """Stops a run that SIGTERM (status 143) or Ctrl-C (130) tells to, at a moment from which it goes on bit for bit.

    In training the step ends first, on all ranks, and the last checkpoint is written. A validation or a test is broken
    off: the run goes on from its last checkpoint. Within `with`, both are heeded before and after training too. A
    second Ctrl-C interrupts at once.

    Lightning's own handler of SIGTERM speaks to the other ranks from within the signal, amid whatever else they were
    saying, and writes no checkpoint; it is replaced. Stand this callback right behind the checkpoint.

    Args:
        checkpoint: What writes the last checkpoint.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._told = self._agreed = 0  # the signal that came to this rank, and the one that all ranks heed; 0 is none
        self._at_once = True  # no step is under way that should end first
        self._before: dict[int, Any] = {}
        self._device = torch.device("cpu")

    def __enter__(self) -> Termination:
        """Take both signals over, but for Ctrl-C where it is ignored, as in the background of a script."""
        taken = [n for n in NAMES if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.getsignal(number) for number in taken}
        self._register()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            _set(number, signal.SIG_DFL if handler is None else handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM over from Lightning; let steps end."""
        self._register()
        self._at_once = False
        self._device = trainer.strategy.root_device
        if trainer.world_size > 1:  # in place of Lightning's question to rank 0 alone, which every step asks
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = self._ask_all  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop, if any rank was told to, between two steps."""
        if trainer.world_size == 1:
            self._agreed = self._told
        if self._agreed and self._checkpoint.between_steps:
            self._checkpoint.write_last(trainer)
            raise Stopped(self._agreed)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not begin a validation, which may take long."""
        if trainer.state.fn == "fit":
            self._agree(trainer)
        self._break_off()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let steps end again."""
        self._at_once = trainer.state.fn != "fit"

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last step, before the test; all ranks or none."""
        self._agree(trainer)
        self._register()  # Lightning has put back what was before
        self._break_off()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM over from Lightning."""
        self._register()

    def _handle(self, number: int, frame: Any) -> None:
        again, self._told = self._told, number
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._at_once:
            raise Stopped(number)

    def _break_off(self) -> None:
        """From here on do not wait for the end of a step."""
        self._at_once = True  # before the question, lest a signal come between
        if number := self._told or self._agreed:
            raise Stopped(number)

    def _agree(self, trainer: Trainer) -> None:
        if trainer.world_size > 1:
            self._device = trainer.strategy.root_device
            self._ask_all()

    def _ask_all(self) -> None:
        told = torch.tensor([self._told], device=self._device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        self._agreed = max(self._agreed, int(told.item()))

    def _register(self) -> None:
        for number in self._before or (signal.SIGTERM,):
            _set(number, self._handle)


def _set(number: int, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():  # the only one that may
        signal.signal(number, handler)
