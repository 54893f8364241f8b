"""`lightning_meta.fit`: the command `lightning-meta fit` as a Python function."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from lightning_meta.checks import instance
from lightning_meta.errors import UserError, reason_of
from lightning_meta.fitting.arguments import check_arguments, check_counts
from lightning_meta.fitting.checks import as_list, check_monitor, check_trainer
from lightning_meta.fitting.default_checkpoint import default_checkpoint
from lightning_meta.fitting.description import config_of
from lightning_meta.fitting.place import find_place
from lightning_meta.fitting.quiet import quiet_lightning
from lightning_meta.fitting.run_checks import check_run_options
from lightning_meta.fitting.seeding import set_seed
from lightning_meta.fitting.training import TRAINER_DEFAULTS, Run, Training
from lightning_meta.run.checkpoints import RunCheckpoint
from lightning_meta.run.naming import naming_arguments
from lightning_meta.run.termination import Interrupted

# Names in other libraries and in the command, and the corresponding argument of `fit`.
MEANT = {"ckpt_path": "resume", "seed_everything": "seed", "epochs": "max_epochs", "steps": "max_steps"}


@quiet_lightning()
def fit(
    module: LightningModule,
    data: LightningDataModule,
    *,
    name: str | None = None,
    runs: str | os.PathLike[str] = "runs",
    seed: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    allow_changes: bool = False,
    checkpoint: RunCheckpoint | None = None,
    callbacks: Callback | Sequence[Callback] | None = None,
    logger: Logger | Sequence[Logger] | None = None,
    **trainer: Any,
) -> Run:
    """Train a module, keep its best and last checkpoints, test the best, and write a run directory.

    The directory `<runs>/<name>/<version>/` contains the same files as after `lightning-meta fit`: `config.yaml`,
    `metrics.csv`, `checkpoints/`, `results.json`, `predictions.npz`, `per_task.csv` and `figures/`. `load` and the
    commands read it::

        lightning.seed_everything(0)  # before the module is created, which draws its weights
        data = lm.EpisodicDataModule(lm.sources.Glyphs(), queries=5)
        run = lm.fit(lm.ProtoNet(lm.nn.Conv4(in_channels=1)), data, name="mine", max_steps=200)
        model = lm.load(run.directory)

    Ctrl-C finishes the step, writes the last checkpoint and raises KeyboardInterrupt. SIGTERM does the same and raises
    SystemExit with status 143. A line on stderr says how to resume.

    In `config.yaml`, an object that cannot be described by its class and arguments, such as a network of torch or a
    callback, is `{instance: <its class>}`. If the file has none, `lightning-meta fit --config` can repeat the run.

    Args:
        module: The module to train.
        data: The data module.
        name: Name of the run; by default `run`, or the name of the resumed run.
        runs: Folder of all runs.
        seed: Seed of all random generators, set before training begins, that is after the weights were drawn. By
            default the current random state is used. If you call `lightning.seed_everything(n)` before creating the
            module, the run is the same as that of the command with `seed_everything: n`. A resumed run keeps its seed.
        resume: A checkpoint or a run directory to resume, such as `runs/mine/0`; `last` is the newest run of this name.
        allow_changes: Whether a resumed run may change options that affect the results, such as the learning rate. The
            new values apply from the resumed step on.
        checkpoint: The callback that chooses the best checkpoint; by default it monitors `val/accuracy`, in few-shot
            regression the metric of the task, which is `val/mse` for built-in methods, and `val/score` for several
            tasks.
        callbacks: Additional callbacks.
        logger: Additional loggers. A `WandbLogger` is replaced by one that belongs to the run directory.
        **trainer: Arguments of `lightning.pytorch.Trainer`, such as `max_steps`.

    Returns:
        The run directory and the test metrics.

    Raises:
        UserError: The input is wrong; the directory of a run without a checkpoint is deleted.
        NonFiniteLossError: The loss became NaN or infinite; the last good checkpoint is kept.
    """
    began = time.monotonic()
    with naming_arguments(), _messages_on_stderr():
        instance("module", module, (LightningModule,))
        instance("data", data, (LightningDataModule,))
        check_run_options({**trainer, "logger": logger})
        check_arguments(name, runs, resume, allow_changes, checkpoint, callbacks, logger)
        _check_names(trainer)
        check_counts(trainer)
        checkpoint = default_checkpoint(module, data) if checkpoint is None else checkpoint
        options = {**TRAINER_DEFAULTS, **trainer, "callbacks": as_list(callbacks), "logger": as_list(logger)}
        check_trainer(options, "train")
        check_monitor(options, checkpoint.monitor)
        place = find_place(os.fspath(runs), name, None if resume is None else os.fspath(resume))
        used_seed, comment = set_seed(seed, place, drawn=not getattr(module, "solved", False))
        config = comment + config_of(module, data, options, checkpoint, place, used_seed)
        place.logger.hold()
        try:
            parts: dict[str, Any] = {"checkpoint": checkpoint, "place": place, "config": config}
            training = Training(module, data, options, allow_changes=allow_changes, began=began, **parts)
        except BaseException as error:
            place.logger.discard()
            from_trainer = isinstance(error, TypeError | ValueError | MisconfigurationException)
            if from_trainer and not isinstance(error, UserError):
                raise UserError(reason_of(error)) from error
            raise
        try:
            return training.run()
        except Interrupted:
            raise KeyboardInterrupt from None  # a subclass would end Python with status 1 instead of 130


@contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Show this package's messages, such as what a resumed run has changed, unless the user handles them."""
    messages = logging.getLogger("lightning_meta")
    if messages.hasHandlers():
        yield
        return
    before, handler = messages.level, logging.StreamHandler()
    messages.addHandler(handler)
    messages.setLevel(logging.INFO)
    try:
        yield
    finally:
        messages.removeHandler(handler)
        messages.setLevel(before)


def _check_names(trainer: dict[str, Any]) -> None:
    """Refuse arguments that neither `fit` nor the Trainer has, with a similar name that exists."""
    of_trainer = list(inspect.signature(Trainer).parameters)
    of_fit = list(inspect.signature(fit).parameters)
    for name in trainer:
        if name not in of_trainer:
            close = [MEANT[name]] if name in MEANT else difflib.get_close_matches(name, [*of_fit, *of_trainer], n=1)
            meant = f"did you mean {close[0]}?" if close else "see the documentation of lightning.pytorch.Trainer"
            raise UserError(f"{name}: neither lightning_meta.fit nor the Trainer has such an argument; {meant}")
