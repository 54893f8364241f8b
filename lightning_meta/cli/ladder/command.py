"""`lightning-meta ladder`: train several methods on the same data over several seeds, then compare them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_meta.cli.compare import show_report
from lightning_meta.cli.fit import fit
from lightning_meta.cli.ladder.file import OF_THE_LADDER, read_ladder
from lightning_meta.cli.ladder.groups import against_the_ends, grouped_rung
from lightning_meta.cli.ladder.jobs import run_in_processes
from lightning_meta.cli.ladder.linear import marked
from lightning_meta.cli.ladder.plan import PlannedRun, plan
from lightning_meta.cli.ladder.tuning import Found, has_failed, note_failure, tuned
from lightning_meta.cli.ladder.verdicts import verdicts
from lightning_meta.cli.parsing import PlainParser
from lightning_meta.cli.signals import StoppedBySignal
from lightning_meta.errors import UserError
from lightning_meta.report.transfer import compare
from lightning_meta.run.names import refuse_name

GROUPS = 3


def ladder(args: Sequence[str]) -> None:
    """Train what is not trained yet, then write the transfer report into `runs/<name>/report/`.

    Args:
        args: The options.
    """
    options, of_fit = make_parser().parse_known_args(list(args))
    _check(options, of_fit)
    name = Path(options.config).stem if options.name is None else options.name
    refuse_name("--name", name)
    folder = Path(options.runs) / name
    grouped = None if options.groups is None else grouped_rung(options.groups, options.group_count or GROUPS)
    further = {} if grouped is None else {grouped.name: grouped.model}
    rungs = read_ladder(options.config, folder, options.seeds, options.rungs, of_fit, further, options.trials)
    for line in [] if grouped is None else grouped.lines:
        print(line, flush=True)
    found: dict[str, Found] = {}
    apart = rungs.search is not None  # in processes of their own, whose memory is theirs alone
    try:
        if rungs.search is not None:
            rungs, found = tuned(rungs, rungs.search, lambda trials: _train(trials, options, apart, note_failure))
        _train(plan(rungs), options, apart)
    except (KeyboardInterrupt, SystemExit, StoppedBySignal) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        print("\nthe ladder stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    done = plan(rungs)
    others = [run.directory for run in done if run.directory and run.rung != rungs.baseline]
    baseline = [run.directory for run in done if run.directory and run.rung == rungs.baseline]
    if others:
        report = compare(others, baseline)
        beside_linear, at_equal_budget = marked(done), verdicts(report, done, found) if found else None
        beside = [table for table in (beside_linear, at_equal_budget) if table is not None]
        report = replace(report, notes=(*report.notes, *(line for table in beside for line in table.lines)))
        if grouped is not None:
            models = {rung: config["model"]["class_path"] for rung, config in rungs.rungs.items()}
            lines = [*grouped.lines, *against_the_ends(grouped.name, models, done)]
            report = replace(report, notes=(*report.notes, *lines))
        show_report(report, folder / "report", options.wandb_project)
        for table in beside:
            table.show()
        if at_equal_budget is not None:
            at_equal_budget.write(folder / "report")


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = PlainParser(
        prog="lightning-meta ladder",
        description="Train several methods on the same data with the same budget over several seeds, then compare "
        "them. Run again, it goes on where it stopped. Any other option is one of fit's and holds for every rung, such "
        "as --trainer.max_steps=1000.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="The ladder: seeds, baseline, shared, model, tune and rungs.")
    parser.add_argument("--name", help="Name of the ladder; by default the config file's.")
    parser.add_argument("--runs", default="runs", help="Folder of all runs.")
    parser.add_argument("--seeds", type=_list, help="Instead of the file's, such as '[1, 2, 3]'.")
    parser.add_argument("--rungs", type=_list, help="Only these, such as '[independent, multi_head]'.")
    parser.add_argument(
        "--groups",
        metavar="RUN",
        help="Add a rung of groups of tasks with a network each: those that the affinities propose which this finished "
        "run recorded, or all versions in this folder, such as runs/ladder_glyphs/multi_head.",
    )
    parser.add_argument(
        "--group_count", type=int, help=f"The most groups, {GROUPS} by default; the rung is called groups_{GROUPS}."
    )
    parser.add_argument("--trials", type=int, help="Of each rung that searches, instead of the file's tune.trials.")
    parser.add_argument("--jobs", type=int, default=1, help="Train so many runs at a time, in processes of their own.")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="Threads of each run. Sums depend on it in their last digits, so it does not follow from --jobs.",
    )
    parser.add_argument("--wandb_project", help="Log the report to this W&B project as well.")
    return parser


def ladder_options() -> list[str]:
    """The names of all options."""
    return [action.dest for action in make_parser()._actions]


def _list(text: str) -> list[Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"expected a list such as '[1, 2]', got {text!r}") from error
    return value if isinstance(value, list) else [value]


def _check(options: argparse.Namespace, of_fit: Sequence[str]) -> None:
    if options.config is None:
        raise UserError("--config: name the ladder's file, such as configs/ladder_glyphs.yaml")
    names = [option.partition("=")[0].removeprefix("--") for option in of_fit if option.startswith("-")]
    for name in names:
        if name == "allow_changes":
            raise UserError(f"--{name}: a ladder compares runs of one configuration; give it another --name")
        if name in OF_THE_LADDER:
            raise UserError(f"--{name}: a ladder sets this for each run itself; it has --seeds, --name and --runs")
        if name in ("model", "model.class_path"):
            raise UserError(f"--{name}: the rungs of the file say which models are trained; choose with --rungs")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.group_count is not None and options.groups is None:
        raise UserError("--group_count: name the run whose affinities propose groups, with --groups")
    for name in ("jobs", "threads", "group_count"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} is at least 1, got {getattr(options, name)}")
    if options.jobs > 1 and options.jobs * options.threads > cores:
        raise UserError(
            f"--jobs {options.jobs} with --threads {options.threads} needs {options.jobs * options.threads} cores, and "
            f"there are {cores}; more at a time would only be slower"
        )


def _train(
    runs: Sequence[PlannedRun],
    options: argparse.Namespace,
    apart: bool,
    failed: Callable[[PlannedRun], None] | None = None,
) -> None:
    """Train what is not trained yet.

    Args:
        runs: In order.
        options: Of the command.
        apart: Whether each run is a process of its own even where one trains at a time.
        failed: Takes note of a trial whose training failed; by default that is an error.
    """
    waiting = []
    for number, run in enumerate(runs, 1):
        line = f"run {number} of {len(runs)}: {run.title}"
        if run.finished:
            print(f"{line}, finished before", flush=True)
        elif failed is not None and has_failed(run):
            print(f"{line}, failed before", flush=True)
        else:
            waiting.append((line + (f", goes on in {run.directory}" if run.directory else ""), run))
    if options.jobs == 1 and not apart:
        _run_here(waiting, options.threads)
    elif waiting:
        logs = waiting[0][1].root.parent / "logs"
        run_in_processes(waiting, options.jobs, options.threads, logs, failed)


def _run_here(runs: Sequence[tuple[str, PlannedRun]], threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for line, run in runs:
            print(line, flush=True)
            try:
                fit(run.arguments)
            except UserError as error:
                raise UserError(f"{run.title}: {error}") from error
    finally:
        torch.set_num_threads(before)
