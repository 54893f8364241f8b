"""`lightning-meta test`: test a trained model on its own or other test tasks."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.table import Table

from lightning_meta.checks import instance, share
from lightning_meta.cli.calibrating import (
    identity,
    print_calibration,
    print_table_calibration,
    write_calibration,
)
from lightning_meta.cli.helping import Parser
from lightning_meta.cli.messages import parse, passed
from lightning_meta.cli.options import as_option, naming_options
from lightning_meta.cli.parsing import mistake_in
from lightning_meta.cli.trained import add_model_options, load_trained
from lightning_meta.cli.trust import check_untrusted, read_configuration, without, without_machine
from lightning_meta.data import EpisodicDataModule, MultiTaskDataModule
from lightning_meta.errors import UserError
from lightning_meta.fitting.calibration import TASKS, Calibrated, calibrate_by
from lightning_meta.fitting.checks import check_machine, check_seed, check_trainer
from lightning_meta.fitting.evaluation import Evaluation, evaluate_by
from lightning_meta.fitting.grid import print_grid, write_grid
from lightning_meta.fitting.importance import Importance, permutation_importance
from lightning_meta.fitting.progress_bar import progress_bar
from lightning_meta.fitting.summary import print_summary, without_mean, write_outcome
from lightning_meta.fitting.table_calibration import CalibratedTable, calibrate_table_by
from lightning_meta.fitting.trained_data import warn_of_other_training_data
from lightning_meta.import_paths import lies_in, real_path
from lightning_meta.loading import find_checkpoint
from lightning_meta.meta import MetaModule
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.multitask.selection import with_best_steps
from lightning_meta.reading import is_number, refuse_link
from lightning_meta.run import RunLogger
from lightning_meta.run.directory import run_directory_of
from lightning_meta.run.files import check_writable, replacing
from lightning_meta.run.results import facts, test_facts, write_report
from lightning_meta.specifications import unknown_parts

# Options and the arguments of the data module that they set.
OF_DATA = {"ways": "test_ways", "shots": "test_shots", "queries": "test_queries", "tasks": "test_tasks"}
OF_DATA |= {"task_list": "test_task_list"}
ALIASES = {name: f"--{option}" for option, argument in OF_DATA.items() for name in (option, argument)}
DRAWN = ("ways", "shots", "queries", "tasks")
MOST_TASKS, MOST_COLUMNS = 20, 5  # in the printed table of importances
TRAINER = ("accelerator", "devices", "precision", "strategy", "num_nodes", "deterministic", "inference_mode")


def test(args: Sequence[str]) -> None:
    """Test or calibrate a trained model, and write the results under `tests/` in its run directory."""
    began = time.monotonic()
    parser = make_parser()
    config, checkpoint = _parse(parser, args)
    run = run_directory_of(checkpoint)
    if run is not None:
        refuse_link(run / "tests")
    check_writable(run or Path("runs"))  # before there are results to lose
    seed_everything(config.seed_everything, workers=True, verbose=False)
    module = load_trained(checkpoint, config)
    objects = _instantiate(parser, config)
    if config.importance:
        _check_importance(module, objects["data"])
    options = objects["trainer"].as_dict()
    callbacks = [progress_bar()] if options["enable_progress_bar"] is not False else []
    try:
        trainer = Trainer(**{**options, "logger": False, "callbacks": callbacks, "enable_checkpointing": False})
    except (TypeError, ValueError) as error:
        raise UserError(f"--trainer: {error}") from error
    if config.calibrate is not None:
        assert run is not None
        _calibrate(config, trainer, module, objects["data"], run)
        return
    logger = RunLogger(run if run else Path("runs"), "tests")
    evaluations: list[Evaluation] = []
    with naming_options(config, ALIASES):
        if isinstance(config.ways, list) or isinstance(config.shots, list):
            instance("--ckpt_path", module, MetaModule)
            instance("--data", objects["data"], EpisodicDataModule)
            evaluations = evaluate_by(trainer, module, objects["data"], **{name: config[name] for name in DRAWN})
        else:
            trainer.test(module, datamodule=objects["data"], verbose=False)
    if not trainer.is_global_zero:
        return
    warn_of_other_training_data(getattr(module, "run_record", None), objects["data"])
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    with replacing(logger.directory / "config.yaml") as file:
        file.write(parser.dump(config, skip_unset=False))
    about: dict[str, Any] = {"seed": config.seed_everything, "checkpoint": str(checkpoint)}
    about["wall_time_s"] = round(time.monotonic() - began, 2)
    about |= facts(module, objects["data"], trainer)
    if evaluations:
        write_grid(logger.directory, evaluations, about)
        print_grid(evaluations, logger.directory)
        return
    if report := getattr(module, "test_report", None):
        write_report(logger.directory, {**report, "per_task": with_best_steps(report["per_task"], checkpoint)})
    about |= test_facts(objects["data"])
    write_outcome(logger.directory, metrics, about)
    print_summary(metrics, logger.directory, getattr(objects["data"], "test_conditions", ""), without_mean(module))
    if config.importance:
        importances = permutation_importance(module, objects["data"], seed=config.seed_everything, out=logger.directory)
        _print_importances(importances)
        print(f"importance of every column: {logger.directory / 'importance.csv'}")


def _print_importances(importances: Sequence[Importance]) -> None:
    """Print the most important columns of the first tasks."""
    table = Table("task", "columns, and the increase of the test loss when each is permuted")
    tasks = list(dict.fromkeys(each.task for each in importances))
    for task in tasks[:MOST_TASKS]:
        columns = sorted((each for each in importances if each.task == task), key=lambda each: -each.mean)
        table.add_row(task, ", ".join(f"{each.column} {each.mean:.3g}" for each in columns[:MOST_COLUMNS]))
    if len(tasks) > MOST_TASKS:
        table.caption = f"{len(tasks) - MOST_TASKS} more tasks are in the file"
    Console(markup=False, emoji=False).print(table)


def _check_importance(module: Any, data: Any) -> None:
    """Refuse `--importance` without the columns of a table, before anything is computed."""
    named = isinstance(module, MultiTaskModule) and isinstance(data, MultiTaskDataModule)
    if not named or module.spec.table is None:
        raise UserError("--importance: the model was not trained on a lightning_meta.sources.Table; leave it out")


def _calibrate(config: Namespace, trainer: Trainer, module: Any, data: Any, run: Path) -> None:
    """Calibrate the model on validation tasks or rows, and store the calibration in the run directory."""
    about = identity(module)  # before the Trainer converts weights to its precision
    own = {"coverage": "--calibrate", "module": "--calibrate", "data": "--data", "batch_norm": "--batch_norm"}
    found: Calibrated | CalibratedTable
    with naming_options(config, ALIASES | own):
        if isinstance(module, MultiTaskModule) and isinstance(data, MultiTaskDataModule):
            found = calibrate_table_by(trainer, module, data, config.calibrate)
        elif isinstance(module, MetaModule) and isinstance(data, EpisodicDataModule):
            sizes = {name: config[name] for name in ("ways", "shots", "queries")}
            sizes["tasks"] = config.tasks or TASKS
            found = calibrate_by(trainer, module, data, coverage=config.calibrate, **sizes)
        else:
            raise UserError(
                f"--calibrate: {type(module).__name__} is neither a few-shot classifier nor a model of a table, and "
                "only these can be calibrated"
            )
    if trainer.is_global_zero:
        path = write_calibration(run, about, found)
        if isinstance(found, Calibrated):
            print_calibration(found, path)
        else:
            print_table_calibration(found, path, module.spec.table)
        warn_of_other_training_data(getattr(module, "run_record", None), data)


def _instantiate(parser: LightningArgumentParser, config: Namespace) -> Namespace:
    check_machine(config.trainer.as_dict(), as_option)
    try:
        objects: Namespace = parser.instantiate(config)
        return objects
    except (TypeError, ValueError) as error:
        message = str(mistake_in(Namespace(data=config.data), error) or passed(error, "test"))
        for option, argument in OF_DATA.items():
            message = message.replace(f"--data.{argument}:", f"--{option}:")
        raise UserError(message) from error


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        command="test",
        usage="lightning-meta test --ckpt_path RUN [options]",
        description="Test a trained model, on its own test tasks or on others.",
        epilog="Also --data.NAME and --trainer.NAME, such as --data.source.root FOLDER and\n--trainer.devices 1. "
        "lightning-meta test --help_all lists them,\n--data.help EpisodicDataModule those of a data module.",
    )
    parser.add_help_all()
    add_model_options(parser)
    add, sizes = parser.option, int | list[int] | str | None
    add("--ways N[,N...]", sizes, "Classes in a test task; several give a table.")
    add("--shots K[,K...]", sizes, "Support examples of a class; several give a table.")
    add("--queries Q", int | None, "Query examples of a class.")
    add("--tasks T", int | None, "Test tasks, of each way and shot.")
    tasks = "Test on the tasks listed in this file, or in the folder of Omniglot's one-shot runs, and draw none."
    add("--task_list FILE", str | None, tasks)
    calibration = (
        "Instead of a test, calibrate the model on validation tasks, or on the validation rows of a table: predict can "
        "then write sets of labels that contain the true label for this share of images or rows."
    )
    add("--calibrate SHARE", float | None, calibration)
    add("--importance", bool, "Also measure how much each column of a table matters.")
    add("--config NAME|FILE", str | None, "Configuration with other data; by default that of the run.")
    add("--seed_everything N", int, "Seed of all generators; by default the run's.", default=0)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=True)
    return parser


def _parse(parser: Parser, args: Sequence[str]) -> tuple[Namespace, Path]:
    """The configuration of the run with the options applied, and the checkpoint."""
    # The options that are needed to find the configuration of the run.
    path_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    path_parser.add_argument("--ckpt_path", nargs="?")
    path_parser.add_argument("--config")
    path_parser.add_argument("--trust", action="store_true")
    first, _ = path_parser.parse_known_args(list(args))
    if first.ckpt_path is None:
        with suppress(UserError):
            parse(parser, args)  # shows the help that was asked for, and exits
        raise UserError("--ckpt_path: name a run directory or a checkpoint, such as runs/protonet_glyphs/0")
    checkpoint = find_checkpoint(first.ckpt_path)
    run = run_directory_of(checkpoint)
    file = Path(first.config) if first.config else run / "config.yaml" if run else None
    if file is None or not file.is_file():
        missing = file or f"{checkpoint} is not in a run directory"
        raise UserError(f"--config: the configuration of the data was not found ({missing}); give it with --config")
    stored = read_configuration(file)
    data = stored.get("data")
    if isinstance(data, Mapping) and lies_in(real_path(str(data.get("class_path"))), ("lightning_meta.data",)):
        data = without(data, "augmentation")  # it is used only in training, and may need another package
    if name := next((name for name, _ in unknown_parts({"data": data})), None):
        raise UserError(
            f"{file}: {name} was created in Python, and its arguments are unknown; name a configuration of the data "
            "with --config, or test in Python"
        )
    trainer = {k: v for k, v in (stored.get("trainer") or {}).items() if k in TRAINER}
    base = {"data": data, "trainer": trainer, "seed_everything": stored.get("seed_everything", 0)}
    if not first.config and not first.trust:  # a configuration that the user names is trusted, like code
        base = without_machine(base)
        check_untrusted(base, file)
    config = parse(parser, args, {**base, "ckpt_path": first.ckpt_path})
    check_seed(config.seed_everything, as_option)
    check_trainer(config.trainer, "test", as_option)
    for name in ("ways", "shots"):
        config[name] = _numbers(f"--{name}", config[name])
    if config.calibrate is not None:
        _check_calibrate(config, run)
    drawn = [name for name in DRAWN if config[name] is not None]
    if drawn and config.task_list is not None:
        raise UserError(f"--{drawn[0]}: --task_list determines the tasks; use one of the two")
    for option, argument in OF_DATA.items():
        if config[option] is not None:
            if argument not in config.data.init_args:
                named = "; its tasks have names and all their examples" if "tasks" in config.data.init_args else ""
                raise UserError(f"--{option}: {config.data.class_path} has no {argument}{named}; leave it out")
            if not isinstance(config[option], list):
                config.data.init_args[argument] = config[option]
    if drawn and (own := config.data.init_args.get("test_task_list")) is not None:
        print(f"tasks are drawn at random because of --{drawn[0]}, without the task list of the run ({own})")
        config.data.init_args.test_task_list = None
    return config, checkpoint


def _check_calibrate(config: Namespace, run: Path | None) -> None:
    """Check the options of a calibration, before the model is loaded."""
    share(0.9, **{"--calibrate": config.calibrate})
    if run is None:
        raise UserError(f"--calibrate: {config.ckpt_path} is not in a run directory, where the calibration is stored")
    if config.importance:
        raise UserError("--importance: --calibrate does not test; leave one of the two out")
    if config.task_list is not None:
        raise UserError("--calibrate: the tasks are drawn at random; leave --task_list out")
    if several := next((name for name in ("ways", "shots") if isinstance(config[name], list)), None):
        raise UserError(f"--{several}: --calibrate takes one number of ways and shots; run it once for each")


def _numbers(option: str, value: int | list[int] | str | None) -> int | list[int] | None:
    """Parse several numbers, `5,20` or `[5, 20]`, to a list; a single number stays a number."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        if not all(is_number(part) and len(part) < 10 for part in parts):
            raise UserError(f"{option}: expected a whole number, or several, such as 5,20; got {value!r}")
        value = [int(part) for part in parts]
    return value[0] if isinstance(value, list) and len(value) == 1 else value
