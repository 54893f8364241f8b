"""Does it help over all tasks? One statement about the trained models, and another about the method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

from lightning_meta.report.transfer.matching import Method

LEVEL, POWER = 0.95, 0.8
SEEDS_FOR_VERDICTS = 3  # with two, t has one degree of freedom and almost never gives a verdict
# As in `val/score`, except that errors and the log loss are divided by those of a constant prediction.
FLOORS = {"r2": -1.0, "rmse": -math.sqrt(2), "mae": -math.sqrt(2), "log_loss": -2.0}
RULES = (
    "For these trained models: the mean over tasks of the mean over seeds, t interval with T - 1 degrees of freedom; "
    "it is about other tasks of the same kind and says nothing of other seeds. For the method: the mean over tasks of "
    "each seed, t interval with S - 1 degrees of freedom; it is about other seeds on the same tasks and test examples, "
    f"and a verdict needs {SEEDS_FOR_VERDICTS} seeds. No task counts for less than an R² of -1; errors are in units of "
    "what a constant prediction has, and count at √2 of it at most, a log loss at twice. `smallest` is the true "
    "difference that such a comparison shows in 4 of 5 cases (noncentral t)."
)
OverSeedsVerdict = Literal["helps", "hurts", "no difference shown", "too few seeds", "seeds do not differ"]


@dataclass(frozen=True)
class ForTheseModels:
    """Statement about the trained models, over tasks; it says nothing about the method with other seeds.

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


def differences(method: Method, against: Method) -> np.ndarray:
    """Δ of every seed and task, `(S, T)`, in units in which tasks can be averaged; see `RULES`."""
    names = list(against.runs[0].tasks)
    change: np.ndarray = _comparable(method, against, names) - _comparable(against, against, names)
    return change


def _comparable(method: Method, against: Method, names: Sequence[str]) -> np.ndarray:
    """Test metrics `(S, T)` in comparable units, higher is better."""
    values = method.per_seed(names, "test")
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
