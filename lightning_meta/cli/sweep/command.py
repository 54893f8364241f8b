"""`lightning-meta sweep`: search options of `fit` on this machine, by Optuna."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentError
from rich.console import Console
from rich.table import Table

from lightning_meta.cli.fit import fit, fit_options
from lightning_meta.cli.messages import one_line
from lightning_meta.cli.parsing import PlainParser
from lightning_meta.cli.signals import Signals, StoppedBySignal, heeding
from lightning_meta.cli.sweep.file import OF_THE_SWEEP, Sweep, read_sweep
from lightning_meta.cli.sweep.study import STALE, SweepRecord, TrialFailedError
from lightning_meta.cli.sweep.trial import RUN, OtherMetricError, reached, run_trial
from lightning_meta.cli.threads import using_threads
from lightning_meta.errors import UserError
from lightning_meta.run.names import refuse_name

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

BEST_SHOWN = 10
DISK = "cannot write ("  # what `fit` says of a full disk begins so


def sweep(args: Sequence[str]) -> None:
    """Run trials until there are as many as asked for; then show the best.

    Args:
        args: The options.
    """
    config, of_fit = make_parser().parse_known_args(list(args))
    if config.config is None:
        raise UserError("--config: name the sweep's file, such as configs/sweeps/maml_glyphs.yaml")
    space = read_sweep(config.config)
    space = replace(space, options=(*space.options, *_checked(of_fit, space)))
    grid = math.prod(len(p.values) for p in space.parameters.values()) if space.method == "grid" else math.inf
    trials = config.trials if config.trials is not None else grid
    if trials < 1 or trials == math.inf:
        raise UserError(f"--trials: say how many to run, at least 1, for method {space.method}; got {config.trials}")
    name = f"sweep_{Path(config.config).stem}" if config.name is None else config.name
    refuse_name("--name", name)
    _check_ends(space)
    with heeding() as signals:
        record = SweepRecord(space, Path(config.runs) / name)
        try:
            _run_all(record, int(min(trials, grid)), signals)
        except StoppedBySignal as stopped:
            print(f"\nthe sweep was stopped by {stopped}; the same command goes on from here", file=sys.stderr)
            raise SystemExit(128 + stopped.number) from None
        _show(record, record.write_table())


def make_parser() -> PlainParser:
    """The options of the command."""
    parser = PlainParser(
        prog="lightning-meta sweep",
        description="Search options of fit on this machine, in the space of a file for `wandb sweep`. Several of these "
        "commands may work on one sweep at once. Each trains on every GPU that it sees: start one for each GPU, with "
        "CUDA_VISIBLE_DEVICES=0, CUDA_VISIBLE_DEVICES=1 and so on before it. Stopped or killed and started again, it "
        "goes on where it was. Any other option is one of fit's and holds for every trial, such as "
        "--trainer.max_steps=1000; it must be the same each time.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="The sweep, such as configs/sweeps/maml_glyphs.yaml.")
    parser.add_argument("--trials", type=int, help="Trials in all; of a grid every point by default.")
    parser.add_argument("--name", help="Name of the sweep; by default sweep_<the file's>.")
    parser.add_argument("--runs", default="runs", help="Folder of all runs.")
    return parser


def sweep_options() -> list[str]:
    """The names of all options."""
    return [action.dest for action in make_parser()._actions]


def _checked(of_fit: Sequence[str], space: Sweep) -> Sequence[str]:
    """Options for every trial, none of which the sweep sets itself, in the short form or in the long one."""
    own = {_in_short(name) for name in (*space.parameters, *OF_THE_SWEEP)}
    for option in of_fit:
        name = option.partition("=")[0].removeprefix("--")
        if option.startswith("-") and _in_short(name) in own:
            raise UserError(f"--{name}: the sweep sets this for each trial itself")
    return of_fit


def _in_short(name: str) -> str:
    """`model.inner_lr` for `model.init_args.inner_lr` as well."""
    return name.replace(".init_args.", ".")


def _check_ends(space: Sweep) -> None:
    """Refuse at once what the parser of `fit` would refuse of every trial: of both ends of the space alike.

    Raises:
        UserError: What it says.
    """
    first, last = (
        {name: p.values[end] if p.values else (p.low, p.high)[end] for name, p in space.parameters.items()}
        for end in (0, -1)
    )
    reason = _refusal(_options(space, first))
    if reason is not None and reason == _refusal(_options(space, last)):
        raise UserError(reason)


def _refusal(options: Sequence[str]) -> str | None:
    try:
        with redirect_stdout(io.StringIO()), using_threads("fit", options) as of_fit:
            fit([*of_fit, "--print_config"])
    except ArgumentError as error:
        return one_line(error, fit_options())
    except UserError as error:
        return str(error)
    except SystemExit:  # it has printed
        pass
    return None


def _options(space: Sweep, values: Mapping[str, Any]) -> list[str]:
    return [*space.options, *(f"--{name}={value}" for name, value in values.items())]


def _run_all(record: SweepRecord, trials: int, signals: Signals) -> None:
    """Run trials until there are as many as asked for and none was cut off."""
    told = False
    while True:
        if record.run_next(trials, lambda trial: _run(record, trial, signals)):
            signals.check()
        elif running := record.may_be_cut_off():
            if not told:
                numbers = ", ".join(str(record.number(trial)) for trial in running)
                print(
                    f"trial {numbers}: another process runs it, or was killed; which, is known in {STALE} s", flush=True
                )
            told = True
            signals.check(1.0)
        else:
            return


def _run(record: SweepRecord, trial: FrozenTrial, signals: Signals) -> float:
    """Train a trial, or go on with it; what it reached."""
    space, place = record.space, record.place(trial)
    title = f"trial {record.number(trial)}"
    given = ", ".join(f"{_short(name)} {_shown(value)}" for name, value in trial.params.items())
    print(f"{title}: {given}", flush=True)
    try:
        run_trial(place, _options(space, trial.params), signals)
        value = reached(place / RUN, space.metric, space.maximize)
    except FloatingPointError as error:
        record.fail(trial, str(error))
        print(f"{title} failed: {error}", flush=True)
        raise TrialFailedError from error
    except UserError as error:
        # Nothing is wrong with the trial: once it is mended, the trial goes on, or the other metric is read.
        kept = DISK in str(error) or (isinstance(error, OtherMetricError) and not record.ranking())
        if kept or record.refuse(trial, str(error).replace(str(place), "")):
            raise UserError(f"{title} ({given}): {error}") from error
        print(f"{title} was refused: {error}", flush=True)
        raise TrialFailedError from error
    print(f"{title}: {space.metric} {value:.4g}", flush=True)
    return value


def _show(record: SweepRecord, file: Path) -> None:
    space, ranking = record.space, record.ranking()
    table = Table("trial", space.metric, *(_short(name) for name in space.parameters))
    for trial in ranking[:BEST_SHOWN]:
        table.add_row(
            str(record.number(trial)), f"{trial.value:.4g}", *(_shown(trial.params[n]) for n in space.parameters)
        )
    Console(markup=False).print(table)
    best = f"the best run: {record.place(ranking[0]) / RUN}" if ranking else "no trial has a result"
    print(f"{best}; all trials: {file}")


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
