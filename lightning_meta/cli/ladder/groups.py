"""A rung of a ladder whose groups of tasks follow from recorded affinities, and what it beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.errors import UserError
from lightning_meta.functional.task_groups import group_gains, task_groups
from lightning_meta.import_paths import import_class
from lightning_meta.multitask import Independent, MultiHead
from lightning_meta.report.task_affinity import recorded_affinity
from lightning_meta.report.transfer import compare
from lightning_meta.report.transfer.reading import run_directories
from lightning_meta.report.transfer.statement_text import statement_lines


@dataclass(frozen=True)
class GroupedRung:
    """Groups that `task_groups` proposes.

    Attributes:
        name: Of the rung, such as `groups_3`.
        groups: The names of the tasks of each group.
        gains: The predicted gain of each task, by name: the mean affinity of the others of its group onto it.
    """

    name: str
    groups: Sequence[Sequence[str]]
    gains: Mapping[str, float]

    @property
    def model(self) -> dict[str, Any]:
        """The rung, as it would stand in the ladder's file."""
        return {"class_path": "lightning_meta.Grouped", "init_args": {"groups": [list(g) for g in self.groups]}}

    @property
    def lines(self) -> list[str]:
        """What is proposed, in a line for each group."""
        found = []
        for number, group in enumerate(self.groups, 1):
            tasks = [f"{name} ({self.gains[name]:+.2g})" if len(group) > 1 else f"{name} (alone)" for name in group]
            found.append(f"{self.name}, group {number}: {', '.join(tasks)}")
        return found


def grouped_rung(runs: str, count: int) -> GroupedRung:
    """Propose groups from what finished runs have recorded.

    Args:
        runs: A run directory, or a folder of versions, whose affinities are averaged.
        count: The most groups.

    Raises:
        UserError: A run is not finished, or has not recorded the affinity of every two tasks.
    """
    try:
        if waiting := [run for run in run_directories([runs]) if not (run / "results.json").is_file()]:
            raise UserError(f"{waiting[0]} is not finished, and its affinities may change; finish it first")
        recorded = recorded_affinity(runs)
        numbers = task_groups(recorded.affinity, count).groups
    except UserError as error:
        raise UserError(f"--groups: {error}") from error
    gains = group_gains(recorded.affinity, numbers).tolist()
    groups = [[recorded.tasks[number] for number in group] for group in numbers]
    return GroupedRung(f"groups_{count}", groups, dict(zip(recorded.tasks, gains, strict=True)))


def against_the_ends(rung: str, models: Mapping[str, str], runs: Sequence[PlannedRun]) -> list[str]:
    """Whether groups beat one network for all tasks, and one for each, in a line for every such rung.

    Args:
        rung: That of the groups.
        models: By rung, the class path of its model.
        runs: All runs of the ladder, finished.
    """
    of_groups = _directories(rung, runs)
    lines = []
    for other, path in models.items():
        cls = import_class(path)
        if cls is MultiHead or cls is Independent:
            report = compare(of_groups, _directories(other, runs))
            what = "all together" if cls is MultiHead else "each alone"
            found = statement_lines(report.methods[0], other)[2].strip()
            lines.append(f"{rung} against {other} ({what}). {found}")
    return lines


def _directories(rung: str, runs: Sequence[PlannedRun]) -> list[str]:
    return [str(run.directory) for run in runs if run.rung == rung and run.directory is not None]
