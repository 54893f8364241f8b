"""Tune the rungs of a ladder: train the trials, and give each rung the settings of its best trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_meta.cli.children import reached
from lightning_meta.cli.ladder.file import Ladder
from lightning_meta.cli.ladder.plan import PlannedRun, plan
from lightning_meta.cli.ladder.search import TUNED, Search, rounded
from lightning_meta.errors import UserError
from lightning_meta.modes import mode_of
from lightning_meta.reading import read_yaml
from lightning_meta.run.files import replacing
from lightning_meta.run.tables import numbers_of, read_columns

FAILED = "failed.yaml"  # the configuration with which the training of a trial failed, in the folder of the trial


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

    Raises:
        UserError: No trial of a rung has a result, or its weights cannot be read.
    """
    configs = {rung: [*trials] for rung, trials in ladder.trials.items()}
    tuned_sums = [rung for rung in configs if ladder.weights.get(rung) == TUNED]
    train(_planned(ladder, search, *configs.values()))
    for rung in tuned_sums:  # the other half of their trials has the best settings, and drawn weights
        best, run = _best(rung, _planned(ladder, search, configs[rung]))
        tasks = _tasks(run)
        for number in range(len(configs[rung]), search.trials):
            config = _weighted(configs[rung][best], search.weights(number, tasks))
            configs[rung].append({**config, "name": f"{rung}_trial_{number}"})
    train(_planned(ladder, search, *(configs[rung] for rung in tuned_sums)))
    rungs, results = {}, {}
    for rung, config in ladder.rungs.items():
        source = ladder.weights.get(rung, TUNED)
        searched = rung if source == TUNED else source
        runs = _planned(ladder, search, configs[searched])
        best, run = _best(searched, runs)
        chosen, weights = configs[searched][best], {}
        settings = [_settings(search, trial) for trial in configs[searched]]
        ends = _ends(settings, best) if searched == rung else {}
        if searched != rung:  # the weights that the method of another rung had on average
            weights = mean_weights(run)
            chosen = _weighted(chosen, weights)
        elif rung in tuned_sums:
            fixed = chosen["model"]["init_args"]["weighting"]
            weights = fixed["init_args"]["weights"] if fixed else dict.fromkeys(_tasks(run), 1.0)
        rungs[rung] = {**chosen, **{key: config[key] for key in ("name", "runs")}}
        steps = sum(run.results["steps"] for run in runs if run.results is not None)
        results[rung] = SearchResult(best, settings[best], weights, steps, ends)
    return replace(ladder, rungs=rungs), results


def note_failure(run: PlannedRun) -> None:
    """Record that the training of a trial failed, so that the same configuration is not trained again."""
    with replacing(run.root / FAILED) as file:
        file.write(run.file.read_text(encoding="utf-8"))


def has_failed(run: PlannedRun) -> bool:
    """Whether the training of a trial failed with its present configuration."""
    note = run.root / FAILED
    return note.is_file() and note.read_bytes() == run.file.read_bytes()


def _planned(ladder: Ladder, search: Search, *trials: Sequence[dict[str, Any]]) -> list[PlannedRun]:
    """The trials of some rungs as runs of a ladder with one seed, in order."""
    rungs = {config["name"]: config for of_rung in trials for config in of_rung}
    return plan(Ladder(ladder.folder / "trials", ladder.baseline, (search.seed,), rungs))


def _settings(search: Search, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the tuned options in the configuration of a trial, without those that its model does not have."""
    settings = {}
    for option in search.parameters:
        node: Any = config
        for key in option.split("."):  # options leave out `init_args`
            node = {**(node.get("init_args") or {}), **node}.get(key) if isinstance(node, dict) else None
        if node is not None:
            settings[option] = node["class_path"] if isinstance(node, dict) and "class_path" in node else node
    return settings


def _ends(settings: Sequence[Mapping[str, Any]], best: int) -> dict[str, str]:
    """The options of which the best trial has the smallest or the largest of three or more numbers tried."""
    ends = {}
    for option, value in settings[best].items():
        tried = {trial[option] for trial in settings if type(trial.get(option)) in (int, float)}
        if len(tried) > 2 and value in (min(tried), max(tried)):
            ends[option] = f"{'smallest' if value == min(tried) else 'largest'} of {len(tried)}"
    return ends


def _tasks(run: Path) -> list[str]:
    return read_columns(run / "per_task.csv", ["task"])["task"]


def _weighted(config: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, Any]:
    """The configuration with fixed loss weights."""
    weighting = {"class_path": "lightning_meta.weightings.Fixed", "init_args": {"weights": dict(weights)}}
    model = config["model"]
    return {**config, "model": {**model, "init_args": {**model["init_args"], "weighting": weighting}}}


def _best(rung: str, runs: Sequence[PlannedRun]) -> tuple[int, Path]:
    """Number and directory of the trial with the best value of the monitored metric, the first in case of ties."""
    best: tuple[float, int, Path] | None = None
    for number, run in enumerate(runs):
        monitor = read_yaml(run.file)["checkpoint"]
        maximize = (monitor["mode"] or mode_of(monitor["monitor"])) == "max"
        if run.directory is not None and run.finished:
            with suppress(FloatingPointError):  # it was never finite
                score = (1 if maximize else -1) * reached(run.directory, monitor["monitor"], maximize)
                best = (score, number, run.directory) if best is None or score > best[0] else best
    if best is None:
        raise UserError(f"{rung}: none of its {len(runs)} trials has a result; see the logs of the ladder")
    return best[1:]


def mean_weights(run: Path) -> dict[str, float]:
    """The mean logged weight of each task in a run directory, over the steps that logged it."""
    file, means = run / "metrics.csv", {}
    columns = read_columns(file)
    for task in _tasks(run):
        name = f"train/weight/{task}"
        logged = [weight for weight in numbers_of(file, name, columns.get(name, [])) if math.isfinite(weight)]
        if not logged:
            raise UserError(
                f"{file}: no weight of task {task!r} was logged; lower --trainer.log_every_n_steps, unless the shared "
                "parameters are frozen: then no weights are applied"
            )
        means[task] = math.fsum(logged) / len(logged)
    return rounded(means)
