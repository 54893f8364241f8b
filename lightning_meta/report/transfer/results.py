"""The transfer report as data: the effect of sharing on each task, and statements and verdicts over all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

SEEDS_FOR_VERDICTS = 3  # with two, t has one degree of freedom and almost never gives a verdict
SELECTED = "selected for other tasks"  # why a task is hurt, see `comparison.cause_if_hurt`
ABOUT = {
    "sign": "higher is better",
    "intervals": "Of each task: two-way random effects of seeds and test examples, Satterthwaite's degrees of freedom; "
    "p_holm is corrected for the number of tasks and for seed effects that tasks share. See docs/multi_task.md.",
    "causes": "Of a hurt task: the first condition of the table in docs/multi_task.md that holds.",
    "statements": "for_models: t interval over tasks of the mean over seeds, not about other seeds. for_method: t "
    "interval over seeds of the mean over tasks, not about other tasks. R² is clipped at -1; errors are divided by "
    "that of a constant prediction and clipped at √2 (log loss: 2). smallest: detected in 4 of 5 cases.",
}
"""What `transfer.json` says of its numbers."""
OverSeedsVerdict = Literal["helps", "hurts", "no difference shown", "too few seeds", "seeds do not differ"]
Verdict = Literal["helped", "hurt", "no difference shown", "too few seeds", "not comparable"]


@dataclass(frozen=True)
class Estimate:
    """A mean Δ, above 0 if it is an improvement, with its 95 % t interval; NaN where there is no interval."""

    mean: float
    low: float
    high: float
    smallest: float  # smallest true difference that would be shown with a probability of 80 %


@dataclass(frozen=True)
class ForTheseModels(Estimate):
    """Statement about the trained models, over tasks; it does not apply to other seeds."""

    better: int  # number of tasks in which the method is better
    worse: int
    tasks: int  # number of tasks that can be compared


@dataclass(frozen=True)
class ForTheMethod(Estimate):
    """Statement about the method: over seeds of each seed's mean over tasks. `smallest` is NaN below three seeds."""

    p: float  # p-value of no difference; NaN for one seed
    seeds: int
    verdict: OverSeedsVerdict  # "helps" or "hurts" if the interval excludes 0, from three seeds on


@dataclass(frozen=True)
class MethodVerdict(Estimate):
    """The difference between one of several methods and the baseline, over seeds; the interval is not corrected."""

    p_holm: float  # p-value corrected for the number of methods; `smallest` is at the first step of Holm's procedure
    verdict: str  # that of `ForTheMethod` with "better" and "worse" by `p_holm`, or "same as the baseline"


@dataclass(frozen=True)
class TaskTransfer:
    """The effect of one method on one task; metrics are means over seeds."""

    task: str
    metric: str
    better: str  # whether a "higher" or a "lower" value of the metric is better
    train_examples: int
    test_examples: int
    baseline: float  # metric of the baseline
    value: float  # metric of the method
    delta: float  # Δ = value − baseline, or baseline − value if lower is better
    low: float  # lower end of the 95 % interval of Δ; NaN if nothing varies
    high: float
    df: float  # degrees of freedom of the interval
    p: float  # two-sided p-value of no difference
    p_holm: float  # p-value corrected for the number of tasks and for seed effects that tasks share
    verdict: Verdict  # "helped" or "hurt" if `p_holm` is below 5 %, from three seeds on
    cause: str  # the cause if the task is hurt, see `comparison.cause_if_hurt`; else ""
    baseline_train_loss: float  # training loss of the baseline at its selected checkpoint
    train_loss: float
    baseline_gap: float  # difference of the baseline's metric between training and validation; above 0 if it overfits
    gap: float
    loss_share: float  # share of the task in the method's training loss
    gradient_share: float  # share of the task in the gradient of the shared parameters; NaN if it was not recorded
    baseline_joint: float  # metric of the baseline with one epoch for all tasks; NaN if it always selects so
    delta_joint: float  # Δ against `baseline_joint`


@dataclass(frozen=True)
class MethodTransfer:
    """The effect of one method over all tasks; `mean_delta` is in comparable units if metrics differ or are errors."""

    method: str
    tasks: tuple[TaskTransfer, ...]  # in the order of the data
    for_models: ForTheseModels
    for_method: ForTheMethod
    delta_m: float  # Δm ↑, a ratio: 0.1 for 10 %
    delta_m_excluded: int  # number of tasks that Δm leaves out, as their baseline is below `functional.delta_m.FLOOR`
    mean_delta: float  # mean Δ over tasks
    mean_delta_joint: float  # mean Δ against the baseline with one epoch for all tasks; NaN if it always selects so
    harmed: float  # share of tasks with the verdict "hurt"; NaN if there are too few seeds for verdicts
    helped: float
    worst: str  # name of the task with the smallest Δ, in the units of `mean_delta`
    mean_rank: float  # mean over tasks of the rank among all methods and the baseline; 1 is best
    mean_gap: float  # mean gap over tasks; NaN if tasks have different metrics, or errors
    dominating: tuple[str, ...]  # the few tasks with half of the gradient (or training loss), if it is concentrated

    @property
    def has_errors(self) -> bool:
        """Whether a task is compared by an error, of which lower is better."""
        return any(task.better == "lower" for task in self.tasks)


class Selected(NamedTuple):
    """Mean metric of a method under both ways to select an epoch; errors are over that of a constant prediction."""

    own: float  # with the best epoch of each task
    joint: float  # with one epoch for all tasks
    tasks: int  # number of tasks that have both


@dataclass(frozen=True)
class TransferReport:
    """Methods against a baseline."""

    baseline: str  # name of the baseline
    seeds: tuple[int, ...]  # the same for every method
    methods: tuple[MethodTransfer, ...]
    baseline_rank: float  # mean rank of the baseline
    selection: dict[str, Selected]  # of the methods that select by task; empty if tasks have different metrics
    notes: tuple[str, ...]  # notes for the reader, one line each


def common_metric(tasks: Sequence[TaskTransfer]) -> str:
    """The metric of all tasks; "" if they have several."""
    metrics = {task.metric for task in tasks}
    return metrics.pop() if len(metrics) == 1 else ""


def gap_of(tasks: Sequence[TaskTransfer], validation: str = "validation") -> str:
    """Name the difference that is above 0 if the metric is better in training: train − validation, or its opposite."""
    of_scores = {task.better == "higher" for task in tasks}
    if len(of_scores) > 1:
        return "training better by"
    return f"gap train − {validation}" if of_scores == {True} else f"gap {validation} − train"
