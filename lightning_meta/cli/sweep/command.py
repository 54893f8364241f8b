"""`lightning-meta sweep`: search options of `fit` on this machine with Optuna."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table

from lightning_meta.cli.fit import ParsedOnly, fit
from lightning_meta.cli.shipped import with_shipped
from lightning_meta.cli.sweep.file import OF_THE_SWEEP, Sweep, read_sweep
from lightning_meta.cli.sweep.study import STALE, SweepRecord, TrialFailedError
from lightning_meta.cli.sweep.trial import RUN, OtherMetricError, reached, run_trial
from lightning_meta.cli.threads import PlainParser, using_threads
from lightning_meta.cli.unchanged import UnchangedData
from lightning_meta.errors import UserError
from lightning_meta.run.names import refuse_name
from lightning_meta.signals import Signals, StoppedBySignal, recording

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

BEST_SHOWN = 10
DISK = "cannot write ("  # start of the message of `fit` about a full disk


def sweep(args: Sequence[str]) -> None:
    """Run trials up to the requested number, then print the best."""
    config, fit_args = make_parser().parse_known_args(list(args))
    if config.config is None:
        raise UserError("--config: name the sweep's file, such as maml_glyphs")
    space = read_sweep(config.config)
    space = replace(space, options=(*space.options, *_checked(fit_args, space)))
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


def _checked(fit_args: Sequence[str], space: Sweep) -> Sequence[str]:
    """Check that no option for all trials is one that the sweep sets, in its short or its long form."""
    own = {_short_form(name) for name in (*space.parameters, *OF_THE_SWEEP)}
    for option in fit_args:
        name = option.partition("=")[0].removeprefix("--")
        if option.startswith("-") and _short_form(name) in own:
            raise UserError(f"--{name}: the sweep sets this for each trial itself")
    return fit_args


def _short_form(name: str) -> str:
    return name.replace(".init_args.", ".")


def _check_ends(space: Sweep) -> None:
    """Parse the options at both ends of the space; the same error at both would end every trial."""
    first, last = (
        {name: p.values[end] if p.values else (p.low, p.high)[end] for name, p in space.parameters.items()}
        for end in (0, -1)
    )
    reason = _refusal(_options(space, first))
    if reason is not None and reason == _refusal(_options(space, last)):
        raise UserError(reason)


def _refusal(options: Sequence[str]) -> str | None:
    try:
        with redirect_stdout(io.StringIO()), using_threads("fit", options) as fit_args:
            fit([*with_shipped(fit_args), "--print_config"])
    except UserError as error:
        return str(error)
    except SystemExit:  # the end of --print_config
        pass
    return None


def _options(space: Sweep, values: Mapping[str, Any]) -> list[str]:
    return [*space.options, *(f"--{name}={value}" for name, value in values.items())]


def _check_data(record: SweepRecord) -> None:
    """Refuse to add trials to those on other data, which options of the data may choose for each trial."""
    unchanged = UnchangedData()
    parsed: dict[str, Any] = {}  # a configuration takes a second to parse

    def data(trial: FrozenTrial) -> Any:
        options = {name: v for name, v in trial.params.items() if name.partition(".")[0] not in ("model", "trainer")}
        key = json.dumps(options, sort_keys=True)
        if key not in parsed:
            parsed[key] = _data_of(record, trial)
        return parsed[key]

    for trial in record.ranking():
        run = record.place(trial) / RUN
        # Not "or remove the run": the study would keep its value.
        advice = "give the sweep another --name"
        if (run / "results.json").is_file() and not unchanged.check(partial(data, trial), [run], advice):
            return


def _data_of(record: SweepRecord, trial: FrozenTrial) -> Any:
    """The configuration of the data of a trial."""
    place = record.place(trial)
    where = ["--runs", str(place.parent), "--name", place.name]
    with using_threads("fit", [*_options(record.space, trial.params), *where]) as fit_args:
        cli = ParsedOnly(with_shipped(fit_args))
    return yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))["data"]


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
        run_trial(place, _options(space, trial.params), signals)
        value = reached(place / RUN, space.metric, space.maximize)
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


def _show(record: SweepRecord, file: Path) -> None:
    space, ranking = record.space, record.ranking()
    table = Table("trial", space.metric, *(name.rpartition(".")[2] for name in space.parameters))
    for trial in ranking[:BEST_SHOWN]:
        table.add_row(
            str(record.number(trial)), f"{trial.value:.4g}", *(_shown(trial.params[n]) for n in space.parameters)
        )
    Console(markup=False).print(table)
    best = f"the best run: {record.place(ranking[0]) / RUN}" if ranking else "no trial has a result"
    print(f"{best}; all trials: {file}")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
