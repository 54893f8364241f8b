"""`lightning-meta ladder`: train several methods on the same data over several seeds, then compare them."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lightning_meta.cli.children import Children, by_option, check_status
from lightning_meta.cli.compare import show_report
from lightning_meta.cli.fit import fit, rehearse
from lightning_meta.cli.ladder.file import OF_THE_LADDER, Ladder, read_ladder
from lightning_meta.cli.ladder.groups import compare_with_extremes, grouped_rung
from lightning_meta.cli.ladder.plan import PlannedRun, plan
from lightning_meta.cli.ladder.tables import compare_with_linear, verdict_rows, verdict_table, write_verdicts
from lightning_meta.cli.ladder.tuning import SearchResult, has_failed, note_failure, tuned
from lightning_meta.cli.threads import OPTION, PlainParser, using_threads
from lightning_meta.cli.unchanged import UnchangedData
from lightning_meta.errors import UserError
from lightning_meta.reading import read_yaml
from lightning_meta.report.transfer import compare
from lightning_meta.run.directory import refuse_name
from lightning_meta.signals import StoppedBySignal, recording

GROUPS = 3
WIDTH = 160  # columns of the last tables, if the output is not a terminal


def ladder(args: Sequence[str]) -> None:
    """Train the runs that are not finished, then write the transfer report into `runs/<name>/report/`."""
    options, fit_args = make_parser().parse_known_args(list(args))
    _check(options, fit_args)
    name = Path(options.config).stem if options.name is None else options.name
    refuse_name("--name", name)
    folder = Path(options.runs) / name
    extra_rungs: dict[str, Any] = {}
    notes: list[str] = []
    if options.groups is not None:
        extra_rungs, notes = grouped_rung(options.groups, options.group_count or GROUPS)
    rungs = read_ladder(options.config, folder, options.seeds, options.rungs, fit_args, extra_rungs, options.trials)
    for line in notes:
        print(line, flush=True)
    search_results: dict[str, SearchResult] = {}
    # A search starts many runs: each gets a child process, which frees all memory at its end.
    train = partial(_train, UnchangedData(), options, options.jobs > 1 or rungs.search is not None)
    try:
        if rungs.search is not None:
            rungs, search_results = tuned(rungs, rungs.search, partial(train, trials=True))
        train(plan(rungs))
    except (KeyboardInterrupt, SystemExit, StoppedBySignal) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        print("\nthe ladder was stopped; run the same command again to resume it", file=sys.stderr)
        raise SystemExit(130) from None
    runs = plan(rungs)
    for rung in extra_rungs:
        notes += compare_with_extremes(rung, rungs.rungs, runs)
    _report(rungs, runs, search_results, notes, options.wandb_project)


def _report(
    ladder: Ladder,
    runs: Sequence[PlannedRun],
    search_results: Mapping[str, SearchResult],
    notes: Sequence[str],
    wandb: str | None,
) -> None:
    """Compare the rungs with the baseline; print and write the report, with further notes, also to a W&B project."""
    others = [run.directory for run in runs if run.directory and run.rung != ladder.baseline]
    if not others:
        return
    baseline = [run.directory for run in runs if run.directory and run.rung == ladder.baseline]
    report = compare(others, baseline, [] if ladder.search is None else ladder.search.parameters)
    rows = verdict_rows(report, runs, search_results) if search_results else []
    tables = compare_with_linear(runs)
    if rows:
        tables.append(verdict_table(report, rows, search_results))
    lines = [line for _, lines in tables for line in lines]
    folder = ladder.folder / "report"
    show_report(replace(report, notes=(*report.notes, *lines, *notes)), folder, wandb)
    console = Console()
    console = console if console.is_terminal else Console(width=max(console.width, WIDTH))
    for table, _ in tables:
        console.print(table)
    if rows:
        write_verdicts(folder, rows)


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = PlainParser(
        prog="lightning-meta ladder",
        description="Train several methods on the same data with the same budget over several seeds, then compare "
        "them. Run the same command again to resume. All other options are passed to fit for every rung, such as "
        "--trainer.max_steps=1000.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help="Name of a shipped ladder, such as ladder_glyphs, or your file, with seeds, baseline, shared, model, tune "
        "and rungs.",
    )
    parser.add_argument("--name", help="Name of the ladder; by default that of the config file.")
    parser.add_argument("--runs", metavar="FOLDER", default="runs", help="Folder of all runs; by default runs.")
    parser.add_argument("--seeds", type=_list, help="Seeds that replace those of the file, such as '[1, 2, 3]'.")
    parser.add_argument("--rungs", type=_list, help="Only these rungs, such as '[independent, multi_head]'.")
    parser.add_argument(
        "--groups",
        metavar="RUN",
        help="Add a rung with one network per group of tasks. The groups follow from the affinities that this finished "
        "run, or all versions in this folder, recorded, such as runs/ladder_glyphs/multi_head.",
    )
    parser.add_argument(
        "--group_count",
        type=int,
        help=f"Largest number of groups, {GROUPS} by default; the rung is called groups_{GROUPS}.",
    )
    parser.add_argument("--trials", type=int, help="Trials of each tuned rung; replaces tune.trials of the file.")
    parser.add_argument(
        "--jobs", type=int, default=1, help="Number of runs to train at a time, in child processes; by default 1."
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="Threads of each run, by default 1. Results depend on it in their last digits, so it does not change with "
        "--jobs.",
    )
    parser.add_argument("--wandb_project", help="Log the report to this W&B project as well.")
    return parser


def _list(text: str) -> list[Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"expected a list such as '[1, 2]', got {text!r}") from error
    return value if isinstance(value, list) else [value]


def _check(options: argparse.Namespace, fit_args: Sequence[str]) -> None:
    if options.config is None:
        raise UserError("--config: name the ladder's file, such as configs/ladder_glyphs.yaml")
    for option, _, _ in by_option(fit_args):
        if option.removeprefix("--") in OF_THE_LADDER:
            raise UserError(
                f"{option}: a ladder sets this for each run itself; it has --seeds, --rungs, --name and --runs"
            )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.group_count is not None and options.groups is None:
        raise UserError("--group_count: name the run whose affinities propose groups, with --groups")
    for name in ("jobs", "threads", "group_count"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} is at least 1, got {getattr(options, name)}")
    if options.jobs > 1 and options.jobs * options.threads > cores:
        raise UserError(
            f"--jobs {options.jobs} with --threads {options.threads} needs {options.jobs * options.threads} cores, and "
            f"there are {cores}; use fewer jobs"
        )


def _train(
    data: UnchangedData, options: argparse.Namespace, separate: bool, runs: Sequence[PlannedRun], trials: bool = False
) -> None:
    """Train the runs that are not finished, in child processes if `separate`; see `run_in_processes` for `trials`."""
    finished = [run.directory for run in runs if run.finished and run.directory is not None]
    if finished:
        data.check(lambda: read_yaml(runs[0].file)["data"], finished, "give the ladder another --name, or remove {run}")
    _rehearse(runs, trials)
    waiting = []
    for number, run in enumerate(runs, 1):
        line = f"run {number} of {len(runs)}: {run.title}"
        if run.finished or (trials and has_failed(run)):
            print(f"{line}, {'finished' if run.finished else 'failed'} before", flush=True)
        else:
            waiting.append((line + (f", resumes in {run.directory}" if run.directory else ""), run))
    if not separate:
        _run_here(waiting, options.threads)
    elif waiting:
        run_in_processes(waiting, options.jobs, options.threads, waiting[0][1].root.parent / "logs", trials)


def _rehearse(runs: Sequence[PlannedRun], trials: bool) -> None:
    """Set up a run of each rung that was not begun, so that a mistake in it is found before another one is trained.

    In a search it is the trial with the settings of the file: the search goes on without another that fails.
    """
    begun = {run.rung for run in runs if run.directory is not None}
    chosen = [run for run in runs if run.rung.endswith("_trial_0")]
    if not trials:  # the first run finds its mistakes itself
        chosen = [run for run in runs if run.rung != runs[0].rung]
    for run in {run.rung: run for run in reversed(chosen) if run.rung not in begun}.values():
        try:
            rehearse(run.arguments)
        except UserError as error:
            raise UserError(f"{run.title}: {error}") from error
        except Exception:  # the run itself shows it with its traceback, or it is only on the CPU that it fails
            continue


def _run_here(runs: Sequence[tuple[str, PlannedRun]], threads: int) -> None:
    with _data_messages_once():
        for line, run in runs:
            print(line, flush=True)
            try:
                with using_threads("fit", [*run.arguments, f"{OPTION}={threads}"]) as arguments:
                    fit(arguments)
            except UserError as error:
                raise UserError(f"{run.title}: {error}") from error


@contextmanager
def _data_messages_once() -> Iterator[None]:
    """Show each message about the data once, since all runs of a ladder read the same data."""
    shown: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        about_data = record.name.startswith(("lightning_meta.data", "lightning_meta.sources"))
        repeated = about_data and record.getMessage() in shown
        shown.add(record.getMessage())
        return not repeated

    handlers = list(logging.getLogger("lightning_meta").handlers)
    for handler in handlers:
        handler.addFilter(is_new)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_new)


def run_in_processes(
    runs: Sequence[tuple[str, PlannedRun]], jobs: int, threads: int, logs: Path, trials: bool = False
) -> None:
    """Train runs, each with a line to print when it starts, in child processes with one log file each.

    An error or a signal stops all runs, which can be resumed. A trial whose training fails, such as by a NaN loss, is
    noted instead.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(runs)
    active: dict[subprocess.Popen[bytes], tuple[PlannedRun, Path, float]] = {}
    with recording() as signals, Children(signals) as children:
        while waiting or active:
            while waiting and len(active) < jobs:
                line, run = waiting.pop(0)
                print(line, flush=True)
                log = logs / f"{run.rung}_seed_{run.seed}.log"
                active[children.start(run.arguments, log, threads)] = (run, log, time.monotonic())
            process = children.next_ended()
            run, log, began = active.pop(process)
            try:
                check_status(process.returncode, log, signals)
            except (FloatingPointError, UserError) as error:
                if isinstance(error, UserError) or not trials:
                    raise UserError(f"{run.title}: {error}") from error
                note_failure(run)
                print(f"{run.title} failed: {error}", flush=True)
            else:
                print(f"{run.title}: done in {time.monotonic() - began:.0f} s", flush=True)
