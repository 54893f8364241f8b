"""`lightning-meta sweep`: search options of `fit` on this machine with Optuna."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lightning_meta.cli.children import POLL, Children, OtherMetricError, by_option, check_status, parsed, reached
from lightning_meta.cli.shipped import with_shipped
from lightning_meta.cli.sweep.file import OF_THE_SWEEP, Sweep, read_sweep
from lightning_meta.cli.sweep.study import STALE, SweepRecord, TrialFailedError
from lightning_meta.cli.threads import PlainParser, using_threads
from lightning_meta.cli.unchanged import UnchangedData
from lightning_meta.errors import UserError
from lightning_meta.run.directory import is_held, refuse_name
from lightning_meta.signals import Signals, StoppedBySignal, recording

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

RUN, LOG = "0", "log"  # in the folder of a trial
BEST_SHOWN = 10
HELD = 300.0  # seconds to wait for the run of a killed sweep, which stops on its own
DISK = "cannot write ("  # start of the message of `fit` about a full disk


def sweep(args: Sequence[str]) -> None:
    """Run trials up to the requested number, then print the best."""
    config, fit_args = make_parser().parse_known_args(list(args))
    if config.config is None:
        raise UserError("--config: name the sweep's file, such as maml_glyphs")
    space = read_sweep(config.config)
    own = {_short_form(name) for name in (*space.parameters, *OF_THE_SWEEP)}
    for name, _, _ in by_option(fit_args):
        if _short_form(name.removeprefix("--")) in own:
            raise UserError(f"{name}: the sweep sets this for each trial itself")
    space = replace(space, options=(*space.options, *fit_args))
    grid = math.prod(len(p.values) for p in space.parameters.values()) if space.method == "grid" else math.inf
    trials = config.trials if config.trials is not None else grid
    if trials < 1 or trials == math.inf:
        raise UserError(
            f"--trials: expected the number of trials, at least 1, for method {space.method}; got {config.trials}"
        )
    name = f"sweep_{Path(config.config).stem}" if config.name is None else config.name
    refuse_name("--name", name)
    _check_ends(space)
    with recording() as signals:
        record = SweepRecord(space, Path(config.runs) / name)
        _check_data(record)
        try:
            _run_all(record, int(min(trials, grid)), signals)
        except StoppedBySignal as stopped:
            print(f"\nthe sweep was stopped by {stopped}; run the same command again to resume it", file=sys.stderr)
            raise SystemExit(128 + stopped.number) from None
        _show(record, record.write_table())


def make_parser() -> PlainParser:
    """The options of the command."""
    parser = PlainParser(
        prog="lightning-meta sweep",
        description="Search options of fit on this machine, with a file for `wandb sweep`. Several processes can run "
        "one sweep at the same time. Each trains on all GPUs that it sees: start one per GPU, with "
        "CUDA_VISIBLE_DEVICES=0, CUDA_VISIBLE_DEVICES=1 and so on before it. Run the same command again to resume a "
        "sweep that was stopped or killed. All other options are passed to fit for every trial, such as "
        "--trainer.max_steps=1000 or --threads 1; they must be the same each time.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="NAME|FILE", help="Name of a shipped sweep, such as maml_glyphs, or your file."
    )
    parser.add_argument("--trials", type=int, help="Total number of trials; by default all points of a grid.")
    parser.add_argument("--name", help="Name of the sweep; by default sweep_ and the name of the file.")
    parser.add_argument("--runs", metavar="FOLDER", default="runs", help="Folder of all runs; by default runs.")
    return parser


def _short_form(name: str) -> str:
    return name.replace(".init_args.", ".")


def _check_ends(space: Sweep) -> None:
    """Parse the options at both ends of the space; the same error at both would end every trial."""
    refusals = []
    for end in (0, -1):
        values = {name: p.values[end] if p.values else (p.low, p.high)[end] for name, p in space.parameters.items()}
        try:
            _data(_options(space, values))
        except UserError as error:
            refusals.append(str(error))
    if len(refusals) == 2 and refusals[0] == refusals[1]:
        raise UserError(refusals[0])


def _options(space: Sweep, values: Mapping[str, Any]) -> list[str]:
    return [*space.options, *(f"--{name}={value}" for name, value in values.items())]


def _data(options: Sequence[str]) -> Any:
    """Parse the options of a trial, and return the configuration of its data."""
    with using_threads("fit", options) as fit_args:
        return parsed(with_shipped(fit_args))["data"]


def _check_data(record: SweepRecord) -> None:
    """Refuse to add trials to those on other data, which options of the data may choose for each trial."""
    unchanged = UnchangedData()
    runs: dict[str, list[FrozenTrial]] = {}  # by options of the data, as a configuration takes a second to parse
    for trial in record.ranking():
        options = {name: v for name, v in trial.params.items() if name.partition(".")[0] not in ("model", "trainer")}
        runs.setdefault(json.dumps(options, sort_keys=True), []).append(trial)
    for trials in runs.values():
        data = partial(_data, _options(record.space, trials[0].params))
        finished = [record.place(trial) / RUN for trial in trials if _has_results(record.place(trial))]
        # Not "or remove the run": the study would keep its value.
        if not unchanged.check(data, finished, "give the sweep another --name"):
            return


def _run_all(record: SweepRecord, trials: int, signals: Signals) -> None:
    """Run trials up to the requested number, including interrupted ones, which are resumed."""
    reported = False
    while True:
        if record.run_next(trials, lambda trial: _run(record, trial, signals)):
            signals.check()
        elif running := record.may_be_cut_off():
            if not reported:
                numbers = ", ".join(str(record.number(trial)) for trial in running)
                print(
                    f"trial {numbers}: waiting up to {STALE} s to see if the other process that ran it is still alive",
                    flush=True,
                )
            reported = True
            signals.check(1.0)
        else:
            return


def _run(record: SweepRecord, trial: FrozenTrial, signals: Signals) -> float:
    """Train or resume a trial; returns the best value of the metric."""
    space, place = record.space, record.place(trial)
    title = f"trial {record.number(trial)}"
    settings = ", ".join(f"{name.rpartition('.')[2]} {_shown(value)}" for name, value in trial.params.items())
    print(f"{title}: {settings}", flush=True)
    try:
        _train(place, _options(space, trial.params), signals)
        value = reached(place / RUN, space.metric, space.goal == "maximize")
    except FloatingPointError as error:
        record.fail(trial, str(error))
        print(f"{title} failed: {error}", flush=True)
        raise TrialFailedError from error
    except UserError as error:
        # A full disk or a wrong name of the metric are no fault of the trial, which can be resumed after the fix.
        resumable = DISK in str(error) or (isinstance(error, OtherMetricError) and not record.ranking())
        if resumable or record.refuse(trial, str(error).replace(str(place), "")):
            raise UserError(f"{title} ({settings}): {error}") from error
        print(f"{title} was refused: {error}", flush=True)
        raise TrialFailedError from error
    print(f"{title}: {space.metric} {value:.4g}", flush=True)
    return value


def _has_results(place: Path) -> bool:
    return (place / RUN / "results.json").is_file()


def _train(place: Path, options: Sequence[str], signals: Signals) -> None:
    """Train the run of a trial in a child process, if it has no results; one without a checkpoint starts again."""
    if is_held(place / RUN):
        print(
            f"{place.name} is still running after its sweep was killed; waiting for its end, at most {HELD:.0f} s",
            flush=True,
        )
    end = time.monotonic() + HELD
    while is_held(place / RUN):
        if time.monotonic() > end:
            raise UserError(
                f"another process is still training {place / RUN} after {HELD:.0f} s; stop it, then try again"
            )
        signals.check(POLL)
    if _has_results(place):
        return
    resumed = []
    if (place / RUN / "checkpoints" / "last.ckpt").is_file():
        resumed = ["--ckpt_path", str(place / RUN)]
    elif (place / RUN).exists():
        shutil.rmtree(place / RUN)
    place.mkdir(exist_ok=True)
    with Children(signals) as children:
        children.start([*options, "--runs", str(place.parent), "--name", place.name, *resumed], place / LOG)
        status = children.next_ended().returncode
    check_status(status, place / LOG, signals)


def _show(record: SweepRecord, file: Path) -> None:
    space, ranking = record.space, record.ranking()
    table = Table("trial", space.metric, *(name.rpartition(".")[2] for name in space.parameters))
    for trial in ranking[:BEST_SHOWN]:
        shown = (_shown(trial.params[name]) for name in space.parameters)
        table.add_row(str(record.number(trial)), f"{trial.value:.4g}", *shown)
    Console(markup=False).print(table)
    best = f"the best run: {record.place(ranking[0]) / RUN}" if ranking else "no trial has a result"
    print(f"{best}; all trials: {file}")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
