"""From runs to the transfer report."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from lightning_meta.functional.delta_m import delta_m
from lightning_meta.report.transfer import notes
from lightning_meta.report.transfer.enemies import dominating_tasks, enemy, shares
from lightning_meta.report.transfer.intervals import ALPHA, paired_intervals
from lightning_meta.report.transfer.matching import Method, classes_of_examples, differences_in_common, match
from lightning_meta.report.transfer.results import MethodTransfer, Selected, TaskTransfer, TransferReport, Verdict
from lightning_meta.report.transfer.statements import SEEDS_FOR_VERDICTS, differences, state, unit


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
    names = list(against.runs[0].tasks)
    values = np.array([[m.mean(name, "test") for name in names] for m in everyone])
    ranks = mean_ranks(values * [against.runs[0].tasks[name].sign for name in names])
    transfers = tuple(_transfer(m, against, float(r)) for m, r in zip(methods, ranks[1:], strict=True))
    selection = {m.name: found for m in everyone if (found := _selected(m, names)) is not None}
    said = (
        *notes.what_seeds_support(against, transfers),
        *notes.constants(everyone, names),
        *notes.without_interval(everyone, names),
        *notes.not_converged(everyone, names),
        *differences_in_common(against, methods, tuned),
    )
    return TransferReport(against.name, against.seeds, transfers, float(ranks[0]), selection, said)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Mean rank of each method over tasks; ties get the mean of their ranks.

    Args:
        values: Scores `(methods, T)`, higher is better. Tasks with a NaN are left out.

    Returns:
        Mean ranks `(methods,)`, in [1, methods].
    """
    values = values[:, np.isfinite(values).all(0)]
    better = (values[None] > values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return (better + (equal + 1) / 2).mean(1) if values.shape[1] else np.full(len(values), np.nan)


def _transfer(method: Method, against: Method, rank: float) -> MethodTransfer:
    names = list(against.runs[0].tasks)
    scores = [(method.scores(name), against.scores(name)) for name in names]
    classes = [classes_of_examples([method, against], name) for name in names]
    bounded = [
        of is None and (against.runs[0].tasks[name].metric == "accuracy" or bool(np.isin(pair, (0, 1)).all()))
        for name, of, pair in zip(names, classes, scores, strict=True)
    ]
    signs = [against.runs[0].tasks[name].sign for name in names]
    interval = paired_intervals([sign * (a - b) for sign, (a, b) in zip(signs, scores, strict=True)], bounded, classes)
    losses, loss_before = method.per_seed(names, "train_loss"), against.per_seed(names, "train_loss")
    loss_share = shares(losses.mean(0))
    gradient_share = method.per_seed(names, "gradient_share").mean(0)
    deciding = gradient_share if np.isfinite(gradient_share).all() else loss_share
    dominating = [names[i] for i in dominating_tasks(shares(deciding))]
    tasks = []
    for i, name in enumerate(names):
        first = against.runs[0].tasks[name]
        verdict: Verdict = "no difference shown" if math.isfinite(interval.delta[i]) else "not comparable"
        if len(method.seeds) < SEEDS_FOR_VERDICTS and verdict != "not comparable":
            verdict = "too few seeds"
        elif interval.p_holm[i] < ALPHA:
            verdict = "helped" if interval.delta[i] > 0 else "hurt"
        hurts = enemy(
            losses[:, i] - loss_before[:, i],
            float(deciding[i]),
            dominating,
            len(names),
            shares=method.runs[0].shares,
            converged=_both(method.converged(name), against.converged(name)),
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
                baseline_gap=first.sign * (against.mean(name, "train") - against.mean(name, "val")),
                gap=first.sign * (method.mean(name, "train") - method.mean(name, "val")),
                loss_share=float(loss_share[i]),
                gradient_share=float(gradient_share[i]),
                baseline_joint=against.mean(name, "joint"),
                delta_joint=first.sign * (method.mean(name, "test") - against.mean(name, "joint")),
            )
        )
    comparable = [t for t in tasks if math.isfinite(t.delta)]
    worst = min(comparable, key=lambda t: t.delta).task if comparable else ""
    relative, excluded = math.nan, len(comparable)
    if comparable:
        units = [unit(t.better, against.mean(t.task, "constant"), t.baseline) for t in comparable]
        ours, theirs = (
            torch.tensor([getattr(t, k) / u for t, u in zip(comparable, units, strict=True)], dtype=torch.float64)
            for k in ("value", "baseline")
        )
        change = delta_m(ours, theirs, torch.tensor([t.better == "higher" for t in comparable]))
        relative, excluded = change.relative.item(), int(change.excluded)
    for_models, for_method = state(differences(method, against))
    return MethodTransfer(
        method=method.name,
        tasks=tuple(tasks),
        for_models=for_models,
        for_method=for_method,
        delta_m=relative,
        delta_m_excluded=excluded,
        mean_delta=float(np.mean([t.delta for t in comparable])) if comparable else math.nan,
        mean_delta_joint=float(np.mean([t.delta_joint for t in tasks if math.isfinite(t.delta_joint)] or [math.nan])),
        harmed=_rate(tasks, "hurt"),
        helped=_rate(tasks, "helped"),
        worst=worst,
        mean_rank=rank,
        mean_gap=float(np.mean([t.gap for t in tasks if math.isfinite(t.gap)] or [math.nan])),
        dominating=tuple(dominating),
    )


def _both(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else a and b


def _rate(tasks: Sequence[TaskTransfer], verdict: Verdict) -> float:
    """Share of tasks with a verdict; NaN if there are too few seeds for verdicts."""
    none = any(t.verdict == "too few seeds" for t in tasks)
    return math.nan if none else sum(t.verdict == verdict for t in tasks) / len(tasks)


def _selected(method: Method, names: Sequence[str]) -> Selected | None:
    """Mean metric of a method, selected by task and jointly; None without both, or if tasks have different metrics."""
    results = method.runs[0].tasks
    both = [(method.mean(name, "test"), method.mean(name, "joint")) for name in names]
    known = [pair for pair in both if np.isfinite(pair).all()]
    if not known or len({results[name].metric for name in names}) > 1:
        return None
    own, joint = np.mean(known, axis=0)
    return Selected(float(own), float(joint), len(known))
