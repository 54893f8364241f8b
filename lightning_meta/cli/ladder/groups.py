"""The rung of `ladder --groups`: groups of tasks by recorded affinities, compared with full and no sharing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_meta.cli.ladder.file import Ladder
from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.errors import UserError
from lightning_meta.functional.task_groups import group_gains, task_groups
from lightning_meta.import_paths import import_class
from lightning_meta.multitask import Independent, MultiHead
from lightning_meta.report.gradients import recorded_affinity
from lightning_meta.report.transfer import compare
from lightning_meta.report.transfer.reading import read_results, run_directories
from lightning_meta.report.transfer.writing import statement_lines


@dataclass(frozen=True)
class GroupedRung:
    """Groups that `task_groups` proposes.

    Attributes:
        name: Name of the rung, such as `groups_3`.
        groups: Names of the tasks of each group.
        gains: Predicted gain by task: the mean affinity of the other tasks of its group onto it.
        source: The run, or folder of runs, that recorded the affinities.
        steps: Training steps of these runs, which the ladder's budget does not include.
    """

    name: str
    groups: Sequence[Sequence[str]]
    gains: Mapping[str, float]
    source: str
    steps: int

    @property
    def model(self) -> dict[str, Any]:
        """The rung in the form of the ladder's file."""
        return {"class_path": "lightning_meta.Grouped", "init_args": {"groups": [list(g) for g in self.groups]}}

    @property
    def lines(self) -> list[str]:
        """The proposal, one line per group, and what the recording took."""
        lines = [] if len(self.groups) > 1 else [f"{self.name}: the affinities propose to train all tasks together."]
        for number, group in enumerate(self.groups, 1):
            tasks = [f"{name} ({self.gains[name]:+.2g})" if len(group) > 1 else f"{name} (alone)" for name in group]
            lines.append(f"{self.name}, group {number}: {', '.join(tasks)}")
        recorded = f"The affinities were recorded in {self.steps:,} training steps of {self.source}"
        return [*lines, f"{recorded}, which come on top of the budget of {self.name}."]

    def same_rung(self, ladder: Ladder) -> str | None:
        """The rung that already trains all tasks together, if the proposal is a single group of all; else None."""
        if len(self.groups) > 1:
            return None
        options = {k: v for k, v in ladder.rungs[self.name]["model"]["init_args"].items() if k != "groups"}
        for rung, config in ladder.rungs.items():
            model = config["model"]
            together = import_class(model["class_path"]) is MultiHead and rung not in ladder.weights
            if together and model["init_args"] == {**options, "shared_depth": None}:
                return rung
        return None


def grouped_rung(runs: str, count: int) -> GroupedRung:
    """Propose groups of tasks by the affinities that finished runs recorded.

    Args:
        runs: A run directory, or a folder of versions, whose affinities are averaged.
        count: The largest number of groups.

    Raises:
        UserError: A run is not finished, or did not record the affinities of all pairs of tasks.
    """
    try:
        directories = run_directories([runs])
        if unfinished := [run for run in directories if not (run / "results.json").is_file()]:
            raise UserError(f"{unfinished[0]} is not finished, and its affinities may change; finish it first")
        recorded = recorded_affinity(runs)
        groups = task_groups(recorded.affinity, count).groups
        steps = sum(read_results(run).get("steps", 0) for run in directories)
    except UserError as error:
        raise UserError(f"--groups: {error}") from error
    gains = group_gains(recorded.affinity, groups).tolist()
    names = [[recorded.tasks[task] for task in group] for group in groups]
    return GroupedRung(f"groups_{count}", names, dict(zip(recorded.tasks, gains, strict=True)), runs, steps)


def compare_with_extremes(rung: str, models: Mapping[str, str], runs: Sequence[PlannedRun]) -> list[str]:
    """Compare groups with one network for all tasks and with one network per task, one line for each such rung.

    Args:
        rung: Name of the rung of groups.
        models: Class path of the model by rung.
        runs: All finished runs of the ladder.
    """
    lines = []
    for other, path in models.items():
        cls = import_class(path)
        if other != rung and (cls is MultiHead or cls is Independent):
            report = compare(_directories(rung, runs), _directories(other, runs))
            sharing = "all together" if cls is MultiHead else "each alone"
            statement = statement_lines(report.methods[0], other)[2].strip()
            lines.append(f"{rung} against {other} ({sharing}). {statement}")
    return lines


def _directories(rung: str, runs: Sequence[PlannedRun]) -> list[str]:
    return [str(run.directory) for run in runs if run.rung == rung and run.directory is not None]
