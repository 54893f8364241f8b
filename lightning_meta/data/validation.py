"""Check before training that the Trainer will validate, and that it does so near the end."""

from __future__ import annotations

import logging
import math

from lightning.pytorch import Trainer

from lightning_meta.errors import UserError

_log = logging.getLogger(__name__)

UNSEEN = 0.05  # share of the training after the last validation from which on there is a warning


def check_validates(trainer: Trainer, batches: int) -> None:
    """Refuse an interval between validations that is longer than the training, or than an epoch.

    Args:
        trainer: The Trainer, before training.
        batches: Number of training batches per epoch.

    Raises:
        UserError: There would be no validation.
    """
    every = _interval(trainer)
    if every is None or trainer.overfit_batches or getattr(trainer, "fast_dev_run", False):  # type: ignore[attr-defined]
        return
    limit: int | float = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps >= 0 else math.inf
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
    epochs_between = trainer.check_val_every_n_epoch
    check_interval(trainer, batches)
    in_all = min(steps, epochs * batches)
    if isinstance(every, int) and epochs_between is None and every > in_all:
        raise UserError(f"val_check_interval: training ends after {in_all} batches, before one of {every}; lower it")
    last = in_all / batches if batches else math.inf
    if epochs_between is not None and epochs_between > 1 and last < epochs_between:
        raise UserError(
            f"check_val_every_n_epoch: training ends after {last:.3g} epochs, so there is none after {epochs_between}; "
            "lower it, or train for longer"
        )
    # Lightning does not validate at the end of a training that ends within an epoch.
    selects = any(getattr(callback, "monitor", None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if selects and trainer.is_global_zero and math.isfinite(in_all) and batches:
        _warn_of_end(int(in_all), batches, every, epochs_between)


def _interval(trainer: Trainer) -> int | float | None:
    """`val_check_interval` in batches, or as a share of an epoch; None without validation, or if it is a time."""
    every: int | float | None = getattr(trainer, "val_check_interval", None)  # a time is stored elsewhere
    return every if trainer.limit_val_batches else None


def _warn_of_end(in_all: int, batches: int, every: int | float, epochs_between: int | None) -> None:
    """Warn if training goes on for long after its last validation; the arguments are those of `last_validation`."""
    last = last_validation(in_all, batches, every, epochs_between)
    if last and in_all - last > UNSEEN * in_all:  # without any validation the last step is tested
        _log.warning(
            "training ends after %s batches, and its last validation is after %s: no later step can become the best "
            "checkpoint. Train for whole epochs of %s batches, or validate more often by val_check_interval",
            *(f"{number:,}" for number in (in_all, last, batches)),
        )


def last_validation(in_all: int, batches: int, every: int | float, epochs_between: int | None) -> int:
    """Number of batches after which the last validation of a training takes place; 0 if there is none.

    Args:
        in_all: Number of batches of the training.
        batches: Number of batches per epoch.
        every: `val_check_interval`: a number of batches, or a share of an epoch.
        epochs_between: `check_val_every_n_epoch`; None counts `every` over epochs.
    """
    if epochs_between is None:
        return in_all // int(every) * int(every)
    step = every if isinstance(every, int) else max(1, int(batches * every))
    whole, rest = divmod(in_all, batches)
    if rest >= step and (whole + 1) % epochs_between == 0:
        return whole * batches + rest // step * step
    validated = whole // epochs_between * epochs_between
    return (validated - 1) * batches + batches // step * step if validated else 0


def check_interval(trainer: Trainer, batches: float) -> None:
    """Refuse an interval between validations that is longer than an epoch.

    Args:
        trainer: The Trainer.
        batches: Number of batches per epoch that it uses; infinite for data without a length.

    Raises:
        UserError: No validation would be within an epoch.
    """
    every = _interval(trainer)
    if trainer.check_val_every_n_epoch is None:
        return
    if isinstance(every, int) and every > batches:
        raise UserError(
            f"val_check_interval: an epoch has {batches} batches, so {every} never pass within one; use at most "
            f"{batches}, or check_val_every_n_epoch null (None) to count batches over epochs"
        )
    if isinstance(every, float) and every != 1 and batches == math.inf:
        raise UserError(
            f"val_check_interval: the length of an epoch is not known, so {every} of it is not either; use a whole "
            "number of batches"
        )
