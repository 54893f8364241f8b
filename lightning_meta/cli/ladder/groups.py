"""The rung of `ladder --groups`: groups of tasks by recorded affinities, compared with full and no sharing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.errors import UserError
from lightning_meta.functional.task_groups import group_gains, task_groups
from lightning_meta.import_paths import import_class
from lightning_meta.multitask import Independent, MultiHead
from lightning_meta.report.gradients import recorded_affinity
from lightning_meta.report.transfer import compare
from lightning_meta.report.transfer.reading import read_results, run_directories
from lightning_meta.report.transfer.writing import statement_lines


def grouped_rung(runs: str, count: int) -> tuple[dict[str, Any], list[str]]:
    """Propose groups of tasks by the affinities that finished runs recorded.

    Args:
        runs: A run directory, or a folder of versions, whose affinities are averaged.
        count: The largest number of groups.

    Returns:
        The rung by its name, none if all tasks are one group; and the proposal, one line per group.

    Raises:
        UserError: A run is not finished, or did not record the affinities of all pairs of tasks.
    """
    name = f"groups_{count}"
    try:
        directories = run_directories([runs])
        if unfinished := [run for run in directories if not (run / "results.json").is_file()]:
            raise UserError(f"{unfinished[0]} is not finished, and its affinities may change; finish it first")
        recorded = recorded_affinity(runs)
        groups = task_groups(recorded.affinity, count).groups
        steps = sum(read_results(run).get("steps", 0) for run in directories)
    except UserError as error:
        raise UserError(f"--groups: {error}") from error
    if len(groups) == 1:
        line = f"{name}: the affinities propose to train all tasks together, as MultiHead does; no rung is added."
        return {}, [line]
    gains = group_gains(recorded.affinity, groups).tolist()
    lines = []
    for number, group in enumerate(groups, 1):
        tasks = [f"{recorded.tasks[t]} ({f'{gains[t]:+.2g}' if len(group) > 1 else 'alone'})" for t in group]
        lines.append(f"{name}, group {number}: {', '.join(tasks)}")
    lines.append(
        f"The affinities were recorded in {steps:,} training steps of {runs}, which come on top of the budget of "
        f"{name}."
    )
    names = [[recorded.tasks[task] for task in group] for group in groups]
    return {name: {"class_path": "lightning_meta.Grouped", "init_args": {"groups": names}}}, lines


def compare_with_extremes(rung: str, rungs: Mapping[str, Any], runs: Sequence[PlannedRun]) -> list[str]:
    """Compare a rung of groups with one network for all tasks and with one per task, one line for each such rung."""
    lines = []
    directories = {name: [str(run.directory) for run in runs if run.rung == name] for name in rungs}
    for other, config in rungs.items():
        cls = import_class(config["model"]["class_path"])
        if cls is MultiHead or cls is Independent:
            report = compare(directories[rung], directories[other])
            sharing = "all together" if cls is MultiHead else "each alone"
            statement = statement_lines(report.methods[0], other)[2].strip()
            lines.append(f"{rung} against {other} ({sharing}). {statement}")
    return lines
