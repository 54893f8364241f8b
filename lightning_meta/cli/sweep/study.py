"""The record of a sweep, an Optuna study that several processes share; only who holds the sweep's lock changes it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_meta.cells import as_cells
from lightning_meta.cli.sweep.file import Parameter, Sweep
from lightning_meta.cli.sweep.trial import working_on
from lightning_meta.errors import UserError
from lightning_meta.run.files import replacing

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

DATABASE, TABLE = "study.db", "trials.csv"


class SweepRecord:
    """The trials of a sweep: which there are, what they reached, and which is next.

    Args:
        space: What is searched.
        folder: Where the record and all runs are kept.
    """

    def __init__(self, space: Sweep, folder: Path) -> None:
        try:
            import optuna
            from sqlalchemy.pool import NullPool
        except ImportError as error:
            raise UserError("optuna is not installed; pip install 'lightning_meta[sweep]'") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.folder = space, folder
        # Trials that run elsewhere count as bad ones, so that two processes do not try the same.
        bayes, at_random = optuna.samplers.TPESampler(constant_liar=True), optuna.samplers.RandomSampler()
        with self._held():
            # Without a pool every operation closes the connection that it opened: none is left to the garbage
            # collector, and none is carried into a forked process, which SQLite forbids.
            url, pooling = f"sqlite:///{folder / DATABASE}", {"poolclass": NullPool}
            self._study = optuna.create_study(
                study_name="sweep",
                storage=optuna.storages.RDBStorage(url, engine_kwargs=pooling),
                sampler=bayes if space.method == "bayes" else at_random,
                direction="maximize" if space.maximize else "minimize",
                load_if_exists=True,
            )
            self._check_space()

    @contextmanager
    def next_trial(self, limit: int) -> Iterator[FrozenTrial | None]:
        """Hold a trial that is to be run, first one that nobody works on any more; None where there is none left.

        Args:
            limit: How many trials there are to be in all.
        """
        with ExitStack() as locks:
            with self._held():
                self._check_space()
                trial = self._left_behind(locks) or self._new(limit, locks)
            yield trial

    def place(self, trial: FrozenTrial) -> Path:
        """The folder of a trial."""
        return self.folder / f"trial_{trial.number}"

    def trials(self) -> list[FrozenTrial]:
        """All that count, by number."""
        return self._counted(self.space.parameters)

    def ranking(self) -> list[FrozenTrial]:
        """Those with a result, the best first."""
        done = [trial for trial in self.trials() if trial.value is not None]
        return sorted(done, key=lambda t: -(t.value or 0.0) if self.space.maximize else (t.value or 0.0))

    def complete(self, trial: FrozenTrial, value: float) -> None:
        """Note what a trial reached."""
        with self._held():
            self._study.tell(trial.number, value)

    def fail(self, trial: FrozenTrial) -> None:
        """Note that a trial has no result."""
        with self._held():
            self._fail(trial)

    def refuse(self, trial: FrozenTrial, reason: str) -> bool:
        """Note that a trial could not be run; whether the fault lies in what all trials have in common.

        It does where every trial so far was refused for the same reason, and no value is the same in all of them that
        could be another one. These trials are forgotten then: they will be tried anew.

        Args:
            trial: The trial.
            reason: Why.
        """
        with self._held():
            self._fail(trial)
            refused = {**self._study.user_attrs.get("refused", {}), str(trial.number): reason}
            self._study.set_user_attr("refused", refused)
            ended = [other for other in self.trials() if other.state.is_finished()]
            alike = all(refused.get(str(other.number)) == reason for other in ended)
            several = [name for name, p in self.space.parameters.items() if len(p.values) != 1]
            common = alike and all(len({other.params[name] for other in ended}) > 1 for name in several)
            if common:
                forgotten = [other.number for other in ended]
                self._study.set_user_attr("forgotten", [*self._study.user_attrs.get("forgotten", []), *forgotten])
        return common

    def write_table(self) -> Path:
        """Write all trials to a file, which is returned."""
        file = self.folder / TABLE
        with self._held(), replacing(file) as target:
            writer = csv.writer(target)
            writer.writerow(["trial", "state", self.space.metric, *self.space.parameters])
            for trial in self.trials():
                values = [trial.params[name] for name in self.space.parameters]
                writer.writerow(as_cells([trial.number, trial.state.name.lower(), trial.value, *values]))
        return file

    def _held(self) -> AbstractContextManager[bool]:
        return working_on(self.folder, wait=True)

    def _counted(self, names: Iterable[str]) -> list[FrozenTrial]:
        """Not those that were cut off while their values were drawn, nor those forgotten after a common mistake."""
        forgotten = self._study.user_attrs.get("forgotten", [])
        known = self._study.get_trials(deepcopy=False)
        return [trial for trial in known if trial.params.keys() == set(names) and trial.number not in forgotten]

    def _fail(self, trial: FrozenTrial) -> None:
        from optuna.trial import TrialState

        self._study.tell(trial.number, state=TrialState.FAIL)

    def _check_space(self) -> None:
        """Refuse to mix trials of another search; one that has no trial yet may become another."""
        now = _described(self.space)
        known = self._study.user_attrs.get("space", now)
        begun = self._counted(known["parameters"])
        differing = _differing(known, now)
        if not begun:
            differing = {key: said for key, said in differing.items() if key == "goal"}  # which Optuna keeps
        elif not any(trial.value is not None for trial in begun):
            differing.pop("metric", None)  # a run has all metrics
        if differing:
            said = "; ".join(differing.values())
            raise UserError(f"--name: {self.folder} holds a sweep with {said}; give this one another --name")
        self._study.set_user_attr("space", now)

    def _left_behind(self, locks: ExitStack) -> FrozenTrial | None:
        from optuna.trial import TrialState

        counted = {trial.number for trial in self.trials()}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in counted:  # killed while its values were drawn
                self._fail(trial)
            elif locks.enter_context(working_on(self.place(trial))):
                return trial
        return None

    def _new(self, limit: int, locks: ExitStack) -> FrozenTrial | None:
        """Draw a trial and hold it before the sweep's lock is released: nobody can take it for one left behind."""
        from optuna.trial import TrialState, create_trial

        if len(self.trials()) >= limit:
            return None
        distributions = {name: _distribution(p) for name, p in self.space.parameters.items()}
        if self.space.method == "grid":
            point = self._missing_point()
            begun = create_trial(state=TrialState.RUNNING, params=point, distributions=distributions)
            self._study.add_trial(begun)
        else:
            self._study.ask(distributions)
        trial = self._study.get_trials(deepcopy=False)[-1]
        locks.enter_context(working_on(self.place(trial)))
        return trial

    def _missing_point(self) -> dict[str, Any]:
        names = list(self.space.parameters)
        begun = [[trial.params[name] for name in names] for trial in self.trials()]
        points = product(*(p.values for p in self.space.parameters.values()))
        return dict(zip(names, next(p for p in points if list(p) not in begun), strict=True))


def _described(space: Sweep) -> dict[str, Any]:
    return {
        "method": space.method,
        "goal": "maximize" if space.maximize else "minimize",
        "metric": space.metric,
        "parameters": {name: repr(parameter) for name, parameter in space.parameters.items()},
        "options": _by_name(space.options),
    }


def _by_name(options: Sequence[str]) -> dict[str, str]:
    """`--a=1` and `--a 1` as the same."""
    found: dict[str, str] = {}
    name = ""
    for word in options:
        value = word
        if word.startswith("--"):
            name, _, value = word.partition("=")
        found[name] = f"{found.get(name, '')} {value}".strip()
    return found


def _differing(known: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What is not the same, by its key, in words."""
    found = {}
    for key in ("method", "goal", "metric"):
        if known[key] != now[key]:
            found[key] = f"{key} {known[key]}, not {now[key]}"
    if known["parameters"] != now["parameters"]:
        both = known["parameters"].items() ^ now["parameters"].items()
        found["parameters"] = f"other values of {', '.join(sorted({name for name, _ in both}))}"
    for name in sorted({*known["options"], *now["options"]}):
        old, new = (_option(side["options"], name) for side in (known, now))
        if old != new:
            found[name] = f"{old}, not {new}"
    return found


def _option(options: Mapping[str, str], name: str) -> str:
    return f"{name}={options[name]}" if name in options else f"no {name}"


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna import distributions

    if parameter.values:
        return distributions.CategoricalDistribution(parameter.values)
    if parameter.whole:
        return distributions.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)
