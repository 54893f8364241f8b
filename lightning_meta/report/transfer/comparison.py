"""From runs to the transfer report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lightning_meta.functional.delta_m import FLOOR, delta_m
from lightning_meta.metrics import NAMED
from lightning_meta.report.transfer.enemies import dominating_tasks, enemy, shares
from lightning_meta.report.transfer.intervals import paired_intervals
from lightning_meta.report.transfer.matching import Method, differences_in_common, match
from lightning_meta.report.transfer.results import MethodTransfer, Selected, TaskTransfer, TransferReport, Verdict

ALPHA = 0.05


def compare(runs: Sequence[str | Path], baseline: Sequence[str | Path]) -> TransferReport:
    """Compare multi-task runs with those of a baseline, task by task.

    Args:
        runs: Run directories, or folders of the versions of one method.
        baseline: Those of the method to compare with; usually independent networks.

    Raises:
        UserError: The runs cannot be compared, see `matching.match`.
    """
    against, methods = match(runs, baseline)
    everyone = [against, *methods]
    names = list(against.runs[0].tasks)
    values = np.array([[_mean(m, name, "test") for name in names] for m in everyone])
    ranks = mean_ranks(values * [against.runs[0].tasks[name].sign for name in names])
    transfers = tuple(_transfer(m, against, float(r)) for m, r in zip(methods, ranks[1:], strict=True))
    selection = {m.name: found for m in everyone if (found := _selected(m, names)) is not None}
    notes = (
        *_what_seeds_support(against, transfers),
        *_constants(everyone, names),
        *_without_interval(everyone, names),
        *differences_in_common(against, methods),
    )
    return TransferReport(against.name, against.seeds, transfers, float(ranks[0]), selection, notes)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """The mean over tasks of each method's rank; equals share the mean of their ranks.

    Args:
        values: `(methods, T)`, higher is better. Tasks in which a value is NaN do not count.

    Returns:
        `(methods,)`, in [1, methods].
    """
    values = values[:, np.isfinite(values).all(0)]
    better = (values[None] > values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return (better + (equal + 1) / 2).mean(1) if values.shape[1] else np.full(len(values), np.nan)


def _transfer(method: Method, against: Method, rank: float) -> MethodTransfer:
    names = list(against.runs[0].tasks)
    scores = [(_scores(method, name), _scores(against, name)) for name in names]
    classes = [_classes([method, against], name) for name in names]
    bounded = [
        of is None and (against.runs[0].tasks[name].metric == "accuracy" or bool(np.isin(pair, (0, 1)).all()))
        for name, of, pair in zip(names, classes, scores, strict=True)
    ]
    signs = [against.runs[0].tasks[name].sign for name in names]
    interval = paired_intervals([sign * (a - b) for sign, (a, b) in zip(signs, scores, strict=True)], bounded, classes)
    losses, loss_before = _per_seed(method, names, "train_loss"), _per_seed(against, names, "train_loss")
    loss_share = shares(losses.mean(0))
    gradient_share = _per_seed(method, names, "gradient_share").mean(0)
    deciding = gradient_share if np.isfinite(gradient_share).all() else loss_share
    dominating = [names[i] for i in dominating_tasks(shares(deciding))]
    tasks = []
    for i, name in enumerate(names):
        first = against.runs[0].tasks[name]
        verdict: Verdict = "no difference shown" if math.isfinite(interval.delta[i]) else "not comparable"
        if interval.p_holm[i] < ALPHA:
            verdict = "helped" if interval.delta[i] > 0 else "hurt"
        hurts = enemy(losses[:, i] - loss_before[:, i], float(deciding[i]), dominating, len(names))
        tasks.append(
            TaskTransfer(
                task=name,
                metric=first.metric,
                better=first.better,
                train_examples=first.train_examples,
                test_examples=len(first.ids),
                baseline=_mean(against, name, "test"),
                value=_mean(method, name, "test"),
                delta=float(interval.delta[i]),
                low=float(interval.low[i]),
                high=float(interval.high[i]),
                df=float(interval.df[i]),
                p=float(interval.p[i]),
                p_holm=float(interval.p_holm[i]),
                verdict=verdict,
                enemy=hurts if verdict == "hurt" else "",
                baseline_train_loss=float(loss_before[:, i].mean()),
                train_loss=float(losses[:, i].mean()),
                baseline_gap=first.sign * (_mean(against, name, "train") - _mean(against, name, "val")),
                gap=first.sign * (_mean(method, name, "train") - _mean(method, name, "val")),
                loss_share=float(loss_share[i]),
                gradient_share=float(gradient_share[i]),
                baseline_joint=_mean(against, name, "joint"),
                delta_joint=first.sign * (_mean(method, name, "test") - _mean(against, name, "joint")),
            )
        )
    comparable = [t for t in tasks if math.isfinite(t.delta)]
    worst = min(comparable, key=lambda t: t.delta).task if comparable else ""
    relative, excluded = math.nan, len(comparable)
    if comparable:
        units = [_unit(t, _mean(against, t.task, "constant")) for t in comparable]
        ours, theirs = (
            torch.tensor([getattr(t, k) / u for t, u in zip(comparable, units, strict=True)], dtype=torch.float64)
            for k in ("value", "baseline")
        )
        change = delta_m(ours, theirs, torch.tensor([t.better == "higher" for t in comparable]))
        relative, excluded = change.relative.item(), int(change.excluded)
    return MethodTransfer(
        method=method.name,
        tasks=tuple(tasks),
        delta_m=relative,
        delta_m_excluded=excluded,
        mean_delta=float(np.mean([t.delta for t in comparable])) if comparable else math.nan,
        mean_delta_joint=float(np.mean([t.delta_joint for t in tasks if math.isfinite(t.delta_joint)] or [math.nan])),
        harmed=sum(t.verdict == "hurt" for t in tasks) / len(tasks),
        helped=sum(t.verdict == "helped" for t in tasks) / len(tasks),
        worst=worst,
        mean_rank=rank,
        mean_gap=float(np.mean([t.gap for t in tasks if math.isfinite(t.gap)] or [math.nan])),
        dominating=tuple(dominating),
    )


def _unit(task: TaskTransfer, constant: float) -> float:
    """What a metric is divided by in Δm, whose floor is for numbers near 1: errors by those of a constant prediction.

    Where these are not known, by the baseline's own, so that there is no floor.
    """
    if task.better == "higher":
        return 1.0
    return next((unit for unit in (constant, task.baseline) if math.isfinite(unit) and unit > 0), 1.0)


def _what_seeds_support(against: Method, transfers: Sequence[MethodTransfer]) -> list[str]:
    seeds, tasks = len(against.seeds), len(against.runs[0].tasks)
    listed = ", ".join(map(str, against.seeds))
    halves = [(t.high - t.low) / 2 for m in transfers for t in m.tasks if math.isfinite(t.low)]
    lines = []
    if seeds == 1:
        lines.append(
            f"One seed ({listed}): the intervals cover the choice of test examples alone. One seed cannot speak of "
            "seed-to-seed variation: another might turn a verdict round."
        )
    else:
        lines.append(
            f"{seeds} seeds ({listed}): the intervals cover new seeds and new test examples. The variance between "
            f"seeds has {seeds - 1} degree{'s' * (seeds > 2)} of freedom in a task, and is steadied by all {tasks} "
            "tasks; tasks whose seeds differ much more than the others' need more seeds."
        )
    if halves:
        half = float(np.median(halves))
        lines.append(
            f"An interval is of one task alone, and half are wider than ± {half:.3f} in the metric (0.01 is a "
            "percentage point of accuracy); a verdict has to stand Holm's correction over the "
            f"{tasks} tasks of a method."
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


def _constants(methods: Sequence[Method], names: Sequence[str]) -> list[str]:
    """Tasks in which a method is not better than a prediction that ignores the input, one line a method."""
    lines = []
    for method in methods:
        tasks = method.runs[0].tasks
        reached = {name: tasks[name].sign * (_mean(method, name, "test") - tasks[name].constant) for name in names}
        if failed := [name for name, difference in reached.items() if difference <= 0]:
            lines.append(
                f"{method.name} is not better than a constant, the best prediction that ignores the input, "
                f"in {len(failed)} of {len(names)} tasks: {_some(failed)}."
            )
    return lines


def _classes(methods: Sequence[Method], task: str) -> np.ndarray | None:
    """The class of each test example; each its own, and so no interval, where a metric's parts are not known."""
    results = [run.tasks[task] for method in methods for run in method.runs]
    if results[0].metric not in NAMED and any((r.scores == r.scores[0]).all() for r in results):
        return np.arange(len(results[0].ids))
    return results[0].classes


def _without_interval(methods: Sequence[Method], names: Sequence[str]) -> list[str]:
    """A line on tasks that have no interval, as a class has one test example or a metric cannot do without some."""
    classes = {name: _classes(methods, name) for name in names}
    one = [n for n, of in classes.items() if of is not None and (np.unique(of, return_counts=True)[1] == 1).any()]
    if not one:
        return []
    return [
        f"{len(one)} of {len(names)} tasks have no interval, as a test example is the only one of its class, or the "
        f"metric is not defined without it: {_some(one)}."
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _selected(method: Method, names: Sequence[str]) -> Selected | None:
    """A method's mean metric, selected by task and jointly; None where it selects in one way, or metrics mix."""
    results = method.runs[0].tasks
    both = [(_mean(method, name, "test"), _mean(method, name, "joint")) for name in names]
    known = [pair for pair in both if np.isfinite(pair).all()]
    if not known or len({results[name].metric for name in names}) > 1:
        return None
    own, joint = np.mean(known, axis=0)
    return Selected(float(own), float(joint), len(known))


def _scores(method: Method, task: str) -> np.ndarray:
    """`(S, n)`."""
    return np.stack([run.tasks[task].scores for run in method.runs])


def _per_seed(method: Method, tasks: Sequence[str], field: str) -> np.ndarray:
    """`(S, T)`."""
    return np.array([[getattr(run.tasks[task], field) for task in tasks] for run in method.runs])


def _mean(method: Method, task: str, field: str) -> float:
    return float(np.mean([getattr(run.tasks[task], field) for run in method.runs]))
