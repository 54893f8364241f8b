"""From runs to the transfer report: verdicts, why sharing hurts a task, and notes on what limits the conclusions."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from lightning_meta.errors import some_of
from lightning_meta.functional.delta_m import FLOOR, delta_m
from lightning_meta.report.drawing import number_of
from lightning_meta.report.transfer.intervals import ALPHA, Intervals, paired_intervals, state
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
    common_metric,
)
from lightning_meta.tasks.few_rows import FEWEST_ROWS

NOT_CONVERGED = "not converged: train longer"
UNKNOWN = dict.fromkeys(Intervals._fields, math.nan)  # of a task that is not compared

# As in `val/score`, except that errors and the log loss are divided by those of a constant prediction.
FLOORS = {"r2": -1.0, "rmse": -math.sqrt(2), "mae": -math.sqrt(2), "log_loss": -2.0}


def compare(runs: Sequence[str | Path], baseline: Sequence[str | Path], tuned: Collection[str] = ()) -> TransferReport:
    """Compare multi-task runs with those of a baseline, task by task.

    Args:
        runs: Run directories, or folders with the runs of one method. Runs of the baseline among them are left out, so
            that a pattern may match all runs.
        baseline: Runs of the method to compare with, usually `Independent`.
        tuned: Options that were tuned for each method, such as `model.optimizer.lr`: no note says that they differ.

    Raises:
        UserError: The runs cannot be compared, see `matching.match`.
    """
    against, methods = match(runs, baseline)
    everyone = [against, *methods]
    names, compared = list(against.tasks), compared_tasks(everyone)
    values = np.array([[m.tasks[name].sign * m.mean(name, "test") for name in compared] for m in everyone])
    better, equal = (values[None] > values[:, None]).sum(1), (values[None] == values[:, None]).sum(1)
    ranks = [_mean(row) for row in better + (equal + 1) / 2]  # 1 is best; ties get the mean of their ranks
    transfers = tuple(_transfer(m, against, r) for m, r in zip(methods, ranks[1:], strict=True))
    selection = {m.name: selected for m in everyone if (selected := _selected(m, against)) is not None}
    notes = (
        *_limits(against, transfers),
        *_notes_on_tasks(everyone, names, compared),
        *differences_in_common(against, methods, tuned),
    )
    return TransferReport(against.name, against.seeds, transfers, ranks[0], selection, notes)


def _transfer(method: Method, against: Method, rank: float) -> MethodTransfer:
    names, compared = list(against.tasks), compared_tasks([against, method])
    intervals = _intervals(method, against, compared)
    losses, loss_before = method.per_seed(names, "train_loss"), against.per_seed(names, "train_loss")
    loss_share = shares(losses.mean(0))
    gradient_share = method.per_seed(names, "gradient_share").mean(0)
    # Gradient shares are NaN unless every run recorded them.
    deciding = gradient_share if np.isfinite(gradient_share).all() else loss_share
    dominating = [names[i] for i in dominating_tasks(shares(deciding))]
    tasks = []
    for i, name in enumerate(names):
        first = against.tasks[name]
        interval = intervals.get(name, UNKNOWN)
        verdict: Verdict = "no difference shown" if name in compared else "not comparable"
        if len(method.seeds) < SEEDS_FOR_VERDICTS and name in compared:
            verdict = "too few seeds"
        elif interval["p_holm"] < ALPHA:  # false for a task that is not compared, whose p-value is NaN
            verdict = "helped" if interval["delta"] > 0 else "hurt"
        cause = ""
        if verdict == "hurt":
            converged, lost = {method.converged(name), against.converged(name)}, method.lost_by_selection(name)
            cause = cause_if_hurt(
                losses[:, i] - loss_before[:, i],
                float(deciding[i]),
                dominating,
                len(names),
                shares=method.runs[0].shares,
                converged=False if False in converged else None if None in converged else True,
                near=lost <= -interval["delta"] / 2 if math.isfinite(lost) else None,
            )
        joint = against.mean(name, "joint")
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
                cause=cause,
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
    comparable = [task for task in tasks if task.task in compared]
    changes = _differences(method, against, compared)
    delta, delta_joint = changes.mean(0), _differences(method, against, compared, "joint").mean(0)
    # With one metric for all tasks, the means are in its own units, as in the columns of the tasks.
    if alike := _one_unit(comparable):
        delta, delta_joint = (np.array([getattr(t, k) for t in comparable]) for k in ("delta", "delta_joint"))
    relative, excluded = _delta_m(comparable, against)
    for_models, for_method = state(changes)
    decided = [t.verdict for t in comparable if t.verdict != "too few seeds"]
    return MethodTransfer(
        method=method.name,
        tasks=tuple(tasks),
        for_models=for_models,
        for_method=for_method,
        delta_m=relative,
        delta_m_excluded=excluded,
        mean_delta=_mean(delta),
        mean_delta_joint=_mean(delta_joint),
        harmed=_mean([verdict == "hurt" for verdict in decided]),
        helped=_mean([verdict == "helped" for verdict in decided]),
        worst=compared[int(delta.argmin())] if compared else "",
        mean_rank=rank,
        mean_gap=_mean([t.gap for t in comparable]) if alike else math.nan,
        dominating=tuple(dominating),
    )


def _intervals(method: Method, against: Method, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The fields of `Intervals` by name of the task."""
    if not names:
        return {}
    changes, bounded, classes = [], [], []
    for name in names:
        pair = method.scores(name), against.scores(name)
        changes.append(against.tasks[name].sign * (pair[0] - pair[1]))  # above 0 is better
        classes.append(classes_of_examples([method, against], name))
        # If each example is right or wrong, all differences of a few examples may be 0 by chance.
        right_or_wrong = against.tasks[name].metric == "accuracy" or np.isin(pair, (0, 1)).all()
        bounded.append(classes[-1] is None and bool(right_or_wrong))
    columns = paired_intervals(changes, bounded, classes)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {name: dict(zip(UNKNOWN, row, strict=True)) for name, row in zip(names, rows, strict=True)}


def _delta_m(tasks: Sequence[TaskTransfer], against: Method) -> tuple[float, int]:
    """Δm ↑ and the number of tasks that it leaves out."""
    if not tasks:
        return math.nan, 0
    # Errors in units of a constant prediction's, so that `FLOOR` in `delta_m` does not depend on units of targets.
    units = torch.tensor([_unit(against, t.task) for t in tasks], dtype=torch.float64)
    ours, theirs = (torch.tensor([getattr(t, k) for t in tasks], dtype=torch.float64) for k in ("value", "baseline"))
    change = delta_m(ours / units, theirs / units, torch.tensor([t.better == "higher" for t in tasks]))
    return change.relative.item(), int(change.excluded)


def _one_unit(tasks: Sequence[TaskTransfer]) -> bool:
    """Whether the tasks' metrics can be averaged as they are: all have the same metric, which is not an error."""
    return bool(common_metric(tasks)) and all(task.better == "higher" for task in tasks)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean of the finite values; NaN without any."""
    return float(np.mean([value for value in values if math.isfinite(value)] or [math.nan]))


def _selected(method: Method, against: Method) -> Selected | None:
    """Mean metric of a method, selected by task and jointly; None without both, or if tasks have different metrics."""
    results, names = method.tasks, compared_tasks([method])
    if len({(results[name].metric, results[name].better) for name in names}) > 1:
        return None
    both = [np.array([method.mean(n, f) for f in ("test", "joint")]) / _unit(against, n) for n in names]
    known = [pair for pair in both if np.isfinite(pair).all()]
    if not known:
        return None
    own, joint = np.mean(known, axis=0).tolist()
    return Selected(own, joint, len(known))


def _differences(method: Method, against: Method, names: Sequence[str], selected: str = "test") -> np.ndarray:
    """Δ of every seed and task, `(S, T)`, in units in which tasks can be averaged; see `ABOUT`.

    If `selected` is "joint", the baseline has one selected epoch for all tasks, NaN if it was not recorded.
    """
    values = np.stack([method.per_seed(names, "test"), against.per_seed(names, selected)])
    for i, name in enumerate(names):
        task = against.tasks[name]
        values[..., i] /= task.sign * _unit(against, name)
        values[..., i] = np.maximum(values[..., i], FLOORS.get(task.metric, -math.inf))  # NaN stays
    change: np.ndarray = values[0] - values[1]
    return change


def _unit(against: Method, name: str) -> float:
    """The divisor of a task's metric in means over tasks: for errors, that of a constant, or else of the baseline."""
    if against.tasks[name].better == "higher":
        return 1.0
    errors = (against.mean(name, field) for field in ("constant", "test"))
    return next((error for error in errors if math.isfinite(error) and error > 0), 1.0)


def cause_if_hurt(
    change_of_loss: np.ndarray,
    share: float,
    dominating: Sequence[str],
    tasks: int,
    shares: bool,
    converged: bool | None,
    near: bool | None,
) -> str:
    """Name the cause if a task is hurt, with ", few tasks dominate" if that may be a part of it.

    Args:
        change_of_loss: `(S,)` training loss of the method − the baseline's, by seed.
        share: The task's share of the gradient, or of the loss.
        dominating: Names of the tasks that dominate; may be empty.
        tasks: Number of tasks T.
        shares: Whether the method's tasks share parameters.
        converged: Whether the best validation of the task came before the last, for the method and the baseline; None
            if unknown.
        near: Whether selection for other tasks costs the task at most half of its harm; None if unknown.
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
    r"""The numbers of the fewest tasks that make up half of the total of shares s, `(T,)`, if it is concentrated.

    The total is concentrated if the effective number of tasks (the inverse of Simpson's index, Hill 1973) is at most
    half way between one and T: $1 / \sum_i s_i^2 \le (T + 1) / 2$.
    """
    if len(share) < 2 or not np.isfinite(share).all() or 1 / (share**2).sum() > (len(share) + 1) / 2:
        return []
    order = np.argsort(-share, kind="stable")
    return [int(i) for i in order[: int(np.searchsorted(share[order].cumsum(), 0.5)) + 1]]


def _limits(against: Method, transfers: Sequence[MethodTransfer]) -> list[str]:
    """Lines on what the intervals cover and which tasks the means leave out."""
    seeds, first = len(against.seeds), transfers[0].tasks
    tasks = [task for transfer in transfers for task in transfer.tasks]
    compared = max(sum(t.verdict != "not comparable" for t in transfer.tasks) for transfer in transfers)
    cover = "only the choice of test examples, not the variation between seeds, so there are no verdicts."
    if seeds > 1:
        degrees = f"{number_of(seeds - 1, 'degree')} of freedom, however many tasks there are"
        cover = f"new seeds and new test examples. The effect of a seed on all tasks together has {degrees}."
    lines = [f"{number_of(seeds, 'seed')} ({', '.join(map(str, against.seeds))}): the intervals cover {cover}"]
    if halves := [(t.high - t.low) / 2 for t in tasks if math.isfinite(t.low)]:
        typical = ""
        if _one_unit([task for task in first if task.verdict != "not comparable"]):
            points = " (0.01 is a percentage point of accuracy)" if first[0].metric == "accuracy" else ""
            typical = f"; the median half-width is {np.median(halves):.3f} in the metric{points}"
        corrected = f" Verdicts are corrected for the {compared} tasks of a method."
        lines.append(f"Each interval is for a single task{typical}.{corrected * (seeds >= SEEDS_FOR_VERDICTS)}")
    if unknown := {t.task: t.test_examples for t in tasks if t.verdict == "not comparable"}:
        named = some_of(f"{name} ({number_of(count, 'test example')})" for name, count in unknown.items())
        lines.append(
            f"Not comparable are {len(unknown)} of {len(first)} tasks, with fewer than {FEWEST_ROWS} test examples, or "
            f"whose metric is not defined, as where all targets are equal: {named}. Means, counts and statements are "
            "over the other tasks."
        )
    if not _one_unit(first):
        lines.append(
            "Since tasks may differ in metric and unit, the mean Δ and the statements are in comparable units, errors "
            "over that of a constant prediction."
        )
    if excluded := max(transfer.delta_m_excluded for transfer in transfers):
        lines.append(
            f"Δm leaves out up to {excluded} of {compared} tasks: their baseline is below {FLOOR}, or for errors below "
            f"{FLOOR} times the error of a constant prediction."
        )
    return lines


def _notes_on_tasks(methods: Sequence[Method], names: Sequence[str], compared: Sequence[str]) -> list[str]:
    """Lines on the tasks without an interval, and those in which a method is as bad as a constant, or not converged."""
    lines = []
    classes = {name: classes_of_examples(methods, name) for name in compared}
    if one := [n for n, of in classes.items() if of is not None and 1 in np.unique(of, return_counts=True)[1]]:
        lines.append(
            f"{len(one)} of {len(compared)} tasks have no interval, as a test example is the only one of its class, or "
            f"the metric is not defined without it: {some_of(one)}."
        )
    for method in methods:
        gains = {n: method.tasks[n].sign * (method.mean(n, "test") - method.mean(n, "constant")) for n in compared}
        constant = [name for name, gain in gains.items() if gain <= 0]
        late = [name for name in names if method.converged(name) is False]
        for failed, of, what in (
            (constant, compared, "is not better than a constant, the best prediction that ignores the input,"),
            (late, names, "is not converged, train longer: the last validation was the best one in at least one seed"),
        ):
            if failed:
                lines.append(f"{method.name} {what} in {len(failed)} of {len(of)} tasks: {some_of(failed)}.")
    return lines
