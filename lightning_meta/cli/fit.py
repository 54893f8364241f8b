"""`lightning-meta fit`: train, keep the best and the last checkpoint, test the best."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from lightning_meta.cli.checks import check_machine, check_monitor, check_ranks, check_seed, check_trainer
from lightning_meta.cli.config_text import check_fit_configs
from lightning_meta.cli.ending import ending_well
from lightning_meta.cli.helping import Parser
from lightning_meta.cli.messages import one_line, parsing
from lightning_meta.cli.options import as_options, naming_options, places_of
from lightning_meta.cli.parsing import Bar, as_list, log_into_run, mistake_in, remember_networks, with_save_dir
from lightning_meta.cli.summary import print_summary, write_outcome
from lightning_meta.configuration import Described, refuse_unknown
from lightning_meta.errors import NonFiniteLossError, UserError
from lightning_meta.loading import weights_error
from lightning_meta.reading import refuse_links_out
from lightning_meta.resuming import check_class
from lightning_meta.run import AtomicCheckpointIO, RunCheckpoint, RunLogger, RunRecord, SaveConfig
from lightning_meta.run.checkpoint_io import read_checkpoint
from lightning_meta.run.directory import checkpoint_to_resume, run_directory_of
from lightning_meta.run.monitors import MonitorCheck
from lightning_meta.run.names import refuse_name
from lightning_meta.run.progress import check_progress, restoring_error
from lightning_meta.run.record import seed_of
from lightning_meta.run.results import BEFORE_RESUME, facts, write_report
from lightning_meta.run.termination import Termination
from lightning_meta.run.wandb_logger import WandbRunLogger
from lightning_meta.run.watch import RankWatch

_log = logging.getLogger(__name__)

TRAINER_DEFAULTS: dict[str, Any] = {
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 50,
    "enable_model_summary": False,  # `results.json` counts the parameters
}


class MetaCLI(LightningCLI):
    """Reads the configuration of a training run, and makes its model, data and Trainer.

    There are no subcommands: with them Lightning lets the hyper-parameters of a checkpoint silently beat the
    command line.

    Args:
        args: The options.
    """

    config: Namespace

    def __init__(self, args: Sequence[str]) -> None:
        self.resume_from: Path | None = None
        self.allow_changes, self._began = False, time.monotonic()
        self.run_logger = RunLogger()
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,  # `SaveConfig` takes its place
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={
                "prog": "lightning-meta fit",
                "description": "Train a model, keep its best and last checkpoints, and test the best.",
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=list(args),
            run=False,
            parser_class=Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # `Described` remembers the arguments
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run itself."""
        parser.add_argument("--name", type=str | None, help="Name of the run; by default the config file's.")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="Go on from this checkpoint or run directory; `last` is the newest run of this name.",
        )
        parser.add_argument(
            "--allow_changes",
            action="store_true",
            help="Resume even with options that change what the numbers mean: they hold from there on.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the options, and find the run directory to go on in."""
        with parsing():
            check_fit_configs(args)
            self.config = parser.parse_args(with_save_dir(args))
        if self.config.get("model") is None:
            raise UserError("--model must be given; name a configuration with --config FILE")
        check_seed(self.config.seed_everything)
        check_trainer(self.config.trainer, "train")
        check_monitor(self.config.trainer, self.config.checkpoint.monitor)
        if not self.config.runs.strip():
            raise UserError("--runs: name a folder, such as runs")
        name = self.config.name
        if name is None:
            files = [Path(str(file)) for file in as_list(self.config.get("config"))]
            self.config.name = files[-1].stem if files else "run"
        refuse_name("--name", self.config.name)
        self.run_logger = RunLogger(self.config.runs, self.config.name, exclusive=True)
        if self.config.ckpt_path is not None:
            self.resume_from = checkpoint_to_resume(self.config.ckpt_path, self.config.runs, self.config.name)
            if run := run_directory_of(self.resume_from):
                refuse_links_out(run)
                _check_name(name, run)
                self.config.runs, self.config.name = str(run.parent.parent), run.parent.name
                self.run_logger = RunLogger(run.parent.parent, run.parent.name, int(run.name), exclusive=True)
            if self.config.seed_everything is True:  # any: that of the run
                self.config.seed_everything = seed_of(self.resume_from)
        self.allow_changes = self.config.allow_changes
        self.config.ckpt_path, self.config.allow_changes = None, False  # the saved configuration starts anew

    def instantiate_classes(self) -> None:
        """Make the objects."""
        with parsing():
            self.config_text = self.parser.dump(self.config, skip_unset=False)
        self.run_logger.hold()  # before anything is written into it
        configured, self.config = self.config, log_into_run(self.config.clone(), self.run_logger)
        remember_networks(configured.model)
        try:
            super().instantiate_classes()
            if isinstance(self.model, Described):
                refuse_unknown(self.model)
        except UserError as error:
            self.run_logger.discard()
            error.args = (as_options(str(error), places_of(configured)),)
            raise
        except (TypeError, ValueError) as error:
            self.run_logger.discard()
            raise mistake_in(configured) or UserError(one_line(error)) from error
        except BaseException:
            self.run_logger.discard()
            raise
        self.config = configured

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, the run's own callbacks and logger first."""
        options = {**self.config_init["trainer"].as_dict(), **kwargs}
        check_machine(options)
        checkpoint = self.config_init["checkpoint"]
        self.termination, self.watch = Termination(checkpoint), RankWatch()
        written = yaml.safe_load(self.config_text)
        self.record = RunRecord(written, self.allow_changes, self._began)
        callbacks = [
            self.record,
            MonitorCheck(),
            checkpoint,
            self.termination,
            self.watch,
            SaveConfig(self.config_text, self.record),
        ]
        callbacks += as_list(options["callbacks"])
        if not any(isinstance(c, LearningRateMonitor) for c in callbacks):
            callbacks.append(LearningRateMonitor("step"))
        if options["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(Bar())
        loggers = [logger for logger in as_list(options["logger"]) if isinstance(logger, Logger)]
        options |= {
            "callbacks": callbacks,
            "logger": [self.run_logger, *loggers],
            "plugins": [*as_list(options["plugins"]), AtomicCheckpointIO()],
            "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        }
        return Trainer(**options)


def _check_name(name: str | None, run: Path) -> None:
    """Refuse a name that the run does not get: it is resumed where it lies."""
    if name is not None and name != run.parent.name:
        raise UserError(f"--name {name}: {run} is resumed in its own folder; leave --name out, or move the folder")


def fit(args: Sequence[str]) -> None:
    """Train, then test the best checkpoint.

    Args:
        args: The options.
    """
    cli = MetaCLI(args)
    try:
        with naming_options(cli.config), _pages(cli.trainer), ending_well(cli.trainer, cli.termination, cli.watch):
            _fit(cli)
    finally:
        cli.run_logger.release()


@contextmanager
def _pages(trainer: Trainer) -> Iterator[None]:
    """End the pages of a run in W&B however it ends, so that the next run of this process has its own."""
    status = 1
    try:
        yield
        status = 0
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbRunLogger):
                logger.close(status)


def _fit(cli: MetaCLI) -> None:
    trainer, run = cli.trainer, cli.run_logger
    try:
        _train(cli)
    except NonFiniteLossError:
        raise
    except SystemExit:  # by Ctrl-C or SIGTERM
        if run.claimed and not any(run.directory.glob("checkpoints/*.ckpt")):
            run.discard()
        raise
    except Exception as error:
        # A run that never trained, or whose mistake came to light before its first checkpoint, leaves nothing.
        untrained = trainer.global_step <= cli.record.start
        if untrained or (isinstance(error, UserError) and not _has_trained_checkpoint(cli)):
            run.discard()
        raise
    cli.config_init["checkpoint"].check_scores(trainer)
    tested = _test_best(cli)
    if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
        best = tested.relative_to(run.directory)
        seconds = round(cli.record.seconds, 2)
        about = {"seed": cli.config.seed_everything, "checkpoint": str(best), "steps": trainer.global_step}
        about |= {"wall_time_s": seconds, "train_time_s": round(cli.config_init["checkpoint"].seconds, 2)}
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
        if report := getattr(cli.model, "test_report", None):
            write_report(run.directory, report)
        about |= facts(cli.model, cli.datamodule, trainer)
        if cli.record.resumes:
            about["resumes"] = cli.record.resumes
        write_outcome(run.directory, metrics, about)
        (run.directory / BEFORE_RESUME).unlink(missing_ok=True)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRunLogger):
                logger.log_run(run.directory, metrics)
        print_summary(metrics, run.directory)


def _has_trained_checkpoint(cli: MetaCLI) -> bool:
    """Whether the run keeps steps that this process trained."""
    if not cli.run_logger.claimed:  # by rank 0 alone
        return False
    last = cli.run_logger.directory / "checkpoints" / "last.ckpt"
    return last.is_file() and read_checkpoint(last).get("global_step") != cli.record.start


def _train(cli: MetaCLI) -> None:
    trainer, checkpoint = cli.trainer, cli.resume_from
    if checkpoint is not None:
        stored = read_checkpoint(checkpoint)
        check_progress(stored, checkpoint)
        check_class(cli.model, stored, checkpoint)
    check_ranks(trainer, cli.datamodule)
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    except NonFiniteLossError as error:
        error.args = (f"{error}; the last good checkpoint is {cli.watch.last}",)
        raise
    except Exception as error:
        if str(error).lstrip().startswith("`val_check_interval`"):  # data modules of the user's
            raise UserError(f"--trainer.val_check_interval: {str(error).strip()}") from error
        resumed = trainer.ckpt_path
        if resumed is None or trainer.global_step > cli.record.start:
            raise
        if better := weights_error(error, resumed) or restoring_error(error, resumed):
            raise better from error
        raise


def _test_best(cli: MetaCLI) -> Path:
    """Test the best checkpoint; the last where nothing was validated."""
    trainer = cli.trainer
    if getattr(trainer, "fast_dev_run", False):
        trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        return Path()
    folder = Path(trainer.log_dir or "") / "checkpoints"
    best = folder / "best.ckpt"
    chosen = best if best.is_file() else folder / "last.ckpt"
    if chosen is not best and cli.config_init["checkpoint"].monitor is not None and trainer.is_global_zero:
        _log.warning("no validation took place, so the last checkpoint is tested: train for longer or validate sooner")
    trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=chosen, verbose=False)
    return chosen


def fit_options() -> list[str]:
    """The names of all options."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
    own = ["config", "name", "runs", "ckpt_path", "allow_changes", "seed_everything", "model", "data"]
    return [*parser.get_defaults().keys(), *own]
