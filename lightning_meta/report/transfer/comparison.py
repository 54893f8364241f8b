"""From runs to the transfer report: verdicts, why sharing hurts a task, and notes on what limits the conclusions."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from lightning_meta.errors import some_of
from lightning_meta.functional.delta_m import FLOOR, delta_m
from lightning_meta.report.transfer.intervals import ALPHA, Intervals, paired_intervals
from lightning_meta.report.transfer.matching import (
    Method,
    classes_of_examples,
    compared_tasks,
    differences_in_common,
    match,
)
from lightning_meta.report.transfer.results import (
    SEEDS_FOR_VERDICTS,
    SELECTED,
    MethodTransfer,
    Selected,
    TaskTransfer,
    TransferReport,
    Verdict,
    differences,
    differences_joint,
    one_unit,
    state,
    unit,
)
from lightning_meta.tasks.few_rows import FEWEST_ROWS

RULES = (
    "A hurt task is labelled by its training loss at the selected checkpoint (evaluation mode, a fixed subset), "
    "compared with the baseline's: 'interference' if it rose in every seed, 'generalisation gap' if it fell in every "
    "seed, else 'unclear'. 'Interference' requires that the method shares parameters (else 'nothing is shared'), that "
    "for both the method and the baseline the best validation was before the last one in every seed, and that the kept "
    "checkpoint is near the task's own best: its validation metric there, mean over seeds, is below its best by at "
    "most half of what the task loses. If it is further below and the loss did not fall in every seed, the label is "
    "'selected for other tasks'; if the best validation was the last one and the loss did not fall, it is 'not "
    "converged: train longer'. 'few tasks dominate' is added if the shares s of the gradient (of the training loss if "
    "no gradient was recorded) have an effective number of tasks 1/Σ s² of at most (T + 1)/2, and the hurt task's "
    "share is below 1/T; the dominating tasks are the fewest that make up half of the total."
)
NOT_CONVERGED = "not converged: train longer"
UNKNOWN = {field.name: math.nan for field in fields(Intervals)}  # of a task that is not compared


def compare(runs: Sequence[str | Path], baseline: Sequence[str | Path], tuned: Collection[str] = ()) -> TransferReport:
    """Compare multi-task runs with those of a baseline, task by task.

    Args:
        runs: Run directories, or folders with the runs of one method.
        baseline: Runs of the method to compare with, usually `Independent`.
        tuned: Options that were tuned for each method, such as `model.optimizer.lr`: no note says that they differ.

    Raises:
        UserError: The runs cannot be compared, see `matching.match`.
    """
    against, methods = match(runs, baseline)
    everyone = [against, *methods]
    names, compared = list(against.runs[0].tasks), compared_tasks(everyone)
    values = np.array([[m.mean(name, "test") for name in compared] for m in everyone])
    ranks = mean_ranks(values * [against.runs[0].tasks[name].sign for name in compared])
    transfers = tuple(_transfer(m, against, float(r)) for m, r in zip(methods, ranks[1:], strict=True))
    selection = {m.name: selected for m in everyone if (selected := _selected(m, against)) is not None}
    notes = (
        *what_seeds_support(against, transfers),
        *constants(everyone),
        *without_interval(everyone, compared),
        *not_converged(everyone, names),
        *differences_in_common(against, methods, tuned),
    )
    return TransferReport(against.name, against.seeds, transfers, float(ranks[0]), selection, notes)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Mean rank of each method over tasks; ties get the mean of their ranks.

    Args:
        values: Scores `(methods, T)`, higher is better. Tasks with a NaN are left out.

    Returns:
        Mean ranks `(methods,)`, in [1, methods].
    """
    values = values[:, np.isfinite(values).all(0)]
    better = (values[None] > values[:, None]).sum(1)
    # `equal` counts the method itself, so the mean rank of k tied methods is that of the first plus (k − 1) / 2.
    equal = (values[None] == values[:, None]).sum(1)
    return (better + (equal + 1) / 2).mean(1) if values.shape[1] else np.full(len(values), np.nan)


def _transfer(method: Method, against: Method, rank: float) -> MethodTransfer:
    names, compared = list(against.runs[0].tasks), compared_tasks([against, method])
    intervals = _intervals(method, against, compared)
    losses, loss_before = method.per_seed(names, "train_loss"), against.per_seed(names, "train_loss")
    loss_share = shares(losses.mean(0))
    gradient_share = method.per_seed(names, "gradient_share").mean(0)
    # Gradient shares are NaN unless every run recorded them.
    deciding = gradient_share if np.isfinite(gradient_share).all() else loss_share
    dominating = [names[i] for i in dominating_tasks(shares(deciding))]
    tasks = []
    for i, name in enumerate(names):
        first = against.runs[0].tasks[name]
        interval = intervals.get(name, UNKNOWN)
        verdict: Verdict = "no difference shown" if name in compared else "not comparable"
        if len(method.seeds) < SEEDS_FOR_VERDICTS and verdict != "not comparable":
            verdict = "too few seeds"
        elif interval["p_holm"] < ALPHA:  # false for a task that is not compared, whose p-value is NaN
            verdict = "helped" if interval["delta"] > 0 else "hurt"
        joint = against.mean(name, "joint")
        cause = cause_if_hurt(
            losses[:, i] - loss_before[:, i],
            float(deciding[i]),
            dominating,
            len(names),
            shares=method.runs[0].shares,
            converged=_both(method.converged(name), against.converged(name)),
            near=_is_near(method.lost_by_selection(name), -interval["delta"]),
        )
        tasks.append(
            TaskTransfer(
                task=name,
                metric=first.metric,
                better=first.better,
                train_examples=first.train_examples,
                test_examples=len(first.ids),
                baseline=against.mean(name, "test"),
                value=method.mean(name, "test"),
                **interval,
                verdict=verdict,
                cause=cause if verdict == "hurt" else "",
                baseline_train_loss=float(loss_before[:, i].mean()),
                train_loss=float(losses[:, i].mean()),
                baseline_gap=first.sign * (against.mean(name, "train") - against.mean(name, "val")),
                gap=first.sign * (method.mean(name, "train") - method.mean(name, "val")),
                loss_share=float(loss_share[i]),
                gradient_share=float(gradient_share[i]),
                baseline_joint=joint,
                delta_joint=first.sign * (method.mean(name, "test") - joint) if name in compared else math.nan,
            )
        )
    comparable = [t for t in tasks if t.task in compared]
    change, change_joint = (f(method, against, compared).mean(0) for f in (differences, differences_joint))
    # With one metric for all tasks, the means are in its own units, as in the columns of the tasks.
    if alike := one_unit(comparable):
        change, change_joint = (np.array([getattr(t, k) for t in comparable]) for k in ("delta", "delta_joint"))
    worst = compared[int(change.argmin())] if compared else ""
    relative, excluded = math.nan, len(comparable)
    if comparable:
        # Errors in units of a constant prediction's, so that `FLOOR` in `delta_m` does not depend on units of targets.
        units = [unit(t.better, against.mean(t.task, "constant"), t.baseline) for t in comparable]
        ours, theirs = (
            torch.tensor([getattr(t, k) / u for t, u in zip(comparable, units, strict=True)], dtype=torch.float64)
            for k in ("value", "baseline")
        )
        relative_change = delta_m(ours, theirs, torch.tensor([t.better == "higher" for t in comparable]))
        relative, excluded = relative_change.relative.item(), int(relative_change.excluded)
    for_models, for_method = state(differences(method, against, compared))
    return MethodTransfer(
        method=method.name,
        tasks=tuple(tasks),
        for_models=for_models,
        for_method=for_method,
        delta_m=relative,
        delta_m_excluded=excluded,
        mean_delta=_mean(change.tolist()),
        mean_delta_joint=_mean(change_joint.tolist()),
        harmed=_rate(comparable, "hurt"),
        helped=_rate(comparable, "helped"),
        worst=worst,
        mean_rank=rank,
        mean_gap=_mean([t.gap for t in comparable]) if alike else math.nan,
        dominating=tuple(dominating),
    )


def _intervals(method: Method, against: Method, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The fields of `Intervals` by name of the task."""
    if not names:
        return {}
    scores = [(method.scores(name), against.scores(name)) for name in names]
    classes = [classes_of_examples([method, against], name) for name in names]
    # If each example is right or wrong, all differences of a few examples may be 0 by chance; see `paired_intervals`.
    bounded = [
        of is None and (against.runs[0].tasks[name].metric == "accuracy" or bool(np.isin(pair, (0, 1)).all()))
        for name, of, pair in zip(names, classes, scores, strict=True)
    ]
    signs = [against.runs[0].tasks[name].sign for name in names]  # −1 for errors, so that above 0 is better
    found = paired_intervals([sign * (a - b) for sign, (a, b) in zip(signs, scores, strict=True)], bounded, classes)
    return {name: {field: float(getattr(found, field)[i]) for field in UNKNOWN} for i, name in enumerate(names)}


def _both(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else a and b


def _is_near(lost: float, harm: float) -> bool | None:
    """Whether selection for other tasks costs a task at most half of its harm; None where it is not known."""
    return lost <= harm / 2 if math.isfinite(lost) else None


def _mean(values: Sequence[float]) -> float:
    """The mean of the finite values; NaN without any."""
    return float(np.mean([value for value in values if math.isfinite(value)] or [math.nan]))


def _rate(tasks: Sequence[TaskTransfer], verdict: Verdict) -> float:
    """Share of the compared tasks with a verdict; NaN if there are none, or too few seeds for verdicts."""
    none = not tasks or any(t.verdict == "too few seeds" for t in tasks)
    return math.nan if none else sum(t.verdict == verdict for t in tasks) / len(tasks)


def _selected(method: Method, against: Method) -> Selected | None:
    """Mean metric of a method, selected by task and jointly; None without both, or if tasks have different metrics."""
    results, names = method.runs[0].tasks, compared_tasks([method])
    if len({(results[name].metric, results[name].better) for name in names}) > 1:
        return None
    # Targets may have different units, so errors are divided like those of `differences`.
    units = [unit(results[n].better, against.mean(n, "constant"), against.mean(n, "test")) for n in names]
    both = [np.array([method.mean(n, f) for f in ("test", "joint")]) / u for n, u in zip(names, units, strict=True)]
    known = [pair for pair in both if np.isfinite(pair).all()]
    if not known:
        return None
    own, joint = np.mean(known, axis=0)
    return Selected(float(own), float(joint), len(known))


def cause_if_hurt(
    change_of_loss: np.ndarray,
    share: float,
    dominating: list[str],
    tasks: int,
    shares: bool,
    converged: bool | None,
    near: bool | None,
) -> str:
    """Name the cause if a task is hurt.

    Args:
        change_of_loss: `(S,)` training loss of the method − the baseline's, by seed.
        share: The task's share of the gradient, or of the loss.
        dominating: Names of the tasks that dominate; may be empty.
        tasks: Number of tasks T.
        shares: Whether the method's tasks share parameters.
        converged: Whether the best validation of the task came before the last, for the method and the baseline; None
            if unknown.
        near: Whether the kept checkpoint is near the task's own best validation; None if unknown.

    Returns:
        "interference", "generalisation gap", "unclear", "nothing is shared", `SELECTED` or `NOT_CONVERGED`; ", few
        tasks dominate" is appended to the first three if it applies.
    """
    rose, fell = bool((change_of_loss > 0).all()), bool((change_of_loss < 0).all())
    # A lower training loss with a worse test score is overfitting, whenever training ended. A loss that did not fall
    # may be due to the selected step and not to sharing, so that is ruled out first.
    if fell:
        name = "generalisation gap"
    elif near is False:
        return SELECTED
    elif converged is False:
        return NOT_CONVERGED
    elif not shares:
        return "nothing is shared"
    else:
        name = "interference" if rose and converged and near else "unclear"
    return f"{name}, few tasks dominate" if dominating and share < 1 / tasks else name


def shares(amounts: np.ndarray) -> np.ndarray:
    """Amounts by task as shares of their sum, `(T,)`; all NaN if one is unknown or negative, or all are zero."""
    total = amounts.sum()
    return amounts / total if total > 0 and (amounts >= 0).all() else np.full(len(amounts), np.nan)


def dominating_tasks(share: np.ndarray) -> list[int]:
    r"""The fewest tasks that make up half of the total, if it is concentrated.

    The total is concentrated if the effective number of tasks (the inverse of Simpson's index, Hill 1973) is at most
    half way between one and T: $1 / \sum_i s_i^2 \le (T + 1) / 2$.

    Args:
        share: Shares s of the tasks, `(T,)`, with sum 1.

    Returns:
        Task numbers, the largest share first; empty if the total is not concentrated or unknown.
    """
    if len(share) < 2 or not np.isfinite(share).all() or 1 / (share**2).sum() > (len(share) + 1) / 2:
        return []
    order = np.argsort(-share, kind="stable")
    return [int(i) for i in order[: int(np.searchsorted(share[order].cumsum(), 0.5)) + 1]]


def what_seeds_support(against: Method, transfers: Sequence[MethodTransfer]) -> list[str]:
    """Lines on what the intervals cover and which tasks the means leave out."""
    seeds, tasks = len(against.seeds), len(against.runs[0].tasks)
    compared = max(sum(t.verdict != "not comparable" for t in m.tasks) for m in transfers)
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
        typical = ""
        if one_unit([task for task in transfers[0].tasks if task.verdict != "not comparable"]):
            points = " (0.01 is a percentage point of accuracy)" if transfers[0].tasks[0].metric == "accuracy" else ""
            typical = f"; the median half-width is {np.median(halves):.3f} in the metric{points}"
        corrected = f" Verdicts are corrected for the {compared} tasks of a method."
        lines.append(f"Each interval is for a single task{typical}.{corrected * (seeds >= SEEDS_FOR_VERDICTS)}")
    unknown = {t.task for m in transfers for t in m.tasks if t.verdict == "not comparable"}
    if unknown:
        sizes = {task.task: task.test_examples for task in transfers[0].tasks if task.task in unknown}
        named = some_of([f"{name} ({count} test example{'s' * (count != 1)})" for name, count in sizes.items()])
        lines.append(
            f"Not comparable are {len(unknown)} of {tasks} tasks, with fewer than {FEWEST_ROWS} test examples, or whose"
            f" metric is not defined, as where all targets are equal: {named}. Means, counts and statements are over "
            "the other tasks."
        )
    if len(metrics := {t.metric for m in transfers for t in m.tasks}) > 1:
        lines.append(
            f"Tasks have different metrics ({', '.join(sorted(metrics))}): the mean Δ and the statements are in "
            "comparable units, errors over that of a constant prediction, and there is no mean gap."
        )
    elif any(method.has_errors for method in transfers):
        lines.append(
            "The mean Δ and the statements are in units of the error of a constant prediction, since targets may have "
            "different units."
        )
    if excluded := max(m.delta_m_excluded for m in transfers):
        lines.append(
            f"Δm leaves out up to {excluded} of {compared} tasks: their baseline is below {FLOOR}, or for errors below "
            f"{FLOOR} times the error of a constant prediction."
        )
    return lines


def constants(methods: Sequence[Method]) -> list[str]:
    """A line for each method with tasks in which it is not better than a prediction that ignores the input."""
    lines = []
    for method in methods:
        tasks, names = method.runs[0].tasks, compared_tasks([method])
        reached = {name: tasks[name].sign * (method.mean(name, "test") - tasks[name].constant) for name in names}
        if failed := [name for name, difference in reached.items() if difference <= 0]:
            lines.append(
                f"{method.name} is not better than a constant, the best prediction that ignores the input, "
                f"in {len(failed)} of {len(names)} tasks: {some_of(failed)}."
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
                f"seed in {len(late)} of {len(names)} tasks: {some_of(late)}."
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
        f"metric is not defined without it: {some_of(one)}."
    ]
