"""The search of a ladder: trials of its rungs, each rung's best, and the ladder that has their settings."""

from __future__ import annotations

import json
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
from lightning_meta.run.files import replacing
from lightning_meta.run.tables import numbers_of, read_table

FAILED = "failed.yaml"  # in the folder of a trial whose training failed: the configuration that it failed with

Configs = dict[str, list[dict[str, Any]]]  # of the trials of each rung


@dataclass(frozen=True)
class Found:
    """What the search of a rung found.

    Attributes:
        trial: The number of the best trial.
        settings: Its values by the options' names; empty for the file's own.
        weights: Those of the sum by task; empty where a rung has a weighting of its own.
        steps: The training steps of all trials.
    """

    trial: int
    settings: Mapping[str, Any]
    weights: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0


def tuned(ladder: Ladder, search: Search, train: Callable[[list[PlannedRun]], None]) -> tuple[Ladder, dict[str, Found]]:
    """Search, and return the ladder with the best settings of each rung.

    Args:
        ladder: With rungs as they stand in the file.
        search: Its search.
        train: Trains those of some trials that are not trained yet.

    Raises:
        UserError: No trial of a rung has a result, or no weights can be read off it.
    """
    sums = [rung for rung in ladder.trials if ladder.weights.get(rung) == TUNED]
    half = (
        search.trials + 1
    ) // 2  # of a sum: with weights of 1; the others draw weights for the best settings of these
    configs: Configs = {rung: list(islice(of(), half if rung in sums else None)) for rung, of in ladder.trials.items()}
    train(_planned(ladder, search, configs))
    settings = {rung: [search.settings(number) for number in range(len(of))] for rung, of in configs.items()}
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
    rungs, found = {}, {}
    for rung, config in ladder.rungs.items():
        source = ladder.weights.get(rung, rung)
        searched = rung if source == TUNED else source
        runs = _planned(ladder, search, {searched: configs[searched]})
        best = _best(searched, runs)
        chosen, of = configs[searched][best], weights[rung][best] if rung in sums else {}
        if searched != rung:
            of = _read_off(searched, runs[best])
            chosen = _weighted(chosen, of)
        rungs[rung] = {**chosen, **{key: config[key] for key in ("name", "runs")}}
        found[rung] = Found(best, settings[searched][best], of, sum(map(steps_of, runs)))
    return replace(ladder, rungs=rungs), found


def note_failure(run: PlannedRun) -> None:
    """Note that the training of a trial failed, so that it is not tried again with the same configuration."""
    with replacing(run.root / FAILED) as file:
        file.write(run.file.read_text(encoding="utf-8"))


def has_failed(run: PlannedRun) -> bool:
    """Whether the training of a trial failed."""
    note = run.root / FAILED
    return note.is_file() and note.read_bytes() == run.file.read_bytes()


def steps_of(run: PlannedRun) -> int:
    """The training steps of a run; 0 where it has no results."""
    if run.directory is None or not run.finished:
        return 0
    return int(json.loads((run.directory / "results.json").read_text(encoding="utf-8"))["steps"])


def _planned(ladder: Ladder, search: Search, configs: Mapping[str, Sequence[dict[str, Any]]]) -> list[PlannedRun]:
    """Trials as the runs of a ladder with one seed, those of a rung in order."""
    rungs = {config["name"]: config for of in configs.values() for config in of}
    return plan(Ladder(ladder.folder / "trials", ladder.baseline, (search.seed,), rungs))


def _tasks(run: PlannedRun) -> list[str]:
    assert run.directory is not None
    header, rows = read_table(run.directory / "per_task.csv", ["task"])
    return [row[header.index("task")] for row in rows]


def _weighted(config: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, Any]:
    """A configuration with fixed weights."""
    weighting = {"class_path": "lightning_meta.weightings.Fixed", "init_args": {"weights": dict(weights)}}
    model = config["model"]
    return {**config, "model": {**model, "init_args": {**model["init_args"], "weighting": weighting}}}


def _best(rung: str, runs: Sequence[PlannedRun]) -> int:
    """The number of the trial with the best validation; of equal ones the first."""
    scores = [_score(run) for run in runs]
    if max(scores) == -math.inf:
        raise UserError(f"{rung}: none of its {len(runs)} trials has a result; see the logs of the ladder")
    return scores.index(max(scores))


def _score(run: PlannedRun) -> float:
    """The best value of the monitored metric, a large one is good; -inf where training failed."""
    if run.directory is None or not run.finished:
        return -math.inf
    monitor = read_yaml(run.directory / "config.yaml")["checkpoint"]
    mode = monitor["mode"] or mode_of(str(monitor["monitor"]))
    try:
        value = reached(run.directory, monitor["monitor"], mode == "max")
    except FloatingPointError:
        return -math.inf
    return value if mode == "max" else -value


def _read_off(rung: str, run: PlannedRun) -> dict[str, float]:
    assert run.directory is not None
    file = run.directory / "metrics.csv"
    names, rows = read_table(file)
    columns = dict(zip(names, zip(*rows, strict=True), strict=False))
    weights = mean_weights({n: numbers_of(file, n, of) for n, of in columns.items() if n.startswith(WEIGHT)})
    if missing := [task for task in _tasks(run) if task not in weights]:
        raise UserError(f"{file}: {rung} logged no weight of task {missing[0]!r}; lower --trainer.log_every_n_steps")
    return weights
