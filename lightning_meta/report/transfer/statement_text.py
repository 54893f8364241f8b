"""The two statements over all tasks as text."""

from __future__ import annotations

import math

from lightning_meta.report.transfer.results import MethodTransfer
from lightning_meta.report.transfer.statements import SEEDS_FOR_VERDICTS
from lightning_meta.report.transfer.text import change_text, printable


def statement_lines(method: MethodTransfer, baseline: str) -> list[str]:
    """Return a heading, a line for the trained models and a line for the method.

    Args:
        method: Results of the method.
        baseline: Name of the baseline.
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
    models = method.for_models
    if not models.tasks:
        return "no task can be compared."
    equal = models.tasks - models.better - models.worse
    counts = f"better in {models.better} of {models.tasks} tasks, worse in {models.worse}"
    counts += f", equal in {equal}" if equal else ""
    mean = f"mean Δ {_amount(metric, models.mean)}"
    if not math.isfinite(models.low):
        why = "one task has no interval" if models.tasks == 1 else "tasks do not differ, so that there is no interval"
        return f"{counts}; {mean}; {why}."
    verdict = "not shown to differ"
    if models.low > 0 or models.high < 0:
        verdict = "better over the tasks" if models.low > 0 else "worse over the tasks"
    interval = f"95 % interval over tasks {_interval(metric, models.low, models.high)}"
    return f"{verdict}: {counts}; {mean}, {interval}. {_smallest(metric, models.smallest)}"


def _of_method(method: MethodTransfer, metric: str) -> str:
    over_seeds = method.for_method
    missing = SEEDS_FOR_VERDICTS - over_seeds.seeds
    needed = f"a verdict takes {SEEDS_FOR_VERDICTS} seeds: train {missing} more"
    if over_seeds.seeds == 1:
        return f"one seed says nothing about other seeds; {needed}."
    seeds = f"{over_seeds.seeds} seeds"
    if not math.isfinite(over_seeds.low):
        more = f"; {needed}." if missing > 0 else "."
        return f"seeds do not differ: mean Δ {_amount(metric, over_seeds.mean)}, and {seeds} have no interval{more}"
    estimate = (
        f"mean Δ {_amount(metric, over_seeds.mean)}, 95 % interval over {seeds} "
        f"{_interval(metric, over_seeds.low, over_seeds.high)}"
    )
    if missing > 0:
        return f"no verdict ({needed}): {estimate}."
    return f"{over_seeds.verdict}: {estimate}. {_smallest(metric, over_seeds.smallest)}"


def _amount(metric: str, value: float) -> str:
    return change_text(metric, value) + (" points" if metric == "accuracy" else "")


def _interval(metric: str, low: float, high: float) -> str:
    return f"[{change_text(metric, low)}, {change_text(metric, high)}]"


def _smallest(metric: str, value: float) -> str:
    return f"Smallest Δ that could have been shown: {_amount(metric, value).replace('+', '±')} (4 times in 5)."
