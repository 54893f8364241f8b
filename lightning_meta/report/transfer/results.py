"""The transfer report as data: the effect of sharing on each task, and statements and verdicts over all tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

from lightning_meta.report.transfer.intervals import ALPHA, holm
from lightning_meta.report.transfer.matching import Method

POWER = 0.8
SEEDS_FOR_VERDICTS = 3  # with two, t has one degree of freedom and almost never gives a verdict
SELECTED = "selected for other tasks"  # why a task is hurt, see `comparison.cause_if_hurt`
# As in `val/score`, except that errors and the log loss are divided by those of a constant prediction.
FLOORS = {"r2": -1.0, "rmse": -math.sqrt(2), "mae": -math.sqrt(2), "log_loss": -2.0}
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
    """The difference between one of several methods and the baseline, over seeds; the interval is not corrected.

    `smallest` is at the level of the first step of Holm's procedure.
    """

    p_holm: float  # p-value of no difference, corrected for the number of methods
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


def state(differences: np.ndarray) -> tuple[ForTheseModels, ForTheMethod]:
    """Compute both statements.

    Args:
        differences: Δ by seed and task, `(S, T)`, higher is better. Tasks with a NaN are left out.
    """
    known = differences[:, np.isfinite(differences).all(0)]
    seeds, tasks = known.shape
    of_tasks, of_seeds = known.mean(0), known.mean(1) if tasks else np.full(seeds, np.nan)
    mean, low, high, smallest, _ = _t_test(of_tasks)
    better, worse = int((of_tasks > 0).sum()), int((of_tasks < 0).sum())
    models = ForTheseModels(mean, low, high, smallest, better, worse, tasks)
    mean, low, high, smallest, p = _t_test(of_seeds)
    verdict: OverSeedsVerdict = "no difference shown"
    if seeds < SEEDS_FOR_VERDICTS:
        verdict, smallest = "too few seeds", math.nan
    elif tasks and not math.isfinite(low):
        verdict = "seeds do not differ"
    elif p < ALPHA:
        verdict = "helps" if mean > 0 else "hurts"
    return models, ForTheMethod(mean, low, high, smallest, p, seeds, verdict)


def _t_test(values: np.ndarray) -> tuple[float, float, float, float, float]:
    """Mean, ends of its 95 % interval, smallest difference shown, and p-value of a one-sample t test."""
    mean, df = float(values.mean()) if len(values) else math.nan, len(values) - 1
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if df > 0 else math.nan
    if not error > 1e-12 * abs(mean):  # a single value, or all are equal up to rounding
        return mean, math.nan, math.nan, math.nan, math.nan
    half, p = float(stdtrit(df, 1 - ALPHA / 2)) * error, float(2 * stdtr(df, -abs(mean) / error))
    return mean, mean - half, mean + half, _smallest_shown(error, df, ALPHA), p


def _smallest_shown(error: float, df: int, alpha: float) -> float:
    """The true difference that a t test detects with power `POWER` (noncentral t), by the standard error."""
    return float(nctdtrinc(df, 1 - POWER, stdtrit(df, 1 - alpha / 2))) * error


def method_verdicts(methods: Mapping[str, ForTheMethod]) -> dict[str, MethodVerdict]:
    """Give a verdict for each method, corrected for their number.

    If no method differs from the baseline, the probability that any is called better or worse is at most 5 %.

    Args:
        methods: Statement over seeds by name of the method.

    Returns:
        Verdicts by name of the method.
    """
    p = np.array([method.p for method in methods.values()], dtype=float)
    tested = np.isfinite(p)
    p[tested] = holm(p[tested])
    alpha = ALPHA / max(int(tested.sum()), 1)  # the level of Holm's first step, for the smallest p-value
    verdicts = {}
    for (name, method), p_holm in zip(methods.items(), p.tolist(), strict=True):
        smallest, verdict = math.nan, str(method.verdict)
        if verdict == "seeds do not differ":
            verdict = "same as the baseline" if method.mean == 0 else verdict
        elif verdict != "too few seeds":
            # The standard error, from the half-width of the t interval.
            error = (method.high - method.low) / 2 / float(stdtrit(method.seeds - 1, 1 - ALPHA / 2))
            smallest = _smallest_shown(error, method.seeds - 1, alpha)
            verdict = "no difference shown" if p_holm >= ALPHA else "better" if method.mean > 0 else "worse"
        verdicts[name] = MethodVerdict(method.mean, method.low, method.high, smallest, p_holm, verdict)
    return verdicts


def differences(method: Method, against: Method, names: Sequence[str], selected: str = "test") -> np.ndarray:
    """Δ of every seed and task, `(S, T)`, in units in which tasks can be averaged; see `ABOUT`.

    Args:
        method: The method.
        against: The baseline.
        names: Names of the tasks.
        selected: "joint" for the baseline with one selected epoch for all tasks; NaN if it was not recorded.
    """
    values = np.stack([method.per_seed(names, "test"), against.per_seed(names, selected)])
    for i, name in enumerate(names):
        task = against.tasks[name]
        values[..., i] /= task.sign * unit_of(against, name)
        values[..., i] = np.maximum(values[..., i], FLOORS.get(task.metric, -math.inf))  # NaN stays
    change: np.ndarray = values[0] - values[1]
    return change


def unit_of(against: Method, name: str) -> float:
    """The divisor of a task's metric before averaging over tasks: for errors, that of a constant prediction.

    If that is unknown, it is the error of the baseline.
    """
    if against.tasks[name].better == "higher":
        return 1.0
    errors = (against.mean(name, field) for field in ("constant", "test"))
    return next((error for error in errors if math.isfinite(error) and error > 0), 1.0)


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
