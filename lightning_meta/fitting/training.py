"""A run, from its Trainer to its results; shared by `lightning_meta.fit` and the command."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import Logger

from lightning_meta.data.validation import check_interval
from lightning_meta.errors import NonFiniteLossError, UserError
from lightning_meta.fitting.checks import as_list, check_launch, check_machine, check_ranks
from lightning_meta.fitting.ending import ending_well
from lightning_meta.fitting.place import Place
from lightning_meta.fitting.precision_note import PrecisionNote
from lightning_meta.fitting.progress_bar import progress_bar
from lightning_meta.fitting.run_checks import PartsCheck, check_parts, check_stages
from lightning_meta.fitting.seeding import note_use_of_seed
from lightning_meta.fitting.summary import print_summary, without_mean, write_outcome
from lightning_meta.multitask.selection import with_best_steps
from lightning_meta.nn.frozen import FeatureExtractor
from lightning_meta.resuming import check_class
from lightning_meta.run.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from lightning_meta.run.checkpoints import RunCheckpoint
from lightning_meta.run.memory import peak_memory
from lightning_meta.run.naming import Naming, as_argument
from lightning_meta.run.progress import check_progress, is_of_schedule, restoring_error
from lightning_meta.run.record import RunRecord
from lightning_meta.run.results import BEFORE_RESUME, facts, test_facts, write_report
from lightning_meta.run.termination import Termination
from lightning_meta.run.wandb_logger import WandbRunLogger, belonging_to
from lightning_meta.run.watch import RankWatch

TRAINER_DEFAULTS: dict[str, Any] = {
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 50,
    "enable_model_summary": False,  # `results.json` counts the parameters
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        directory: The run directory; None after `fast_dev_run`, which writes none.
        metrics: Logged test metrics by name, such as `test/accuracy`.
    """

    directory: Path | None
    metrics: Mapping[str, float]


class Training:
    """A run whose Trainer has been created and that is ready to start.

    Args:
        module: The module to train.
        data: The data module.
        options: Arguments of `lightning.pytorch.Trainer`, already instantiated. Loggers that write to the run directory
            were created for this `place`.
        checkpoint: The callback that keeps the best and the last checkpoint.
        place: Location of the run.
        config: The configuration as YAML, with the sections of `config.yaml`.
        allow_changes: Whether a resumed run may change options that affect the results.
        began: Start time of the run, by `time.monotonic`.
        say: Formats the name of an argument in messages.

    Raises:
        UserError: The requested accelerator is not available, the strategy starts copies of this process, or a run
            cannot use the callbacks, the module or the data.
        Exception: The Trainer does not accept the options.
    """

    def __init__(
        self,
        module: LightningModule,
        data: LightningDataModule,
        options: Mapping[str, Any],
        *,
        checkpoint: RunCheckpoint,
        place: Place,
        config: str,
        allow_changes: bool = False,
        began: float | None = None,
        say: Naming = as_argument,
    ) -> None:
        check_machine(options, say)
        check_parts(as_list(options.get("callbacks")), as_list(options.get("plugins")), say)
        check_stages(module, data, options, say)
        if options.get("max_steps") == 0:
            options = {**options, "limit_train_batches": 0}  # no training batch is read, nor its features computed
        self.module, self.data, self.checkpoint, self.say = module, data, checkpoint, say
        self.directory, self.resume_from = place.logger, place.checkpoint
        self.record = RunRecord(config, allow_changes, time.monotonic() if began is None else began, say)
        self.termination, self.watch = Termination(checkpoint), RankWatch(say)
        # The order matters: the record compares options before the checkpoint callback truncates `metrics.csv`, and the
        # checkpoint callback writes the previous step before other callbacks log values for the next one.
        callbacks = [self.record, PartsCheck(checkpoint, say), checkpoint, self.termination, self.watch]
        callbacks += [PrecisionNote(say), *as_list(options.get("callbacks"))]
        if not any(isinstance(c, LearningRateMonitor) for c in callbacks):
            callbacks.append(LearningRateMonitor("step"))
        if options.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(progress_bar())
        loggers = [logger for logger in as_list(options.get("logger")) if isinstance(logger, Logger)]
        if not options.get("fast_dev_run"):  # which writes nothing
            loggers = [belonging_to(place.logger, logger) for logger in loggers]
        self.trainer = Trainer(
            **{
                **options,
                "callbacks": callbacks,
                "logger": [place.logger, *loggers],
                "plugins": [*as_list(options.get("plugins")), AtomicCheckpointIO()],
                "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
            }
        )
        check_launch(self.trainer, say)

    def run(self) -> Run:
        """Train, then test the best checkpoint.

        Returns:
            The run directory and the test metrics.

        Raises:
            UserError: The input is wrong; the directory of a run without a checkpoint is deleted.
            NonFiniteLossError: The loss became NaN or infinite; the last good checkpoint is kept.
            Interrupted: Ctrl-C; the last checkpoint is kept.
            SystemExit: 143 after SIGTERM, 1 if another rank died.
        """
        try:
            with _pages(self.trainer), ending_well(self.trainer, self.termination, self.watch):
                return self._run()
        finally:
            self.directory.release()
            if self.trainer.fit_loop.epoch_loop.batch_progress.total.ready:
                note_use_of_seed()

    def rehearse(self) -> None:
        """Set up the run, train for the steps that the options ask for, and remove its directory.

        Raises:
            UserError: The input is wrong.
            Interrupted: Ctrl-C.
        """
        try:
            with ending_well(self.trainer, self.termination, self.watch):
                self._train()
        finally:
            self.directory.discard()

    def _run(self) -> Run:
        trainer, directory = self.trainer, self.directory
        try:
            self._train()
        except NonFiniteLossError:
            raise
        except SystemExit:  # after Ctrl-C or SIGTERM
            if directory.version is not None and not any(directory.directory.glob("checkpoints/*.ckpt")):
                directory.discard()
            raise
        except Exception as error:
            # Delete the directory of a run that took no step, or failed on wrong input before its first checkpoint.
            untrained = trainer.global_step <= self.record.start
            if untrained or (isinstance(error, UserError) and not self._has_trained_checkpoint()):
                directory.discard()
            raise
        self.checkpoint.check_scores(trainer)
        tested = self._test_best()
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
        if tested is None:
            return Run(None, metrics)
        if trainer.is_global_zero:
            self._write_results(tested, metrics)
        return Run(tested.parent.parent, metrics)

    def _train(self) -> None:
        trainer, checkpoint = self.trainer, self.resume_from
        if checkpoint is not None:
            stored = read_checkpoint(checkpoint)
            check_progress(stored, checkpoint)
            check_class(self.module, stored, checkpoint)
        check_ranks(trainer, self.data)
        try:
            with _frozen_on_purpose(self.module):
                trainer.fit(self.module, datamodule=self.data, ckpt_path=checkpoint)
        except NonFiniteLossError as error:
            error.args = (f"{error}; the last good checkpoint is {self.watch.last}",)
            raise
        except Exception as error:
            if trainer.train_dataloader is not None:  # the length of an epoch of custom data modules is known now
                check_interval(trainer, trainer.num_training_batches)
            resumed = trainer.ckpt_path
            if resumed is None or (trainer.global_step > self.record.start and not is_of_schedule(error)):
                raise
            if better := restoring_error(error, resumed):
                raise better from error
            raise

    def _has_trained_checkpoint(self) -> bool:
        """Whether the last checkpoint contains steps that this process trained."""
        if self.directory.version is None:  # only rank 0 creates the directory
            return False
        last = self.directory.directory / "checkpoints" / "last.ckpt"
        return last.is_file() and read_checkpoint(last).get("global_step") != self.record.start

    def _test_best(self) -> Path | None:
        """Test the best checkpoint, or the last if nothing was validated; None after `fast_dev_run`, which has none."""
        trainer = self.trainer
        if getattr(trainer, "fast_dev_run", False):
            trainer.test(self.module, datamodule=self.data, verbose=False)
            return None
        folder = Path(trainer.log_dir or "") / "checkpoints"
        best = folder / "best.ckpt"
        chosen = best if best.is_file() else folder / "last.ckpt"
        trained = trainer.max_steps != 0
        if trained and chosen is not best and self.checkpoint.monitor is not None and trainer.is_global_zero:
            _log.warning(
                "no validation was run, so the last checkpoint is tested: train for longer or validate earlier"
            )
        trainer.test(self.module, datamodule=self.data, ckpt_path=chosen, verbose=False)
        return chosen

    def _write_results(self, tested: Path, metrics: Mapping[str, float]) -> None:
        directory = self.directory.directory
        about = {"seed": self.record.options["seed_everything"], "checkpoint": str(tested.relative_to(directory))}
        about |= {"steps": self.trainer.global_step, "wall_time_s": round(self.record.seconds, 2)}
        about |= {"train_time_s": round(self.checkpoint.seconds, 2)}
        if (peak := peak_memory(self.trainer.strategy.root_device)) is not None:
            about |= {"peak_memory_mb": peak}
        if report := getattr(self.module, "test_report", None):
            write_report(directory, {**report, "per_task": with_best_steps(report["per_task"], tested)})
        about |= {**test_facts(self.data), **facts(self.module, self.data, self.trainer)}
        if self.record.resumes:
            about["resumes"] = self.record.resumes
        write_outcome(directory, metrics, about)
        (directory / BEFORE_RESUME).unlink(missing_ok=True)
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbRunLogger):
                logger.log_run(directory, metrics)
        print_summary(metrics, directory, getattr(self.data, "test_conditions", ""), without_mean(self.module))


@contextmanager
def _frozen_on_purpose(module: LightningModule) -> Iterator[None]:
    """Suppress Lightning's warning about layers in evaluation mode if a network is `Frozen`."""
    with warnings.catch_warnings():
        if any(isinstance(part, FeatureExtractor) and part.frozen for part in module.modules()):
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        yield


@contextmanager
def _pages(trainer: Trainer) -> Iterator[None]:
    """Close the W&B runs at the end, also after an error, so that the next run of this process gets new ones."""
    status = 1
    try:
        yield
        status = 0
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbRunLogger):
                logger.close(status)
