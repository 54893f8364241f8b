"""End a stopped run with an exception and one line on stderr that says how to resume."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_meta.errors import NonFiniteLossError, UserError
from lightning_meta.fitting.disk import disk_trouble
from lightning_meta.run.termination import Interrupted, Termination, status_of
from lightning_meta.run.watch import RankWatch, lost_connection


@contextmanager
def ending_well(trainer: Trainer, termination: Termination, watch: RankWatch) -> Iterator[None]:
    """Turn signals, dead ranks and disk errors into one exception and a one-line message.

    Args:
        trainer: The Trainer of the run.
        termination: The callback that stops the run on SIGTERM and Ctrl-C.
        watch: The callback that detects ranks that died.

    Raises:
        Interrupted: Ctrl-C on any rank.
        SystemExit: 143 after SIGTERM on any rank, 1 if another rank died.
        UserError: The disk is full, or a folder is not writable.
    """
    try:
        with termination, watch:
            yield
    except SIGTERMException as stop:
        number = getattr(stop, "number", int(signal.SIGTERM))  # Lightning's own exception has no signal number
        _say(trainer, watch.stopped_line(number))
        if not trainer.is_global_zero:
            time.sleep(1)  # rank 0 prints first: srun ends all ranks as soon as one has ended
        raise _stopped_by(number) from None
    except NonFiniteLossError as error:
        if error.on_all_ranks and not trainer.is_global_zero:
            raise SystemExit(1) from None  # rank 0 reports it
        raise
    except SystemExit:
        if not trainer.interrupted:
            raise
        _say(trainer, watch.stopped_line(signal.SIGINT))
        raise Interrupted from None
    except (RuntimeError, OSError) as error:
        if trouble := disk_trouble(error):
            raise UserError(
                f"cannot write ({trouble}); free disk space or fix it, then {watch.how_to_resume()}"
            ) from error
        if trainer.world_size == 1 or not lost_connection(error):
            raise
        watch.await_end_of_starter()
        if stopped_by := watch.stopped_by():
            _say(trainer, watch.stopped_line(stopped_by))
            raise _stopped_by(stopped_by) from None
        if watch.reports:
            dead = (
                watch.dead() or f"rank {trainer.global_rank} lost its connection to another rank, which may have died"
            )
            step = f"in step {trainer.global_step}"
            print(f"\nlightning-meta: error: {dead}, {step}; {watch.how_to_resume()}", file=sys.stderr)
        raise SystemExit(1) from None


def _stopped_by(number: int) -> BaseException:
    """SIGTERM ends the process; after Ctrl-C an interactive session may continue."""
    return Interrupted() if number == signal.SIGINT else SystemExit(status_of(number))


def _say(trainer: Trainer, line: str) -> None:
    if trainer.is_global_zero:
        print(line, file=sys.stderr)
