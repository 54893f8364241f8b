"""The record of a sweep: an Optuna study that several processes share.

Optuna chooses the values, stores the trials, and detects interrupted ones by their heartbeats; these are queued again.
Under a lock, only one process at a time takes a trial, so that their number does not exceed the requested one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from lightning_meta.cli.children import by_option
from lightning_meta.cli.sweep.file import Parameter, Sweep
from lightning_meta.errors import UserError, reason_of
from lightning_meta.run.tables import write_table

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

DATABASE, TABLE, LOCK, STUDY = "study.db", "trials.csv", "study.lock", "sweep"
BEGUN = "begun"  # user attribute of a trial whose values have been drawn
HEARTBEAT = 10  # seconds between two heartbeats of a trial
STALE = 60  # seconds without a heartbeat after which a trial counts as interrupted
LOCKED = 120.0  # seconds to wait for the lock, which is normally held for milliseconds


class TrialFailedError(Exception):
    """A trial has no result, which is recorded; the sweep continues with the next one."""


class SweepRecord:
    """The trials of a sweep, their results and the next trial.

    Args:
        space: The search space.
        folder: Folder of the study and of all runs.

    Raises:
        UserError: Optuna is not installed, or the study is damaged or belongs to another sweep.
    """

    def __init__(self, space: Sweep, folder: Path) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError("optuna is not installed; pip install 'lightning_meta[sweep]'") from error
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # the command itself reports failed trials
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats are marked as experimental
        self.space, self.folder = space, folder
        self._retry = optuna.storages.RetryHeartbeatStaleTrialCallback()
        self._lock = FileLock(folder / LOCK, timeout=LOCKED, fallback_to_soft=False)
        folder.mkdir(parents=True, exist_ok=True)
        with self._readable(), self._alone():
            self._storage = _open_storage(folder / DATABASE)
            self._study = _open_study(space, self._storage)
            self._check_space()
        self._uncertain: set[int] | None = None  # trials that were running when this process first found none to run
        self._certain_at = 0.0

    def run_next(self, limit: int, train: Callable[[FrozenTrial], float]) -> bool:
        """Run one trial, interrupted ones first; False if none is left.

        Args:
            limit: Total number of trials.
            train: Runs a trial and returns the value of its metric. After an error that was not recorded with `fail`
                or `refuse`, the trial is resumed later.
        """
        reached: list[int] = []

        def objective(trial: Trial) -> float:
            number = trial.number
            for name, parameter in self.space.parameters.items():
                _suggest(trial, name, parameter)
            self._show_alive(number)
            trial.set_user_attr(BEGUN, number)
            self._lock.release()  # from now on, the heartbeats show other processes that the trial is running
            value = train(self._study.trials[number])
            reached.append(number)
            return value

        with self._readable(), self._alone():
            self._check_space()
            self._queue_interrupted()
            if not self._in("WAITING") and not self._queue_new(limit):
                if self._uncertain is None:
                    self._uncertain = {trial.number for trial in self._in("RUNNING")}
                    self._certain_at = time.monotonic() + STALE + 1  # a heartbeat is stored in whole seconds
                return False
            self._uncertain = None
            try:
                self._study.optimize(objective, n_trials=1, catch=(TrialFailedError,))
            except (AssertionError, ValueError):  # raised by Optuna for the result of a trial that has ended
                # A process that was suspended for a minute loses its trial to another, which reads the result itself.
                if not any(self._study.trials[number].state.name == "FAIL" for number in reached):
                    raise
        return True

    def may_be_cut_off(self) -> list[FrozenTrial]:
        """Trials of other processes that may have been killed, when there is no other trial to start.

        Empty after `STALE` seconds, when the heartbeats have shown which were.
        """
        if time.monotonic() > self._certain_at:
            return []
        return [trial for trial in self._in("RUNNING") if trial.number in (self._uncertain or ())]

    def number(self, trial: FrozenTrial) -> int:
        """Number of a trial, which does not change when it is queued again."""
        first = self._retry.retried_trial_number(trial)
        return trial.number if first is None else first

    def place(self, trial: FrozenTrial) -> Path:
        """The folder of a trial."""
        return self.folder / f"trial_{self.number(trial)}"

    def trials(self) -> list[FrozenTrial]:
        """All valid trials by number."""
        left_out = self._left_out()
        return sorted((t for t in self._study.get_trials(deepcopy=False) if t.number not in left_out), key=self.number)

    def ranking(self) -> list[FrozenTrial]:
        """All trials with a result, the best first."""
        done = [trial for trial in self.trials() if trial.value is not None]
        return sorted(done, key=lambda trial: trial.value or 0.0, reverse=self.space.goal == "maximize")

    def fail(self, trial: FrozenTrial, reason: str) -> None:
        """Record that a trial has no result and must not be tried again."""
        with self._alone():
            self._study.set_user_attr("failed", {**self._failed(), str(trial.number): reason})

    def refuse(self, trial: FrozenTrial, reason: str) -> bool:
        """Record that a trial could not be run, and return whether the cause is common to all trials.

        The cause is common if all trials so far were refused for the same reason, with at least two values of each
        parameter. All of them are then discarded, so that they are tried again after the fix.

        Args:
            trial: The refused trial.
            reason: The message of the error.
        """
        with self._alone():
            self.fail(trial, reason)
            refused = self._failed()
            ended = [other for other in self.trials() if other.state.is_finished() or other.number == trial.number]
            alike = all(refused.get(str(other.number)) == reason for other in ended)
            several = [name for name, p in self.space.parameters.items() if len(p.values) != 1]
            common = alike and all(len({other.params[name] for other in ended}) > 1 for name in several)
            if common:
                self._study.set_user_attr("forgotten", [*self._forgotten(), *(other.number for other in ended)])
        return common

    def write_table(self) -> Path:
        """Write all trials to a CSV file and return its path."""
        file, names = self.folder / TABLE, list(self.space.parameters)
        with self._alone():
            drawn = [trial for trial in self.trials() if trial.params.keys() == set(names)]
            rows = [
                [self.number(trial), trial.state.name.lower(), trial.value, *(trial.params[name] for name in names)]
                for trial in drawn
            ]
            write_table(file, [["trial", "state", self.space.metric, *names], *rows])
        return file

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the study."""
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"{self.folder / LOCK}: waited {LOCKED:.0f} s for another process of this sweep to release the lock; "
                "stop it"
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn errors of a study that is damaged, of another version or not writable into one line."""
        from optuna.exceptions import OptunaError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, OptunaError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            file = self.folder / DATABASE
            raise UserError(
                f"{file} cannot be read or written ({reason}); fix it, or give this sweep another --name"
            ) from error

    def _show_alive(self, number: int) -> None:
        """Store the first heartbeat of a trial: without one, Optuna never detects that it was interrupted.

        Optuna stores its first one in a thread, possibly after the process was killed.
        """
        study = self._storage.get_study_id_from_name(STUDY)
        self._storage.record_heartbeat(self._storage.get_trial_id_from_study_id_trial_number(study, number))

    def _in(self, state: str) -> list[FrozenTrial]:
        from optuna.trial import TrialState

        return self._study.get_trials(deepcopy=False, states=(TrialState[state],))

    def _failed(self) -> dict[str, str]:
        """Reasons of failed trials by number."""
        return dict(self._study.user_attrs.get("failed", {}))

    def _forgotten(self) -> list[int]:
        """Trials that were discarded because of a common mistake."""
        return list(self._study.user_attrs.get("forgotten", []))

    def _left_out(self) -> set[int]:
        """Trials that do not count: discarded ones, and those queued again under another number."""
        trials = self._study.get_trials(deepcopy=False)
        return {*self._forgotten(), *(number for trial in trials for number in self._retry.retry_history(trial))}

    def _queue_interrupted(self) -> None:
        """Queue trials again that were killed, stopped by a signal, or ended by an error that is not their fault."""
        from optuna.storages import fail_stale_trials
        from optuna.trial import TrialState

        fail_stale_trials(self._study)
        for trial in self._in("RUNNING"):
            if trial.user_attrs.get(BEGUN) != trial.number:  # killed while it held the lock
                self._study.tell(trial.number, state=TrialState.FAIL)
        failed = self._failed()
        for trial in self.trials():
            if trial.state == TrialState.FAIL and str(trial.number) not in failed:
                self._retry(self._study, trial)

    def _queue_new(self, limit: int) -> bool:
        """Queue one more trial; False if the requested number is reached."""
        if len(self.trials()) >= limit:
            return False
        if self.space.method == "grid":
            names = list(self.space.parameters)
            begun = [[trial.params[name] for name in names] for trial in self.trials()]
            points = product(*(p.values for p in self.space.parameters.values()))
            point = next(point for point in points if list(point) not in begun)
            self._study.enqueue_trial(dict(zip(names, point, strict=True)))
        return True

    def _check_space(self) -> None:
        """Refuse to mix the trials of two sweeps; the settings of one without trials may still change."""
        now = _described(self.space)
        trials = self._study.get_trials(deepcopy=False)
        stored = self._study.user_attrs.get("space", None if trials else now)
        if not isinstance(stored, dict):
            raise UserError(
                f"--name: {self.folder / DATABASE} is not the study of a sweep; give this one another --name"
            )
        differing = {key: stored.get(key) for key in sorted({*stored, *now}) if stored.get(key) != now.get(key)}
        valid = self.trials()
        if not valid:  # Optuna keeps only the goal, and the choices of parameters that it has drawn
            differing = {key: old for key, old in differing.items() if key == "goal" or key.startswith("values of ")}
        elif not any(trial.value is not None for trial in valid):
            differing.pop("metric", None)  # runs log all metrics
        if differing:
            changes = "; ".join(f"{key} {old or 'none'}, not {now.get(key, 'none')}" for key, old in differing.items())
            raise UserError(f"--name: {self.folder} holds a sweep with {changes}; give this one another --name")
        if self._study.user_attrs.get("space") != now:
            self._study.set_user_attr("space", now)


def _open_storage(file: Path) -> RDBStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.pool import NullPool

    # Without a pool, every operation closes its connection.
    pooling = {"poolclass": NullPool, "connect_args": {"timeout": LOCKED}}
    try:
        return RDBStorage(f"sqlite:///{file}", engine_kwargs=pooling, heartbeat_interval=HEARTBEAT, grace_period=STALE)
    except RuntimeError as error:  # the tables are of another version of Optuna
        raise UserError(f"{file}: {reason_of(error)}; give this sweep another --name") from error


def _open_study(space: Sweep, storage: RDBStorage) -> Study:
    import optuna

    # The constant liar counts running trials as bad, so that two processes do not try the same values.
    bayes, random = optuna.samplers.TPESampler(constant_liar=True), optuna.samplers.RandomSampler()
    return optuna.create_study(
        study_name=STUDY,
        storage=storage,
        sampler=bayes if space.method == "bayes" else random,
        direction=space.goal,
        load_if_exists=True,
    )


def _described(space: Sweep) -> dict[str, str]:
    """The settings that identify a sweep, with `--a=1` and `--a 1` as equal."""
    described = {
        "method": space.method,
        "goal": space.goal,
        "metric": space.metric,
        **{f"values of {name}": _shown(parameter) for name, parameter in space.parameters.items()},
    }
    for name, value, _ in by_option(space.options):
        described[name] = f"{described.get(name, '')} {value}".strip()
    return described


def _shown(parameter: Parameter) -> str:
    if parameter.values:
        return str(list(parameter.values))
    kind = "whole" if parameter.whole else "logarithmic" if parameter.log else "uniform"
    return f"{parameter.low} to {parameter.high} ({kind})"


def _suggest(trial: Trial, name: str, parameter: Parameter) -> None:
    """Let Optuna draw one value."""
    if parameter.values:
        trial.suggest_categorical(name, parameter.values)
    elif parameter.whole:
        trial.suggest_int(name, int(parameter.low), int(parameter.high), log=parameter.log)
    else:
        trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
