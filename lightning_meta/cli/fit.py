"""`lightning-meta fit`: train, keep the best and the last checkpoint, test the best."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from lightning_meta.cli.checks import check_monitor, check_ranks, check_seed, check_trainer
from lightning_meta.cli.ending import ending_well
from lightning_meta.cli.helping import Parser
from lightning_meta.cli.messages import parsing
from lightning_meta.cli.naming import as_option, told_of_options
from lightning_meta.cli.parsing import Bar, as_list, log_into_run, mistake_in, remember_modules, with_save_dir
from lightning_meta.cli.summary import print_summary
from lightning_meta.errors import NonFiniteLossError, UserError
from lightning_meta.loading import check_same_class, weights_error
from lightning_meta.report import write_figures
from lightning_meta.run import AtomicCheckpointIO, RunCheckpoint, RunLogger, SaveConfig
from lightning_meta.run.directory import checkpoint_to_resume, run_directory_of
from lightning_meta.run.names import refuse_name
from lightning_meta.run.results import facts, write_report, write_results
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
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the options, and find the run directory to go on in."""
        _refuse_ladder(args)
        with parsing():
            self.config = parser.parse_args(with_save_dir(args))
        if self.config.get("model") is None:
            raise UserError("--model must be given; name a configuration with --config FILE")
        check_seed(self.config.seed_everything)
        check_trainer(self.config.trainer, "train")
        check_monitor(self.config.trainer, self.config.checkpoint.monitor)
        if not self.config.runs.strip():
            raise UserError("--runs: name a folder, such as runs")
        if self.config.name is None:
            files = [Path(str(file)) for file in as_list(self.config.get("config"))]
            self.config.name = files[-1].stem if files else "run"
        refuse_name("--name", self.config.name)
        self.run_logger = RunLogger(self.config.runs, self.config.name, exclusive=True)
        if self.config.ckpt_path is not None:
            self.resume_from = checkpoint_to_resume(self.config.ckpt_path, self.config.runs, self.config.name)
            if run := run_directory_of(self.resume_from):
                self.run_logger = RunLogger(run.parent.parent, run.parent.name, int(run.name), exclusive=True)
            self.config.ckpt_path = None  # the saved configuration starts anew

    def instantiate_classes(self) -> None:
        """Make the objects."""
        with parsing():
            self.config_text = self.parser.dump(self.config, skip_unset=False)
        self.run_logger.hold()  # before anything is written into it
        configured, self.config = self.config, log_into_run(self.config.clone(), self.run_logger)
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            self.run_logger.discard()
            said = str(error) if isinstance(error, UserError) else f"the configuration: {error}"
            raise mistake_in(configured) or as_option(UserError(said), configured) from error
        except BaseException:
            self.run_logger.discard()
            raise
        self.config = configured
        remember_modules(self.model, configured.model.get("init_args", Namespace()))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, the run's own callbacks and logger first."""
        options = {**self.config_init["trainer"].as_dict(), **kwargs}
        checkpoint = self.config_init["checkpoint"]
        self.termination, self.watch = Termination(checkpoint), RankWatch()
        callbacks = [checkpoint, self.termination, self.watch, SaveConfig(self.config_text)]
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


def _refuse_ladder(args: Sequence[str]) -> None:
    """Say of a ladder's file what it is; the parser would only name an option that it does not know."""
    for option, value in pairwise([*args, ""]):
        name, _, joined = option.partition("=")
        file = Path(joined or value)
        if name in ("-c", "--config") and "\n" not in str(file) and file.is_file():
            content = file.read_text(encoding="utf-8", errors="replace")
            if re.search(r"^rungs:", content, re.MULTILINE):
                raise UserError(f"--config: {file} is a ladder; run it with scripts/ladder.py --config {file}")


def fit(args: Sequence[str]) -> None:
    """Train, then test the best checkpoint.

    Args:
        args: The options.
    """
    began = time.monotonic()
    cli = MetaCLI(args)
    try:
        with told_of_options(cli.config), _pages(cli.trainer), ending_well(cli.trainer, cli.termination, cli.watch):
            _fit(cli, began)
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


def _fit(cli: MetaCLI, began: float) -> None:
    trainer, run = cli.trainer, cli.run_logger
    try:
        _train(cli)
        tested = _test_best(cli)
    except NonFiniteLossError:
        raise
    except SystemExit:  # by Ctrl-C or SIGTERM
        if run.claimed and not any(run.directory.glob("checkpoints/*.ckpt")):
            run.discard()
        raise
    except Exception as error:
        # A run that never trained, or whose mistake came to light in its first validation, leaves nothing.
        unvalidated = cli.config_init["checkpoint"].best_score is None
        if trainer.global_step == 0 or (isinstance(error, UserError) and unvalidated):
            run.discard()
        raise
    if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
        best = tested.relative_to(run.directory)
        seconds = round(time.monotonic() - began, 2)
        about = {"seed": cli.config.seed_everything, "checkpoint": str(best), "steps": trainer.global_step}
        about |= {"wall_time_s": seconds, "train_time_s": round(cli.config_init["checkpoint"].seconds, 2)}
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
        if report := getattr(cli.model, "test_report", None):
            write_report(run.directory, report)
        about |= facts(cli.model, cli.datamodule, trainer)
        write_results(run.directory, metrics, about)  # last: the run is whole
        write_figures(run.directory)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRunLogger):
                logger.log_run(run.directory, metrics)
        print_summary(metrics, run.directory)


def _train(cli: MetaCLI) -> None:
    trainer, checkpoint = cli.trainer, cli.resume_from
    if checkpoint is not None:
        check_same_class(cli.model, checkpoint)
    check_ranks(trainer, cli.datamodule)
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    except NonFiniteLossError as error:
        error.args = (f"{error}; the last good checkpoint is {cli.watch.last}",)
        raise
    except (RuntimeError, ValueError) as error:
        if str(error).lstrip().startswith("`val_check_interval`"):  # data modules of the user's
            raise UserError(f"--trainer.val_check_interval: {str(error).strip()}") from error
        if better := weights_error(error, checkpoint):
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
    return [*parser.get_defaults().keys(), "config", "name", "runs", "ckpt_path", "seed_everything", "model", "data"]
