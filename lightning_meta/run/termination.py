"""A run that receives SIGTERM, as from a scheduler, or Ctrl-C finishes its step and writes a checkpoint."""

from __future__ import annotations

import signal
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_meta.run.checkpoints import RunCheckpoint
from lightning_meta.signals import set_handler

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


def status_of(number: int) -> int:
    """The exit status that a shell expects after a signal."""
    return 128 + number


def stopping_signal(status: int | None) -> int | None:
    """The signal that stopped a run with this exit status; None for any other status."""
    return next((int(number) for number in NAMES if status == status_of(number)), None)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a run, which keeps its last checkpoint; a message on stderr has said how to resume it."""


class Stopped(SIGTERMException):
    """The signal with this number stopped the run."""

    def __init__(self, number: int) -> None:
        super().__init__(status_of(number))
        self.number = number


class Termination(Callback):
    """Stop a run after SIGTERM (exit status 143) or Ctrl-C (130) so that it can be resumed bit for bit.

    Training finishes the current step on all ranks and writes the last checkpoint. A validation or test is aborted; the
    run resumes from its last checkpoint. Used as a context, it handles both signals before and after training as well.
    A second Ctrl-C interrupts immediately.

    It replaces Lightning's handler of SIGTERM, which communicates with the other ranks from within the signal handler,
    possibly in the middle of another collective operation, and writes no checkpoint. Must be the callback right after
    the checkpoint.

    Args:
        checkpoint: The callback that writes the last checkpoint.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._received = self._agreed = 0  # the signal of this rank, and the one that all ranks act on; 0 is none
        self._immediate = True  # no training step is active that should finish first
        self._previous: dict[int, Any] = {}
        self._device = torch.device("cpu")

    def __enter__(self) -> Termination:
        """Handle both signals; Ctrl-C stays ignored where it is, as in the background of a script."""
        numbers = [n for n in NAMES if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]
        self._previous = {number: signal.getsignal(number) for number in numbers}
        self._set_handlers()
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            set_handler(number, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler; from here on a step finishes first."""
        self._set_handlers()
        self._immediate = False
        self._device = trainer.strategy.root_device
        if trainer.world_size > 1:
            # Lightning broadcasts what rank 0 received, but a signal may reach any rank. There is no public hook.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = self._reduce  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop between two steps if any rank received a signal."""
        if trainer.world_size == 1:
            self._agreed = self._received
        if self._agreed and self._checkpoint.between_steps:
            self._checkpoint.write_last(trainer)
            raise Stopped(self._agreed)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not start a validation, which may take long."""
        if trainer.state.fn == "fit":
            self._agree(trainer)
        self._stop_immediately()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let steps finish again."""
        self._immediate = trainer.state.fn != "fit"

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last step and before the test, on all ranks or none."""
        self._agree(trainer)
        self._set_handlers()  # Lightning has restored the handlers from before `fit`
        self._stop_immediately()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler."""
        self._set_handlers()

    def _handle(self, number: int, frame: Any) -> None:
        previous, self._received = self._received, number
        if previous and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._immediate:
            raise Stopped(number)

    def _stop_immediately(self) -> None:
        """Stop now or as soon as a signal arrives, without waiting for a step to finish."""
        self._immediate = True  # before the check, in case a signal arrives in between
        if number := self._received or self._agreed:
            raise Stopped(number)

    def _agree(self, trainer: Trainer) -> None:
        if trainer.world_size > 1:
            self._device = trainer.strategy.root_device
            self._reduce()

    def _reduce(self) -> None:
        received = torch.tensor([self._received], device=self._device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        self._agreed = max(self._agreed, int(received.item()))

    def _set_handlers(self) -> None:
        for number in self._previous or (signal.SIGTERM,):
            set_handler(number, self._handle)
