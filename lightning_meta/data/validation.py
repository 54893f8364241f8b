"""Check before training that the Trainer will validate at least once."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer

from lightning_meta.errors import UserError


def check_validates(trainer: Trainer, batches: int) -> None:
    """Refuse an interval between validations that is longer than the training, or than an epoch.

    Args:
        trainer: The Trainer, before training.
        batches: Number of training batches per epoch.

    Raises:
        UserError: There would be no validation.
    """
    if not trainer.limit_val_batches or trainer.overfit_batches or getattr(trainer, "fast_dev_run", False):  # type: ignore[attr-defined]
        return
    limit: int | float = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps >= 0 else math.inf
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
    every, epochs_between = trainer.val_check_interval, trainer.check_val_every_n_epoch
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


def check_interval(trainer: Trainer, batches: float) -> None:
    """Refuse an interval between validations that is longer than an epoch.

    Args:
        trainer: The Trainer.
        batches: Number of batches per epoch that it uses; infinite for data without a length.

    Raises:
        UserError: No validation would be within an epoch.
    """
    every = trainer.val_check_interval
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
