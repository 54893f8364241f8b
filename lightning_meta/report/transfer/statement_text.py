"""The two statements over all tasks as people read them."""

from __future__ import annotations

import math

from lightning_meta.report.transfer.results import MethodTransfer
from lightning_meta.report.transfer.statements import SEEDS_FOR_VERDICTS
from lightning_meta.report.transfer.text import change_text, printable


def statement_lines(method: MethodTransfer, baseline: str) -> list[str]:
    """A heading, one line for the trained models and one for the method.

    Args:
        method: What was found.
        baseline: The name of what it is compared with.
    """
    metrics, errors = {t.metric for t in method.tasks}, any(t.better == "lower" for t in method.tasks)
    metric = metrics.pop() if len(metrics) == 1 and not errors else ""
    measured = " (errors over that of a constant prediction)" if errors else ""
    return [
        f"{printable(method.method)} against {printable(baseline)}, over the tasks{measured}:",
        f"  For these trained models: {_of_models(method, metric)}",
        f"  For the method: {_of_method(method, metric)}",
    ]


def _of_models(method: MethodTransfer, metric: str) -> str:
    found = method.for_models
    if not found.tasks:
        return "no task can be compared."
    equal = found.tasks - found.better - found.worse
    counts = f"better in {found.better} of {found.tasks} tasks, worse in {found.worse}"
    counts += f", equal in {equal}" if equal else ""
    mean = f"mean Δ {_amount(metric, found.mean)}"
    if not math.isfinite(found.low):
        why = "one task has no interval" if found.tasks == 1 else "tasks do not differ, so that there is no interval"
        return f"{counts}; {mean}; {why}."
    said = "not shown to differ"
    if found.low > 0 or found.high < 0:
        said = "better over the tasks" if found.low > 0 else "worse over the tasks"
    interval = f"95 % interval over tasks {_interval(metric, found.low, found.high)}"
    return f"{said}: {counts}; {mean}, {interval}. {_smallest(metric, found.smallest)}"


def _of_method(method: MethodTransfer, metric: str) -> str:
    found = method.for_method
    missing = SEEDS_FOR_VERDICTS - found.seeds
    needed = f"a verdict takes {SEEDS_FOR_VERDICTS} seeds: train {missing} more"
    if found.seeds == 1:
        return f"one seed says nothing about other seeds; {needed}."
    over = f"{found.seeds} seeds"
    if not math.isfinite(found.low):
        more = f"; {needed}." if missing > 0 else "."
        return f"seeds do not differ: mean Δ {_amount(metric, found.mean)}, and {over} have no interval{more}"
    said = f"mean Δ {_amount(metric, found.mean)}, 95 % interval over {over} {_interval(metric, found.low, found.high)}"
    if missing > 0:
        return f"no verdict ({needed}): {said}."
    return f"{found.verdict}: {said}. {_smallest(metric, found.smallest)}"


def _amount(metric: str, value: float) -> str:
    return change_text(metric, value) + (" points" if metric == "accuracy" else "")


def _interval(metric: str, low: float, high: float) -> str:
    return f"[{change_text(metric, low)}, {change_text(metric, high)}]"


def _smallest(metric: str, value: float) -> str:
    return f"Smallest Δ that could have been shown: {_amount(metric, value).replace('+', '±')} (4 times in 5)."
