"""Tune the rungs of a ladder: train the trials, and give each rung the settings of its best trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from lightning_meta.cli.ladder.file import Ladder
from lightning_meta.cli.ladder.plan import PlannedRun, plan
from lightning_meta.cli.ladder.search import TUNED, WEIGHT, Search, mean_weights
from lightning_meta.cli.sweep.trial import reached
from lightning_meta.errors import UserError
from lightning_meta.modes import mode_of
from lightning_meta.reading import read_yaml
from lightning_meta.report.transfer.reading import read_results
from lightning_meta.run.files import replacing
from lightning_meta.run.tables import numbers_of, read_columns

FAILED = "failed.yaml"  # the configuration with which the training of a trial failed, in the folder of the trial

Configs = dict[str, list[dict[str, Any]]]  # configurations of the trials by rung


@dataclass(frozen=True)
class SearchResult:
    """Result of the search of one rung.

    Attributes:
        trial: Number of the best trial, from 0.
        settings: Values of the tuned options; empty if the rung has none of them.
        weights: Weight of the loss by task; empty for rungs with another weighting.
        steps: Training steps of all trials.
        ends: The options whose best value is the smallest or largest of three or more tried, as "largest of 4".
    """

    trial: int
    settings: Mapping[str, Any]
    weights: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    ends: Mapping[str, str] = field(default_factory=dict)


def tuned(
    ladder: Ladder, search: Search, train: Callable[[list[PlannedRun]], None]
) -> tuple[Ladder, dict[str, SearchResult]]:
    """Train the trials of all rungs, and return the ladder with the best settings of each rung.

    Args:
        ladder: The ladder with the settings of the file.
        search: The search.
        train: Trains the trials that are not finished.

    Raises:
        UserError: No trial of a rung has a result, or its weights cannot be read.
    """
    # Rungs with tuned weights spend half of their trials on the settings, with weights of 1, and the others on weights
    # with the best of these settings.
    sums = [rung for rung in ladder.trials if ladder.weights.get(rung) == TUNED]
    half = (search.trials + 1) // 2
    configs: Configs = {
        rung: list(islice(trials(), half if rung in sums else None)) for rung, trials in ladder.trials.items()
    }
    train(_planned(ladder, search, configs))
    settings = {rung: [_settings(search, config) for config in trials] for rung, trials in configs.items()}
    weights: dict[str, list[dict[str, float]]] = {}
    for rung in sums:
        runs = _planned(ladder, search, {rung: configs[rung]})
        first = _best(rung, runs)
        tasks = _tasks(runs[first])
        weights[rung] = [dict.fromkeys(tasks, 1.0)] * len(runs)
        for number in range(len(runs), search.trials):
            weights[rung].append(search.weights(number, tasks))
            settings[rung].append(settings[rung][first])
            config = _weighted(configs[rung][first], weights[rung][-1])
            configs[rung].append({**config, "name": f"{rung}_trial_{number}"})
    train(_planned(ladder, search, {rung: configs[rung] for rung in sums}))
    rungs, results = {}, {}
    for rung, config in ladder.rungs.items():
        source = ladder.weights.get(rung, rung)
        searched = rung if source == TUNED else source
        runs = _planned(ladder, search, {searched: configs[searched]})
        best = _best(searched, runs)
        chosen, task_weights = configs[searched][best], weights[rung][best] if rung in sums else {}
        if searched != rung:  # the weights that the method of another rung had on average
            task_weights = _logged_weights(searched, runs[best])
            chosen = _weighted(chosen, task_weights)
        rungs[rung] = {**chosen, **{key: config[key] for key in ("name", "runs")}}
        ends = _ends(settings[rung], best) if searched == rung else {}
        results[rung] = SearchResult(best, settings[searched][best], task_weights, sum(map(steps_of, runs)), ends)
    return replace(ladder, rungs=rungs), results


def note_failure(run: PlannedRun) -> None:
    """Record that the training of a trial failed, so that the same configuration is not trained again."""
    with replacing(run.root / FAILED) as file:
        file.write(run.file.read_text(encoding="utf-8"))


def has_failed(run: PlannedRun) -> bool:
    """Whether the training of a trial failed with its present configuration."""
    note = run.root / FAILED
    return note.is_file() and note.read_bytes() == run.file.read_bytes()


def steps_of(run: PlannedRun) -> int:
    """Training steps of a run; 0 without results."""
    if run.directory is None or not run.finished:
        return 0
    return int(read_results(run.directory)["steps"])


def _planned(ladder: Ladder, search: Search, configs: Mapping[str, Sequence[dict[str, Any]]]) -> list[PlannedRun]:
    """The trials as runs of a ladder with one seed, in order."""
    rungs = {config["name"]: config for trials in configs.values() for config in trials}
    return plan(Ladder(ladder.folder / "trials", ladder.baseline, (search.seed,), rungs))


def _settings(search: Search, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the tuned options in the configuration of a trial, without those that its model does not have."""
    values = {option: _value(config, option.split(".")) for option in search.parameters}
    return {option: value for option, value in values.items() if value is not None}


def _value(node: Any, path: Sequence[str]) -> Any:
    """The value at a path that leaves out `init_args`, of an object its class path; None if there is none."""
    for key in path:
        if not isinstance(node, dict):
            return None
        node = node[key] if key in node else (node.get("init_args") or {}).get(key)
    return node["class_path"] if isinstance(node, dict) and "class_path" in node else node


def _ends(settings: Sequence[Mapping[str, Any]], best: int) -> dict[str, str]:
    """The options of which the best trial has the smallest or the largest of three or more numbers tried."""
    ends = {}
    for option, value in settings[best].items():
        tried = {trial[option] for trial in settings if type(trial.get(option)) in (int, float)}
        if len(tried) > 2 and value in (min(tried), max(tried)):
            ends[option] = f"{'smallest' if value == min(tried) else 'largest'} of {len(tried)}"
    return ends


def _tasks(run: PlannedRun) -> list[str]:
    """Names of the tasks of a finished run."""
    assert run.directory is not None
    return read_columns(run.directory / "per_task.csv", ["task"])["task"]


def _weighted(config: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, Any]:
    """The configuration with fixed loss weights."""
    weighting = {"class_path": "lightning_meta.weightings.Fixed", "init_args": {"weights": dict(weights)}}
    model = config["model"]
    return {**config, "model": {**model, "init_args": {**model["init_args"], "weighting": weighting}}}


def _best(rung: str, runs: Sequence[PlannedRun]) -> int:
    """Number of the trial with the best validation score, the first in case of ties."""
    scores = [_score(run) for run in runs]
    if max(scores) == -math.inf:
        raise UserError(f"{rung}: none of its {len(runs)} trials has a result; see the logs of the ladder")
    return scores.index(max(scores))


def _score(run: PlannedRun) -> float:
    """Best value of the monitored metric, negated if lower is better; -inf if training failed."""
    if run.directory is None or not run.finished:
        return -math.inf
    monitor = read_yaml(run.directory / "config.yaml")["checkpoint"]
    mode = monitor["mode"] or mode_of(str(monitor["monitor"]))
    try:
        value = reached(run.directory, monitor["monitor"], mode == "max")
    except FloatingPointError:
        return -math.inf
    return value if mode == "max" else -value


def _logged_weights(rung: str, run: PlannedRun) -> dict[str, float]:
    """The mean weight of each task that a run logged."""
    assert run.directory is not None
    file = run.directory / "metrics.csv"
    columns = read_columns(file)
    logged = {name: numbers_of(file, name, column) for name, column in columns.items() if name.startswith(WEIGHT)}
    weights = mean_weights(logged)
    if missing := [task for task in _tasks(run) if task not in weights]:
        raise UserError(
            f"{file}: {rung} logged no weight of task {missing[0]!r}; lower --trainer.log_every_n_steps, unless its "
            "shared parameters are frozen: then it applies no weights"
        )
    return weights
