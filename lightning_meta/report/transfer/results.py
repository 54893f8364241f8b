"""The transfer report as data: the effect of sharing on each task and over all tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from lightning_meta.report.transfer.statements import ForTheMethod, ForTheseModels

Verdict = Literal["helped", "hurt", "no difference shown", "too few seeds", "not comparable"]


@dataclass(frozen=True)
class TaskTransfer:
    """The effect of one method on one task; metrics are means over seeds.

    Attributes:
        task: Name of the task.
        metric: Name of the metric.
        better: Whether a "higher" or a "lower" value of the metric is better.
        train_examples: Number of training examples.
        test_examples: Number of test examples.
        baseline: Metric of the baseline.
        value: Metric of the method.
        delta: Δ = value − baseline, or baseline − value if lower is better; above 0 is an improvement.
        low: Lower end of the 95 % interval of Δ; NaN if nothing varies.
        high: Upper end of the interval.
        df: Degrees of freedom of the interval.
        p: Two-sided p-value of no difference.
        p_holm: p-value corrected for the number of tasks and for seed effects that tasks share.
        verdict: "helped" or "hurt" if `p_holm` is below 5 %, from three seeds on.
        enemy: The cause if the task is hurt, see `enemies.RULES`; else "".
        baseline_train_loss: Training loss of the baseline at its selected checkpoint.
        train_loss: Training loss of the method.
        baseline_gap: How much better the baseline's metric is in training than in validation.
        gap: The same of the method.
        loss_share: Share of the task in the method's training loss.
        gradient_share: Share of the task in the gradient of the shared parameters; NaN if it was not recorded.
        baseline_joint: Metric of the baseline with one selected epoch for all tasks; NaN if it always selects so.
        delta_joint: Δ against `baseline_joint`.
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
    """The effect of one method over all tasks.

    Attributes:
        method: Name of the method.
        tasks: Results by task, in the order of the data.
        for_models: Statement about these trained models, over tasks.
        for_method: Statement about the method, over seeds.
        delta_m: Δm ↑, a ratio: 0.1 for 10 %.
        delta_m_excluded: Number of tasks that Δm leaves out because their baseline is below `functional.delta_m.FLOOR`;
            errors are in units of the error of a constant prediction.
        mean_delta: Mean Δ over tasks, in the units of the metric.
        mean_delta_joint: Mean Δ against the baseline with one selected epoch for all tasks, as the method has; NaN if
            the baseline always selects so.
        harmed: Share of tasks with the verdict "hurt"; NaN if there are too few seeds for verdicts.
        helped: Share of tasks with the verdict "helped".
        worst: Name of the task with the smallest Δ.
        mean_rank: Mean over tasks of the method's rank among all methods and the baseline; 1 is best.
        mean_gap: Mean over tasks of the difference between training and validation metric.
        dominating: Names of the few tasks with half of the gradient (or training loss), if it is concentrated.
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
    """Mean metric of a method under both ways to select an epoch, over the tasks that have both.

    Attributes:
        own: Mean with the best epoch of each task.
        joint: Mean with one epoch for all tasks.
        tasks: Number of tasks.
    """

    own: float
    joint: float
    tasks: int


@dataclass(frozen=True)
class TransferReport:
    """Methods against a baseline.

    Attributes:
        baseline: Name of the baseline.
        seeds: Seeds of the runs, the same for every method.
        methods: Results by method.
        baseline_rank: Mean rank of the baseline.
        selection: For each method that selects an epoch per task, its mean metric with that and with one joint epoch.
            Empty if tasks have different metrics.
        notes: Notes for the reader, one line each.
    """

    baseline: str
    seeds: tuple[int, ...]
    methods: tuple[MethodTransfer, ...]
    baseline_rank: float
    selection: dict[str, Selected]
    notes: tuple[str, ...]
