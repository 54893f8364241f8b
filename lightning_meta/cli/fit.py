"""`lightning-meta fit`: train the model of a configuration, with the options of `lightning_meta.fit`."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_meta.cli.config_text import check_fit_configs
from lightning_meta.cli.declared import options_of
from lightning_meta.cli.helping import Parser, end_of_fit
from lightning_meta.cli.messages import parse, parsing, passed
from lightning_meta.cli.options import as_option, as_options, naming_options, places_of
from lightning_meta.cli.parsing import (
    kept_by_optimizer,
    log_into_run,
    mistake_in,
    remember_networks,
    with_own_paths,
    with_save_dir,
)
from lightning_meta.describing import Described, refuse_unknown
from lightning_meta.errors import UserError
from lightning_meta.fitting.checks import as_list, check_monitor, check_seed, check_trainer
from lightning_meta.fitting.place import find_place
from lightning_meta.fitting.quiet import quiet_lightning
from lightning_meta.fitting.run_checks import check_run_options
from lightning_meta.fitting.training import TRAINER_DEFAULTS, Training
from lightning_meta.run import RunCheckpoint
from lightning_meta.run.termination import Interrupted, status_of
from lightning_meta.silence import silence

_log = logging.getLogger(__name__)


class MetaCLI(LightningCLI):
    """Reads the configuration of a training run, and creates its model, data and Trainer.

    There are no subcommands: with them, in Lightning the hyper-parameters of a checkpoint silently override the
    command line.
    """

    config: Namespace

    def __init__(self, args: Sequence[str]) -> None:
        self.allow_changes, self._began = False, time.monotonic()
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,  # `RunRecord` writes the file
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={
                "command": "fit",
                "usage": "lightning-meta fit --config NAME|FILE [options]",
                "description": "Train a model, keep its best and last checkpoints, and test the best.",
                "epilog": end_of_fit(),
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=list(args),
            run=False,
            parser_class=Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # `Described` stores the arguments
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run."""
        assert isinstance(parser, Parser)
        of_lightning = options_of(parser)
        of_lightning["config"].metavar = "NAME|FILE"
        of_lightning["config"].help = "Configuration; `lightning-meta configs` lists the names."
        of_lightning["seed_everything"].metavar = "N"
        of_lightning["seed_everything"].help = "Seed of all generators; by default 0."
        parser.add_help_all()
        parser.option("--name NAME", str | None, "Name of the run; by default the configuration's.")
        parser.option("--runs FOLDER", str, "Folder of all runs; by default runs.", default="runs")
        parser.option("--ckpt_path RUN|last", str | None, "Resume this run, or the newest run of this name.")
        changes = "Resume even if options that affect the results have changed; they apply from then on."
        parser.option("--allow_changes", bool, changes)
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the options, and find the run directory to resume."""
        check_fit_configs(args)
        assert isinstance(parser, Parser)
        self.config = parse(parser, with_own_paths(with_save_dir(args)))
        if self.config.get("model") is None:
            raise UserError("--model must be given; name a configuration with --config FILE")
        if line := kept_by_optimizer(self.config.model.get("init_args", Namespace()).get("optimizer"), args):
            _log.warning("%s", line)
        check_seed(self.config.seed_everything, as_option)
        check_trainer(self.config.trainer, "train", as_option)
        check_run_options(self.config.trainer, as_option)
        check_monitor(self.config.trainer, self.config.checkpoint.monitor, as_option)
        files = [Path(str(file)) for file in as_list(self.config.get("config"))]
        default = files[-1].stem if files else "run"
        self.place = find_place(self.config.runs, self.config.name, self.config.ckpt_path, as_option, default)
        self.config.runs, self.config.name = self.place.runs, self.place.name
        if self.place.checkpoint is not None and self.config.seed_everything is True:  # any: that of the run
            self.config.seed_everything = self.place.seed()
        self.allow_changes = self.config.allow_changes
        self.config.ckpt_path, self.config.allow_changes = None, False  # the saved configuration starts a new run

    def instantiate_classes(self) -> None:
        """Instantiate the model, the data and the Trainer."""
        with parsing():
            self.config_text = self.parser.dump(self.config, skip_unset=False)
        self.place.logger.hold()  # before anything is written into it
        configured, self.config = self.config, self.config.clone()
        log_into_run(self.config.trainer, self.place.logger)
        if self.place.checkpoint is not None and "backbone_weights" in self.config.model.init_args:
            self.config.model.init_args.backbone_weights = None  # the checkpoint holds them
        try:
            remember_networks(configured.model)
            super().instantiate_classes()
            if isinstance(self.model, Described):
                refuse_unknown(self.model)
        except BaseException as error:
            self.place.logger.discard()
            if isinstance(error, UserError):
                error.args = (as_options(str(error), places_of(configured)),)
            elif isinstance(error, TypeError | ValueError):
                raise mistake_in(configured, error) or UserError(passed(error, "fit")) from error
            raise
        self.config = configured

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the Trainer with the callbacks and loggers of a run."""
        self.training = Training(
            self.model,
            self.datamodule,
            {**self.config_init["trainer"].as_dict(), **kwargs},
            checkpoint=self.config_init["checkpoint"],
            place=self.place,
            config=self.config_text,
            allow_changes=self.allow_changes,
            began=self._began,
            say=as_option,
        )
        return self.training.trainer


class ParsedOnly(MetaCLI):
    """Parses the configuration of `fit`, without creating objects or setting seeds."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the options, and hide the seed until Lightning has passed the place where it sets one."""
        super().parse_arguments(parser, args)
        self._seed, self.config.seed_everything = self.config.seed_everything, False

    def instantiate_classes(self) -> None:
        """Create nothing."""
        self.config.seed_everything = self._seed


def rehearse(args: Sequence[str]) -> None:
    """Set up a run without reading a batch, on one CPU and in a temporary folder, to find mistakes before it starts.

    Args:
        args: Options of `fit`; their callbacks and loggers are left out, since they may write elsewhere.

    Raises:
        UserError: The model does not fit the data, or an option is wrong.
    """
    alone = ("accelerator=cpu", "devices=1", "num_nodes=1", "strategy=auto", "plugins=null", "sync_batchnorm=false")
    no_step = ("max_steps=0", "min_steps=null", "num_sanity_val_steps=0")
    silent = ("callbacks=null", "logger=null", "enable_progress_bar=false")
    options = [f"--trainer.{option}" for option in (*alone, *no_step, *silent)]
    # The run shows its own messages and warnings; here they may be of the CPU.
    with TemporaryDirectory() as folder, quiet_lightning(), silence("lightning_meta", "lightning.pytorch"):
        cli = MetaCLI([*args, f"--runs={folder}", *options])
        with naming_options(cli.config):
            cli.training.rehearse()


def fit(args: Sequence[str]) -> None:
    """Train, then test the best checkpoint.

    Raises:
        SystemExit: 130 after Ctrl-C, and the statuses of `Training.run`.
    """
    cli = MetaCLI(args)
    try:
        with naming_options(cli.config, {"runs": "--runs"}):
            cli.training.run()
    except Interrupted:
        raise SystemExit(status_of(signal.SIGINT)) from None  # what a shell expects
