"""Notes of the transfer report: what its intervals cover and what limits its conclusions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lightning_meta.functional.delta_m import FLOOR
from lightning_meta.report.transfer.matching import Method, classes_of_examples
from lightning_meta.report.transfer.results import MethodTransfer
from lightning_meta.report.transfer.statements import SEEDS_FOR_VERDICTS


def what_seeds_support(against: Method, transfers: Sequence[MethodTransfer]) -> list[str]:
    """Lines on what the intervals cover and which tasks the means leave out."""
    seeds, tasks = len(against.seeds), len(against.runs[0].tasks)
    listed = ", ".join(map(str, against.seeds))
    halves = [(t.high - t.low) / 2 for m in transfers for t in m.tasks if math.isfinite(t.low)]
    lines = []
    if seeds == 1:
        lines.append(
            f"One seed ({listed}): the intervals cover only the choice of test examples, not the variation between "
            f"seeds, so there are no verdicts; train {SEEDS_FOR_VERDICTS - 1} more seeds."
        )
    else:
        lines.append(
            f"{seeds} seeds ({listed}): the intervals cover new seeds and new test examples. The effect of a seed "
            f"on all tasks together has {seeds - 1} degree{'s' * (seeds > 2)} of freedom, however many tasks there are."
            + (" Two seeds give no verdicts; train one more." if seeds < SEEDS_FOR_VERDICTS else "")
        )
    if halves:
        half = float(np.median(halves))
        lines.append(
            f"Each interval is for a single task; the median half-width is {half:.3f} in the metric (0.01 is a "
            f"percentage point of accuracy). Verdicts are corrected for the {tasks} tasks of a method."
        )
    unknown = {t.task for m in transfers for t in m.tasks if t.verdict == "not comparable"}
    if unknown:
        lines.append(
            "Not comparable, as they have no test examples or all targets are equal: "
            f"{', '.join(sorted(unknown))}; means are over the other tasks."
        )
    if len(metrics := {t.metric for m in transfers for t in m.tasks}) > 1:
        lines.append(f"Means over tasks mix {' and '.join(sorted(metrics))}; compare Δm or single tasks.")
    if excluded := max(m.delta_m_excluded for m in transfers):
        lines.append(
            f"Δm leaves out up to {excluded} of {tasks} tasks: their baseline is below {FLOOR}, or for errors below "
            f"{FLOOR} times the error of a constant prediction."
        )
    return lines


def constants(methods: Sequence[Method], names: Sequence[str]) -> list[str]:
    """A line for each method with tasks in which it is not better than a prediction that ignores the input."""
    lines = []
    for method in methods:
        tasks = method.runs[0].tasks
        reached = {name: tasks[name].sign * (method.mean(name, "test") - tasks[name].constant) for name in names}
        if failed := [name for name, difference in reached.items() if difference <= 0]:
            lines.append(
                f"{method.name} is not better than a constant, the best prediction that ignores the input, "
                f"in {len(failed)} of {len(names)} tasks: {_some(failed)}."
            )
    return lines


def not_converged(methods: Sequence[Method], names: Sequence[str]) -> list[str]:
    """A line for each method with tasks whose best validation was the last one."""
    lines = []
    for method in methods:
        late = [n for n in names if method.converged(n) is False]
        if late:
            lines.append(
                f"{method.name} is not converged, train longer: the last validation was the best one in at least one "
                f"seed in {len(late)} of {len(names)} tasks: {_some(late)}."
            )
    return lines


def without_interval(methods: Sequence[Method], names: Sequence[str]) -> list[str]:
    """A line on tasks without an interval, because a test example is the only one of its class."""
    classes = {name: classes_of_examples(methods, name) for name in names}
    one = [n for n, of in classes.items() if of is not None and (np.unique(of, return_counts=True)[1] == 1).any()]
    if not one:
        return []
    return [
        f"{len(one)} of {len(names)} tasks have no interval, as a test example is the only one of its class, or the "
        f"metric is not defined without it: {_some(one)}."
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
