"""`lightning-meta ladder`: train several methods on the same data over several seeds, then compare them."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lightning_meta.cli.children import ERROR, Children, last_line
from lightning_meta.cli.compare import show_report
from lightning_meta.cli.fit import fit, rehearse
from lightning_meta.cli.ladder.file import OF_THE_LADDER, Ladder, is_first_trial, read_ladder
from lightning_meta.cli.ladder.groups import GroupedRung, compare_with_extremes, grouped_rung
from lightning_meta.cli.ladder.linear import compare_with_linear
from lightning_meta.cli.ladder.plan import PlannedRun, plan
from lightning_meta.cli.ladder.tuning import SearchResult, has_failed, note_failure, tuned
from lightning_meta.cli.ladder.verdicts import verdicts
from lightning_meta.cli.threads import OPTION, PlainParser, using_threads
from lightning_meta.cli.unchanged import UnchangedData
from lightning_meta.errors import UserError
from lightning_meta.reading import read_yaml
from lightning_meta.report.transfer import compare
from lightning_meta.run.names import refuse_name
from lightning_meta.signals import StoppedBySignal, recording

GROUPS = 3


def ladder(args: Sequence[str]) -> None:
    """Train the runs that are not finished, then write the transfer report into `runs/<name>/report/`."""
    options, fit_args = make_parser().parse_known_args(list(args))
    _check(options, fit_args)
    name = Path(options.config).stem if options.name is None else options.name
    refuse_name("--name", name)
    folder = Path(options.runs) / name
    grouped = None if options.groups is None else grouped_rung(options.groups, options.group_count or GROUPS)
    extra_rungs = {} if grouped is None else {grouped.name: grouped.model}
    rungs = read_ladder(options.config, folder, options.seeds, options.rungs, fit_args, extra_rungs, options.trials)
    notes: list[str] = []
    if grouped is not None:
        rungs, grouped_name, notes = _with_groups(rungs, grouped)
    for line in notes:
        print(line, flush=True)
    search_results: dict[str, SearchResult] = {}
    # A search starts many runs: each gets a child process, which frees all memory at its end.
    separate = rungs.search is not None
    data = UnchangedData()
    try:
        if rungs.search is not None:
            rungs, search_results = tuned(
                rungs, rungs.search, lambda trials: _train(trials, data, options, separate, note_failure)
            )
        _train(plan(rungs), data, options, separate)
    except (KeyboardInterrupt, SystemExit, StoppedBySignal) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        print("\nthe ladder was stopped; run the same command again to resume it", file=sys.stderr)
        raise SystemExit(130) from None
    runs = plan(rungs)
    if grouped is not None:
        models = {rung: config["model"]["class_path"] for rung, config in rungs.rungs.items()}
        notes += compare_with_extremes(grouped_name, models, runs)
    _report(rungs, runs, search_results, notes, options.wandb_project)


def _with_groups(ladder: Ladder, grouped: GroupedRung) -> tuple[Ladder, str, list[str]]:
    """The ladder, the name of the rung that trains the proposed groups, and what to say about it.

    A single group of all tasks is not trained a second time if another rung trains all tasks together.
    """
    same = grouped.same_rung(ladder)
    if same is None:
        return ladder, grouped.name, grouped.lines
    rungs = {rung: config for rung, config in ladder.rungs.items() if rung != grouped.name}
    trials = {rung: configs for rung, configs in ladder.trials.items() if rung != grouped.name}
    line = f"{grouped.name} is the same as {same}, whose runs are used; no rung is added."
    return replace(ladder, rungs=rungs, trials=trials), same, [*grouped.lines, line]


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
    linear, equal_budget = compare_with_linear(runs), verdicts(report, runs, search_results) if search_results else None
    tables = [table for table in (linear, equal_budget) if table is not None]
    notes = [*(line for table in tables for line in table.lines), *notes]
    folder = ladder.folder / "report"
    show_report(replace(report, notes=(*report.notes, *notes)), folder, wandb)
    for table in tables:
        table.show()
    if equal_budget is not None:
        equal_budget.write(folder)


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
    names = [option.partition("=")[0].removeprefix("--") for option in fit_args if option.startswith("-")]
    for name in names:
        if name == "allow_changes":
            raise UserError(f"--{name}: a ladder compares runs of one configuration; start another with --name")
        if name in OF_THE_LADDER:
            raise UserError(f"--{name}: a ladder sets this for each run itself; it has --seeds, --name and --runs")
        if name in ("model", "model.class_path"):
            raise UserError(f"--{name}: the file says which models are trained; choose among them with --rungs")
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
    runs: Sequence[PlannedRun],
    data: UnchangedData,
    options: argparse.Namespace,
    separate: bool,
    failed: Callable[[PlannedRun], None] | None = None,
) -> None:
    """Train the runs that are not finished, in child processes if `separate`; see `run_in_processes` for `failed`."""
    _check_data(runs, data)
    _rehearse(runs, failed is not None)
    waiting = []
    for number, run in enumerate(runs, 1):
        line = f"run {number} of {len(runs)}: {run.title}"
        if run.finished:
            print(f"{line}, finished before", flush=True)
        elif failed is not None and has_failed(run):
            print(f"{line}, failed before", flush=True)
        else:
            waiting.append((line + (f", resumes in {run.directory}" if run.directory else ""), run))
    if options.jobs == 1 and not separate:
        _run_here(waiting, options.threads)
    elif waiting:
        logs = waiting[0][1].root.parent / "logs"
        run_in_processes(waiting, options.jobs, options.threads, logs, failed)


def _check_data(runs: Sequence[PlannedRun], data: UnchangedData) -> None:
    """Refuse finished runs whose data have changed since, before another run is trained."""
    finished = [run.directory for run in runs if run.finished and run.directory is not None]
    if finished:
        data.check(lambda: read_yaml(runs[0].file)["data"], finished, "give the ladder another --name, or remove {run}")


def _rehearse(runs: Sequence[PlannedRun], of_search: bool) -> None:
    """Refuse a rung that cannot be set up before another one is trained.

    A single run of each rung that has not been begun is set up. In a search it is the trial with the settings of the
    file: another trial that cannot be set up has failed, and the search goes on without it.

    Args:
        runs: The runs, in order.
        of_search: Whether they are the trials of a search.
    """
    waiting = [run for run in runs if not run.finished]
    begun = {run.rung for run in runs if run.directory is not None}
    if of_search:
        chosen = [run for run in waiting if is_first_trial(run.rung)]
    else:  # the first run to be trained finds its mistakes itself
        chosen = [run for run in waiting if run.rung != waiting[0].rung]
    for run in {run.rung: run for run in reversed(chosen) if run.rung not in begun}.values():
        try:
            rehearse(run.arguments)
        except UserError as error:
            raise UserError(f"{run.title}: {error}") from error
        except Exception:  # the run itself shows it with its traceback, or it is only on the CPU that it fails
            continue


def _run_here(runs: Sequence[tuple[str, PlannedRun]], threads: int) -> None:
    once = _Once()
    handlers = list(logging.getLogger("lightning_meta").handlers)
    for handler in handlers:
        handler.addFilter(once)
    try:
        for line, run in runs:
            print(line, flush=True)
            try:
                with using_threads("fit", [*run.arguments, f"{OPTION}={threads}"]) as arguments:
                    fit(arguments)
            except UserError as error:
                raise UserError(f"{run.title}: {error}") from error
    finally:
        for handler in handlers:
            handler.removeFilter(once)


class _Once(logging.Filter):
    """Shows each message about the data once, since all runs of a ladder read the same data."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is new, or not about the data."""
        if not record.name.startswith(("lightning_meta.data", "lightning_meta.sources")):
            return True
        message = record.getMessage()
        is_new = message not in self.shown
        self.shown.add(message)
        return is_new


def run_in_processes(
    runs: Sequence[tuple[str, PlannedRun]],
    jobs: int,
    threads: int,
    logs: Path,
    failed: Callable[[PlannedRun], None] | None = None,
) -> None:
    """Train runs in child processes, whose output goes to one log file each.

    Args:
        runs: The runs, each with a line to print when it starts.
        jobs: Largest number of processes at a time.
        threads: Threads of each process.
        logs: Folder of the log files.
        failed: Called with each run whose training failed, such as by a NaN loss, which is an error without it.

    Raises:
        UserError: A run failed. The other active runs are stopped and can be resumed.
        StoppedBySignal: A signal stopped the ladder, and with it the active runs.
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
            if process.returncode == 1 and failed is not None and last_line(log).startswith(ERROR):
                failed(run)
                print(f"{run.title} failed: {last_line(log).removeprefix(ERROR)}", flush=True)
                continue
            if process.returncode:
                raise UserError(f"{run.title}: {last_line(log).removeprefix(ERROR)} (see {log})")
            print(f"{run.title}: done in {time.monotonic() - began:.0f} s", flush=True)
