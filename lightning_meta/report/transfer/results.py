"""The transfer report as data: what sharing did to each task, and over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from lightning_meta.report.transfer.statements import ForTheMethod, ForTheseModels

Verdict = Literal["helped", "hurt", "no difference shown", "too few seeds", "not comparable"]


@dataclass(frozen=True)
class TaskTransfer:
    """What one method does to one task; metrics are means over seeds.

    Attributes:
        task: Its name.
        metric: What is compared.
        better: Whether a "higher" or a "lower" value of it is better.
        train_examples: How many the task has.
        test_examples: How many it is compared on.
        baseline: The baseline's metric.
        value: The method's.
        delta: Δ = value − baseline, or baseline − value where lower is better: above 0 is an improvement.
        low: The lower end of the 95 % interval of Δ; NaN where nothing varies.
        high: The upper end.
        df: Degrees of freedom of the interval.
        p: The p-value of no difference.
        p_holm: Corrected for the number of tasks, and for what seeds do to all tasks alike.
        verdict: "helped" or "hurt" where `p_holm` is below 5 %, from three seeds on.
        enemy: What hurts a task that is hurt, see `enemies.RULES`; else "".
        baseline_train_loss: The baseline's training loss at its selected checkpoint.
        train_loss: The method's.
        baseline_gap: By how much the baseline's metric is better in training than in validation.
        gap: The method's.
        loss_share: The task's share of the method's training loss.
        gradient_share: Its share of the gradient on shared parameters; NaN where it was not recorded.
        baseline_joint: The baseline's metric with one selected epoch for all tasks; NaN where it selects so anyway.
        delta_joint: As `delta`, against `baseline_joint`.
    """

    task: str
    metric: str
    better: str
    train_examples: int
    test_examples: int
    baseline: float
    value: float
    delta: float
    low: float
    high: float
    df: float
    p: float
    p_holm: float
    verdict: Verdict
    enemy: str
    baseline_train_loss: float
    train_loss: float
    baseline_gap: float
    gap: float
    loss_share: float
    gradient_share: float
    baseline_joint: float
    delta_joint: float


@dataclass(frozen=True)
class MethodTransfer:
    """What one method does over all tasks.

    Attributes:
        method: Its name.
        tasks: In the order of the data.
        for_models: What stands for the trained models, over their tasks.
        for_method: What stands for the method, over its seeds.
        delta_m: Δm ↑, a ratio: 0.1 for 10 %.
        delta_m_excluded: How many tasks Δm leaves out, as their baseline is below `functional.delta_m.FLOOR`; errors
            are measured by that of a constant prediction.
        mean_delta: The mean Δ over all tasks, in the metric's units.
        mean_delta_joint: The same against the baseline with one selected epoch for all tasks, as the method has; NaN
            where the baseline selects so anyway.
        harmed: The share of tasks with the verdict "hurt"; NaN where there are too few seeds for verdicts.
        helped: The share with "helped".
        worst: The task of the least Δ.
        mean_rank: The mean over tasks of the method's rank among all methods, the baseline included; 1 is best.
        mean_gap: The mean over tasks of how much better the metric is in training than in validation.
        dominating: The few tasks that hold half of the gradient (or training loss), where it is concentrated.
    """

    method: str
    tasks: tuple[TaskTransfer, ...]
    for_models: ForTheseModels
    for_method: ForTheMethod
    delta_m: float
    delta_m_excluded: int
    mean_delta: float
    mean_delta_joint: float
    harmed: float
    helped: float
    worst: str
    mean_rank: float
    mean_gap: float
    dominating: tuple[str, ...]


class Selected(NamedTuple):
    """A method's mean metric over the tasks that have it under both selections.

    Attributes:
        own: With each task's own best epoch.
        joint: With one epoch for all.
        tasks: How many tasks.
    """

    own: float
    joint: float
    tasks: int


@dataclass(frozen=True)
class TransferReport:
    """Methods against a baseline.

    Attributes:
        baseline: Its name.
        seeds: Those that every method was run with.
        methods: In the order given.
        baseline_rank: The baseline's mean rank.
        selection: By method that selects an epoch for each task: its mean metric so, and with one joint epoch. Empty
            where tasks have different metrics.
        notes: What a reader must know, one line each.
    """

    baseline: str
    seeds: tuple[int, ...]
    methods: tuple[MethodTransfer, ...]
    baseline_rank: float
    selection: dict[str, Selected]
    notes: tuple[str, ...]
