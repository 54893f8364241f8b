"""Checks of the arguments of a run, before any object is created from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger

from lightning_meta.checks import instance
from lightning_meta.data import EpisodicDataModule
from lightning_meta.data.loader import check_shared
from lightning_meta.errors import UserError, meant, reason_of
from lightning_meta.module import trains_in_copies
from lightning_meta.run.naming import Naming, as_argument

SEEDS = 2**32
LEAST: dict[str, float] = {
    "max_steps": 0,  # 0 trains nothing: a frozen model is tested and saved
    "max_epochs": 1,
    "min_steps": 0,
    "min_epochs": 0,
    "num_nodes": 1,
    "fast_dev_run": 0,
    "log_every_n_steps": 0,
    "check_val_every_n_epoch": 1,
    "accumulate_grad_batches": 1,
    "reload_dataloaders_every_n_epochs": 0,
    "gradient_clip_val": 0,
    "num_sanity_val_steps": 0,
}
WITHOUT_END = ("max_steps", "max_epochs", "num_sanity_val_steps")  # -1 means no limit
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}
PARTS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "val_check_interval")


def check_trainer(options: Mapping[str, Any], used: str, say: Naming = as_argument) -> None:
    """Refuse Trainer options out of range, which Lightning would accept, or reject only during the run.

    Args:
        options: Arguments of `lightning.pytorch.Trainer`.
        used: The stage that must have batches: "train" or "test".
        say: Formats the name of an argument in the error.

    Raises:
        UserError: An option is out of range.
    """
    for name, least in LEAST.items():
        value = options.get(name)
        if value is not None and _is_number(value) and not (value >= least or (value == -1 and name in WITHOUT_END)):
            no_limit = ", or -1 for no limit" if name in WITHOUT_END else ""
            raise UserError(f"{say(f'trainer.{name}')}: at least {least:g} is needed{no_limit}, got {value}")
    for name in PARTS:
        needed = name in (f"limit_{used}_batches", "val_check_interval")
        _check_part(say(f"trainer.{name}"), options.get(name), needed)
    _check_time(say("trainer.max_time"), options.get("max_time"))
    for unit in ("steps", "epochs"):
        low, high = options.get(f"min_{unit}"), options.get(f"max_{unit}")
        if low is not None and high is not None and -1 != high < low:
            least_name, most_name = say(f"trainer.min_{unit}"), say(f"trainer.max_{unit}")
            raise UserError(f"{least_name}: {low} is more than {most_name}, {high}; lower one of them")


def check_machine(options: Mapping[str, Any], say: Naming = as_argument) -> None:
    """Refuse accelerators that this machine does not have, and zero devices.

    Args:
        options: Arguments of `lightning.pytorch.Trainer`, as configured.
        say: Formats the name of an argument in the error.

    Raises:
        UserError: The accelerator is unknown or not available, or `devices` is 0.
    """
    name = options.get("accelerator", "auto")
    if name != "auto" and not isinstance(name, Accelerator):
        names = sorted({"auto", "gpu", *AcceleratorRegistry.available_accelerators()})
        if name not in names:
            where = say("trainer.accelerator")
            raise UserError(f"{where}: expected {' or '.join(names)}, got {name}{meant(name, names)}")
        kinds = [CUDAAccelerator, MPSAccelerator] if name == "gpu" else [AcceleratorRegistry[name]["accelerator"]]
        if not any(kind.is_available() for kind in kinds):
            shown = name.upper() if name in ("gpu", "tpu") else name
            raise UserError(
                f"{say('trainer.accelerator')}: torch finds no {shown} here; leave it out to use what this machine has"
            )
    if options.get("devices") in (0, "0"):
        raise UserError(f"{say('trainer.devices')}: 0 leaves nothing to train on; leave it out, or give 1 or more")


def quiet_trainer(options: Mapping[str, Any]) -> Trainer:
    """Make a Trainer for an evaluation that neither prints nor writes anything.

    Args:
        options: Arguments of `lightning.pytorch.Trainer`, which take precedence over the quiet ones.

    Raises:
        UserError: An option is out of range, of the wrong type, unknown, or not possible on this machine.
    """
    if options.get("barebones"):
        raise UserError("barebones: it turns off the logging that the results are read from; leave it out")
    for name, kind in (("callbacks", Callback), ("logger", Logger)):
        for item in as_list(options.get(name)):
            instance(name, item, kind)
    check_trainer(options, "test")
    check_machine(options)
    try:
        return Trainer(**{**QUIET, **options, "callbacks": as_list(options.get("callbacks"))})
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(reason_of(error)) from error


def as_list(value: Any) -> list[Any]:
    """An empty list for None or a bool, a list of one for a single object."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def check_monitor(options: Mapping[str, Any], monitor: str | None, say: Naming = as_argument) -> None:
    """Refuse to choose the best checkpoint by a metric that is never computed.

    Args:
        options: Arguments of `lightning.pytorch.Trainer`.
        monitor: Validation metric that selects the best checkpoint; None if there is none.
        say: Formats the name of an argument in the error.

    Raises:
        UserError: Validation is turned off, but a validation metric is monitored.
    """
    if options.get("limit_val_batches") == 0 and monitor is not None and not options.get("fast_dev_run"):
        raise UserError(
            f"{say('trainer.limit_val_batches')}: 0 turns validation off, but {say('checkpoint.monitor', monitor)} "
            f"needs it to choose the best checkpoint; leave it out, or give {say('checkpoint.monitor', None)} to test "
            "the last checkpoint"
        )


def check_seed(seed: Any, say: Naming = as_argument) -> None:
    """Refuse seeds that some random generators do not accept.

    Args:
        seed: Seed, in [0, 2³²); None or a bool is not checked.
        say: Formats the name of an argument in the error.

    Raises:
        UserError: The seed is negative or too large.
    """
    if not isinstance(seed, bool) and seed is not None and not 0 <= seed < SEEDS:
        raise UserError(f"{say('seed')}: expected 0 to {SEEDS - 1}, got {seed}")


def check_launch(trainer: Trainer, say: Naming = as_argument) -> None:
    """Refuse strategies that train in copies of this process, from which only weights return.

    Args:
        trainer: The Trainer of a run, which has chosen its strategy.
        say: Formats the name of an argument in the error.

    Raises:
        UserError: It has such a strategy; Lightning chooses one in notebooks.
    """
    if trains_in_copies(trainer):
        ddp, one = say("trainer.strategy", "ddp"), say("trainer.devices", 1)
        raise UserError(
            f"{say('trainer.strategy')}: {type(trainer.strategy).__name__} would train in copies of this process, "
            f"which do not return the results of a run; in a script use {ddp}, in a notebook {one}"
        )


def check_ranks(trainer: Trainer, data: LightningDataModule | None) -> None:
    """Refuse a meta-batch that cannot be divided evenly among the ranks, before they start and before data are read.

    Args:
        trainer: The Trainer, which knows the number of ranks.
        data: The data module.

    Raises:
        UserError: The number of ranks does not divide the size of the meta-batch.
    """
    if isinstance(data, EpisodicDataModule):
        check_shared(data.meta_batch_size, trainer.world_size)


def _check_part(name: str, value: Any, needed: bool) -> None:
    """Refuse a value that is neither a number of batches nor a fraction of them; 0 is also refused if `needed`."""
    if not _is_number(value):
        return
    is_fraction = isinstance(value, float)
    if value < 0 or (value == 0 and needed) or (is_fraction and not value <= 1):
        low = "above 0" if needed else "from 0"
        raise UserError(
            f"{name}: a whole number of batches {low}, or a fraction of them {low} up to 1.0, is needed, got {value}"
        )


def _check_time(name: str, value: Any) -> None:
    """Refuse a time limit that is not a time, or that is too short for any training."""
    try:
        left = Timer(value).time_remaining()  # in seconds
    except (AttributeError, TypeError, MisconfigurationException):
        left = 0
    if left is not None and left <= 0:
        raise UserError(f"{name}: a time above 0 is needed, as DD:HH:MM:SS, such as 00:12:00:00 for 12 h, got {value}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
