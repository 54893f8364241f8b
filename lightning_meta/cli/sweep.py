"""`lightning-meta sweep`: search options of `fit` on this machine, by Optuna."""

from __future__ import annotations

import csv
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lightning_meta.cli.parsing import PlainParser
from lightning_meta.cli.sweep_file import OF_THE_SWEEP, Parameter, Sweep, read_sweep
from lightning_meta.cli.sweep_trial import is_finished, reached, run_trial, working_on
from lightning_meta.errors import UserError
from lightning_meta.run.files import replacing

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

DATABASE = "study.db"
BEST_SHOWN = 10


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
    grid = math.prod(len(p.values) for p in space.parameters.values()) if space.method == "grid" else None
    trials = config.trials if config.trials is not None else grid
    if trials is None or trials < 1:
        raise UserError(f"--trials: say how many to run, at least 1, for method {space.method}; got {config.trials}")
    folder = Path(config.runs) / (config.name or f"sweep_{Path(config.config).stem}")
    study = _open(space, folder)
    try:
        while _next(study, space, folder, trials if grid is None else min(trials, grid)):
            pass
    except KeyboardInterrupt:
        print("\nthe sweep stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    _write(study, folder / "trials.csv", space)
    _show(study, folder, space)


def make_parser() -> PlainParser:
    """The options of the command."""
    parser = PlainParser(
        prog="lightning-meta sweep",
        description="Search options of fit on this machine, in the space of a file for `wandb sweep`. Several of these "
        "commands may work on one sweep at once. Stopped or killed and started again, it goes on where it was. Any "
        "other option is one of fit's and holds for every trial, such as --trainer.max_steps=1000.",
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


def _checked(of_fit: Sequence[str], space: Sweep) -> list[str]:
    """Options for every trial, none of which the sweep sets itself."""
    for option in of_fit:
        name = option.partition("=")[0].removeprefix("--")
        if option.startswith("-") and (name in space.parameters or name in OF_THE_SWEEP):
            raise UserError(f"--{name}: the sweep sets this for each trial itself")
    return list(of_fit)


def _open(space: Sweep, folder: Path) -> Study:
    try:
        import optuna
    except ImportError as error:
        raise UserError("optuna is not installed; pip install 'lightning_meta[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    # Trials that run elsewhere count as bad ones, so that two processes do not try the same.
    bayes, at_random = optuna.samplers.TPESampler(constant_liar=True), optuna.samplers.RandomSampler()
    with working_on(folder, wait=True):
        study = optuna.create_study(
            study_name="sweep",
            storage=f"sqlite:///{folder / DATABASE}",
            sampler=bayes if space.method == "bayes" else at_random,
            direction="maximize" if space.maximize else "minimize",
            load_if_exists=True,
        )
        _check_space(study, space, folder)
        if space.method == "grid" and not study.get_trials(deepcopy=False):
            for point in product(*(p.values for p in space.parameters.values())):
                study.enqueue_trial(dict(zip(space.parameters, point, strict=True)))
    return study


def _check_space(study: Study, space: Sweep, folder: Path) -> None:
    known = study.user_attrs.get("space")
    now = {"metric": space.metric, "parameters": {n: repr(p) for n, p in space.parameters.items()}}
    if known is not None and known != now:
        raise UserError(f"--name: {folder} holds a sweep over another space or metric; give this one another name")
    study.set_user_attr("space", now)


def _next(study: Study, space: Sweep, folder: Path, trials: int) -> bool:
    """Run one trial, first those that nobody works on any more; False where there is none left."""
    from optuna.trial import TrialState

    for old in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        place = folder / f"trial_{old.number}"
        with working_on(place) as lock:
            if lock is not None and study.get_trials(deepcopy=False)[old.number].state == TrialState.RUNNING:
                _work(study, space, old, place, lock)
                return True
    if sum(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False)) >= trials:
        return False
    asked = study.ask({name: _distribution(p) for name, p in space.parameters.items()})
    place = folder / f"trial_{asked.number}"
    with working_on(place) as lock:
        if lock is not None:  # else another process took it for one that was left behind
            _work(study, space, study.get_trials(deepcopy=False)[asked.number], place, lock)
    return True


def _work(study: Study, space: Sweep, trial: FrozenTrial, place: Path, lock: int) -> None:
    """Train a trial, or go on with it, and note what it reached."""
    from optuna.trial import TrialState

    given = ", ".join(f"{name.rpartition('.')[2]} {_shown(value)}" for name, value in trial.params.items())
    options = [*space.options, *(f"--{name}={value}" for name, value in trial.params.items())]
    print(f"trial {trial.number}: {given}", flush=True)
    try:
        if not is_finished(place):
            run_trial(place, options, lock)
        value = reached(place, space.metric, space.maximize)
    except FloatingPointError as error:
        study.tell(trial.number, state=TrialState.FAIL)
        print(f"trial {trial.number} failed: {error}", flush=True)
        return
    except UserError as error:
        if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            # The first trial: not its values, but what all have in common may be wrong. It will begin anew.
            shutil.rmtree(place / "0", ignore_errors=True)
            raise UserError(f"trial {trial.number} ({given}): {error}") from error
        study.tell(trial.number, state=TrialState.FAIL)
        print(f"trial {trial.number} was refused: {error}", flush=True)
        return
    study.tell(trial.number, value)
    print(f"trial {trial.number}: {space.metric} {value:.4g}", flush=True)


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna import distributions

    if parameter.values:
        return distributions.CategoricalDistribution(parameter.values)
    if parameter.whole:
        return distributions.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _ordered(study: Study, space: Sweep) -> list[FrozenTrial]:
    """Finished trials, the best first."""
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    return sorted(done, key=lambda t: -(t.value or 0.0) if space.maximize else (t.value or 0.0))


def _write(study: Study, file: Path, space: Sweep) -> None:
    with replacing(file) as target:
        writer = csv.writer(target)
        writer.writerow(["trial", "state", space.metric, *space.parameters])
        for trial in study.get_trials(deepcopy=False):
            values = [trial.params.get(name) for name in space.parameters]
            writer.writerow([trial.number, trial.state.name.lower(), trial.value, *values])


def _show(study: Study, folder: Path, space: Sweep) -> None:
    done = _ordered(study, space)
    table = Table("trial", space.metric, *(name.rpartition(".")[2] for name in space.parameters))
    for trial in done[:BEST_SHOWN]:
        values = (_shown(trial.params.get(name)) for name in space.parameters)
        table.add_row(str(trial.number), f"{trial.value:.4g}", *values)
    Console(markup=False).print(table)
    if done:
        print(f"the best run: {folder / f'trial_{done[0].number}' / '0'}; all trials: {folder / 'trials.csv'}")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
