"""The transfer report as data: the effect of sharing on each task, and statements and verdicts over all tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

from lightning_meta.report.transfer.intervals import holm
from lightning_meta.report.transfer.matching import Method

LEVEL, POWER = 0.95, 0.8
SEEDS_FOR_VERDICTS = 3  # with two, t has one degree of freedom and almost never gives a verdict
SELECTED = "selected for other tasks"  # why a task is hurt, see `comparison.RULES`
# As in `val/score`, except that errors and the log loss are divided by those of a constant prediction.
FLOORS = {"r2": -1.0, "rmse": -math.sqrt(2), "mae": -math.sqrt(2), "log_loss": -2.0}
RULES = (
    "For these trained models: the mean over tasks of the mean over seeds, t interval with T - 1 degrees of freedom; "
    "it applies to other tasks of the same kind, not to other seeds. For the method: the mean over tasks for each "
    "seed, t interval with S - 1 degrees of freedom; it applies to other seeds on the same tasks and test examples, "
    f"and a verdict needs {SEEDS_FOR_VERDICTS} seeds. R² is clipped at -1. Errors are divided by that of a constant "
    "prediction and clipped at √2 (log loss: 2). `smallest` is the true difference that such a comparison detects in "
    "4 of 5 cases (noncentral t)."
)
OverSeedsVerdict = Literal["helps", "hurts", "no difference shown", "too few seeds", "seeds do not differ"]
VERDICTS = {"helps": "better", "hurts": "worse"}  # the baseline may share parameters as well
Verdict = Literal["helped", "hurt", "no difference shown", "too few seeds", "not comparable"]


@dataclass(frozen=True)
class ForTheseModels:
    """Statement about the trained models, over tasks; it does not apply to other seeds.

    Attributes:
        mean: Mean Δ over tasks; above 0 is an improvement.
        low: Lower end of its 95 % interval over tasks; NaN for one task.
        high: Upper end of the interval.
        smallest: Smallest true difference that would be shown with a probability of 80 %.
        better: Number of tasks in which the method is better.
        worse: Number of tasks in which it is worse.
        tasks: Number of tasks that can be compared.
    """

    mean: float
    low: float
    high: float
    smallest: float
    better: int
    worse: int
    tasks: int


@dataclass(frozen=True)
class ForTheMethod:
    """Statement about the method, over seeds.

    Attributes:
        mean: Mean over seeds of the mean Δ over tasks.
        low: Lower end of its 95 % interval over seeds; NaN for one seed.
        high: Upper end of the interval.
        smallest: Smallest true difference that would be shown with a probability of 80 %; NaN below three seeds, which
            give no verdict.
        p: p-value of no difference; NaN for one seed.
        seeds: Number of seeds.
        verdict: "helps" or "hurts" if the interval excludes 0, from three seeds on; "seeds do not differ" if there is
            no interval, as for models that do not depend on the seed.
    """

    mean: float
    low: float
    high: float
    smallest: float
    p: float
    seeds: int
    verdict: OverSeedsVerdict


def state(differences: np.ndarray) -> tuple[ForTheseModels, ForTheMethod]:
    """Compute both statements.

    Args:
        differences: Δ by seed and task, `(S, T)`, higher is better. Tasks with a NaN are left out.
    """
    known = differences[:, np.isfinite(differences).all(0)]
    seeds, tasks = known.shape
    of_tasks, of_seeds = known.mean(0), known.mean(1) if tasks else np.full(seeds, np.nan)
    better, worse = int((of_tasks > 0).sum()), int((of_tasks < 0).sum())
    over_tasks, over_seeds = _t(of_tasks), _t(of_seeds)
    verdict: OverSeedsVerdict = "too few seeds" if seeds < SEEDS_FOR_VERDICTS else "no difference shown"
    if seeds < SEEDS_FOR_VERDICTS:
        over_seeds = over_seeds._replace(smallest=math.nan)
    elif tasks and not math.isfinite(over_seeds.low):
        verdict = "seeds do not differ"
    elif over_seeds.p < 1 - LEVEL:
        verdict = "helps" if over_seeds.mean > 0 else "hurts"
    mean, low, high, smallest, _ = over_tasks
    models = ForTheseModels(mean, low, high, smallest, better, worse, tasks)
    return models, ForTheMethod(*over_seeds, seeds, verdict)


def differences(method: Method, against: Method, names: Sequence[str]) -> np.ndarray:
    """Δ of every seed and task, `(S, T)`, in units in which tasks can be averaged; see `RULES`."""
    change: np.ndarray = _comparable(method, against, names) - _comparable(against, against, names)
    return change


def differences_joint(method: Method, against: Method, names: Sequence[str]) -> np.ndarray:
    """`differences` to the baseline with one selected epoch for all tasks; NaN if it was not recorded."""
    change: np.ndarray = _comparable(method, against, names) - _comparable(against, against, names, "joint")
    return change


def one_unit(tasks: Sequence[TaskTransfer]) -> bool:
    """Whether the tasks' metrics can be averaged as they are: all have the same metric, which is not an error."""
    return len({task.metric for task in tasks}) <= 1 and all(task.better == "higher" for task in tasks)


def gap_of(tasks: Sequence[TaskTransfer], validation: str = "validation") -> str:
    """Name the difference that is above 0 if the metric is better in training: train − validation, or its opposite."""
    of_scores = {task.better == "higher" for task in tasks}
    if len(of_scores) > 1:
        return "training better by"
    return f"gap train − {validation}" if of_scores == {True} else f"gap {validation} − train"


def _comparable(method: Method, against: Method, names: Sequence[str], field: str = "test") -> np.ndarray:
    """Test metrics `(S, T)` in comparable units, higher is better."""
    values = method.per_seed(names, field)
    for i, name in enumerate(names):
        task = against.runs[0].tasks[name]
        if task.better == "lower":
            values[:, i] /= -unit(task.better, against.mean(name, "constant"), against.mean(name, "test"))
        if (floor := FLOORS.get(task.metric)) is not None:
            values[:, i] = np.maximum(values[:, i], floor)  # NaN stays
    return values


def unit(better: str, constant: float, baseline: float) -> float:
    """The divisor of a metric before averaging over tasks: for errors, the error of a constant prediction.

    If that is unknown, it is the error of the baseline.
    """
    if better == "higher":
        return 1.0
    return next((u for u in (constant, baseline) if math.isfinite(u) and u > 0), 1.0)


class _Mean(NamedTuple):
    mean: float
    low: float
    high: float
    smallest: float
    p: float


def _t(values: np.ndarray) -> _Mean:
    """Mean, 95 % interval, smallest difference shown with power `POWER`, and p-value of a one-sample t test."""
    mean, df = float(values.mean()) if len(values) else math.nan, len(values) - 1
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if df > 0 else math.nan
    if not error > 1e-12 * abs(mean):  # a single value, or all are equal up to rounding
        return _Mean(mean, math.nan, math.nan, math.nan, math.nan)
    half, p = float(stdtrit(df, (1 + LEVEL) / 2)) * error, float(2 * stdtr(df, -abs(mean) / error))
    return _Mean(mean, mean - half, mean + half, smallest_shown(error, df), p)


def smallest_shown(error: float, df: int, alpha: float = 1 - LEVEL) -> float:
    """The smallest true difference that a t test detects with power `POWER`, from the noncentral t distribution.

    Args:
        error: Standard error of the mean difference.
        df: Degrees of freedom.
        alpha: Level of the test.
    """
    return float(nctdtrinc(df, 1 - POWER, stdtrit(df, 1 - alpha / 2))) * error


@dataclass(frozen=True)
class MethodVerdict:
    """The difference between one of several methods and the baseline, over seeds.

    Attributes:
        mean: Mean over seeds of each seed's mean Δ over tasks; above 0 is an improvement.
        low: Lower end of its 95 % interval over seeds, without correction; NaN if there is no interval.
        high: Upper end of the interval.
        p_holm: p-value of no difference, corrected for the number of methods; NaN if there is no interval.
        smallest: Smallest true difference that would be shown with a probability of 80 %, at the level of the first
            step of Holm's procedure; NaN below three seeds, or if seeds do not differ.
        verdict: "better" or "worse" if `p_holm` is below 5 %, from three seeds on; else "no difference shown", "too few
            seeds", "seeds do not differ", or "same as the baseline" if `mean` is 0 for every seed, as after the same
            training.
    """

    mean: float
    low: float
    high: float
    p_holm: float
    smallest: float
    verdict: str


def method_verdicts(methods: Mapping[str, ForTheMethod]) -> dict[str, MethodVerdict]:
    """Give a verdict for each method, corrected for their number.

    If no method differs from the baseline, the probability that any is called better or worse is at most 5 %.

    Args:
        methods: Statement over seeds by name of the method.

    Returns:
        Verdicts by name of the method.
    """
    p = np.array([statement.p for statement in methods.values()], dtype=float)
    tested = np.isfinite(p)
    corrected = np.full(len(p), np.nan)
    corrected[tested] = holm(p[tested])
    alpha = (1 - LEVEL) / max(int(tested.sum()), 1)  # the level of Holm's first step, for the smallest p-value
    return {name: _verdict(one, float(p), alpha) for (name, one), p in zip(methods.items(), corrected, strict=True)}


def _verdict(statement: ForTheMethod, p_holm: float, alpha: float) -> MethodVerdict:
    smallest, verdict = math.nan, statement.verdict
    if verdict not in ("too few seeds", "seeds do not differ"):
        # The standard error, from the half-width of the t interval.
        error = (statement.high - statement.low) / 2 / float(stdtrit(statement.seeds - 1, (1 + LEVEL) / 2))
        smallest = smallest_shown(error, statement.seeds - 1, alpha)
        verdict = "no difference shown" if p_holm >= 1 - LEVEL else "helps" if statement.mean > 0 else "hurts"
    word = VERDICTS.get(verdict, verdict)
    if verdict == "seeds do not differ" and statement.mean == 0:
        word = "same as the baseline"
    return MethodVerdict(statement.mean, statement.low, statement.high, p_holm, smallest, word)


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
        cause: The cause if the task is hurt, see `comparison.RULES`; else "".
        baseline_train_loss: Training loss of the baseline at its selected checkpoint.
        train_loss: Training loss of the method.
        baseline_gap: Difference of the baseline's metric between training and validation; above 0 if training is
            better.
        gap: Difference of the method's metric between training and validation.
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
    cause: str
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
        mean_delta: Mean Δ over tasks, in the unit of the metric; in the comparable units of `RULES` if tasks have
            different metrics, or errors.
        mean_delta_joint: Mean Δ against the baseline with one selected epoch for all tasks, as the method has; NaN if
            the baseline always selects so.
        harmed: Share of tasks with the verdict "hurt"; NaN if there are too few seeds for verdicts.
        helped: Share of tasks with the verdict "helped".
        worst: Name of the task with the smallest Δ, in the units of `mean_delta`.
        mean_rank: Mean over tasks of the method's rank among all methods and the baseline; 1 is best.
        mean_gap: Mean over tasks of the difference between training and validation metric; NaN if tasks
            have different metrics, or errors.
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

    @property
    def has_errors(self) -> bool:
        """Whether a task is compared by an error, of which lower is better."""
        return any(task.better == "lower" for task in self.tasks)


class Selected(NamedTuple):
    """Mean metric of a method under both ways to select an epoch, over the tasks that have both.

    Errors are divided by that of a constant prediction, since tasks may have different units.

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
