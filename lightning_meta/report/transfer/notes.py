"""What a reader of the transfer report must know, in lines of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lightning_meta.functional.delta_m import FLOOR
from lightning_meta.report.transfer.matching import Method, classes_of_examples
from lightning_meta.report.transfer.results import MethodTransfer
from lightning_meta.report.transfer.statements import SEEDS_FOR_VERDICTS


def what_seeds_support(against: Method, transfers: Sequence[MethodTransfer]) -> list[str]:
    """What the intervals are over, and what the means leave out, a line each."""
    seeds, tasks = len(against.seeds), len(against.runs[0].tasks)
    listed = ", ".join(map(str, against.seeds))
    halves = [(t.high - t.low) / 2 for m in transfers for t in m.tasks if math.isfinite(t.low)]
    lines = []
    if seeds == 1:
        lines.append(
            f"One seed ({listed}): the intervals cover the choice of test examples alone. One seed cannot speak of "
            f"seed-to-seed variation: there are no verdicts; train {SEEDS_FOR_VERDICTS - 1} more seeds."
        )
    else:
        lines.append(
            f"{seeds} seeds ({listed}): the intervals cover new seeds and new test examples. What a seed does to all "
            f"tasks alike is known with {seeds - 1} degree{'s' * (seeds > 2)} of freedom, as in one task."
            + (" Two seeds give no verdicts; train one more." if seeds < SEEDS_FOR_VERDICTS else "")
        )
    if halves:
        half = float(np.median(halves))
        lines.append(
            f"An interval is of one task alone, and half are wider than ± {half:.3f} in the metric (0.01 is a "
            f"percentage point of accuracy); a verdict is corrected for the {tasks} tasks of a method."
        )
    unknown = {t.task for m in transfers for t in m.tasks if t.verdict == "not comparable"}
    if unknown:
        lines.append(
            "Not comparable, as they have no test example or targets that are all equal: "
            f"{', '.join(sorted(unknown))}; means are over the others."
        )
    if len(metrics := {t.metric for m in transfers for t in m.tasks}) > 1:
        lines.append(f"Means over tasks mix {' and '.join(sorted(metrics))}; read Δm, or the tasks one by one.")
    if excluded := max(m.delta_m_excluded for m in transfers):
        lines.append(
            f"Δm leaves out up to {excluded} of {tasks} tasks: their baseline is below {FLOOR}, of errors "
            f"below {FLOOR} of what a constant prediction has."
        )
    return lines


def constants(methods: Sequence[Method], names: Sequence[str]) -> list[str]:
    """Tasks in which a method is not better than a prediction that ignores the input, one line a method."""
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
                f"{method.name} is not converged, train longer: in a seed or more the last validation was the best of "
                f"{len(late)} of {len(names)} tasks: {_some(late)}."
            )
    return lines


def without_interval(methods: Sequence[Method], names: Sequence[str]) -> list[str]:
    """A line on tasks that have no interval, as a class has one test example or a metric cannot do without some."""
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
