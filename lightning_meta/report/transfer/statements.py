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
SEEDS_FOR_VERDICTS = 3  # of two, t has one degree of freedom: an interval says something, a verdict hardly ever would
# As in `val/score`, but that errors and the log loss are over those of a constant prediction.
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
    """What stands for the trained models at hand, over their tasks; no verdict about the method.

    Attributes:
        mean: The mean Δ over tasks; above 0 is an improvement.
        low: The lower end of its 95 % interval over tasks; NaN for one task.
        high: The upper end.
        smallest: The difference that would have been shown in 4 of 5 cases.
        better: In how many tasks the method is better.
        worse: In how many it is worse.
        tasks: How many can be compared.
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
    """What stands for the method, over its seeds.

    Attributes:
        mean: The mean over seeds of each seed's mean Δ over tasks.
        low: The lower end of its 95 % interval over seeds; NaN for one seed.
        high: The upper end.
        smallest: The difference that would have been shown in 4 of 5 cases; NaN below three seeds, which show none.
        p: The p-value of no difference; NaN for one seed.
        seeds: How many.
        verdict: "helps" or "hurts" where the interval excludes 0, from three seeds on; "seeds do not differ" where
            there is no interval, as of models that do not depend on the seed.
    """

    mean: float
    low: float
    high: float
    smallest: float
    p: float
    seeds: int
    verdict: OverSeedsVerdict


def state(differences: np.ndarray) -> tuple[ForTheseModels, ForTheMethod]:
    """Both statements.

    Args:
        differences: Δ by seed and task, `(S, T)`, higher is better. Tasks with a NaN do not count.
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
    """Test metrics `(S, T)`, a large value is good."""
    values = method.per_seed(names, "test")
    for i, name in enumerate(names):
        task = against.runs[0].tasks[name]
        if task.better == "lower":
            values[:, i] /= -unit(task.better, against.mean(name, "constant"), against.mean(name, "test"))
        if (floor := FLOORS.get(task.metric)) is not None:
            values[:, i] = np.maximum(values[:, i], floor)  # NaN stays
    return values


def unit(better: str, constant: float, baseline: float) -> float:
    """What a metric is divided by before tasks are averaged: errors by those of a constant prediction.

    Where these are not known, by the baseline's own.
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
    """Mean, 95 % interval, the smallest difference that is shown with a chance of `POWER`, and p by Student's t."""
    mean, df = float(values.mean()) if len(values) else math.nan, len(values) - 1
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if df > 0 else math.nan
    if not error > 1e-12 * abs(mean):  # one number, or all equal but for rounding
        return _Mean(mean, math.nan, math.nan, math.nan, math.nan)
    half, p = float(stdtrit(df, (1 + LEVEL) / 2)) * error, float(2 * stdtr(df, -abs(mean) / error))
    return _Mean(mean, mean - half, mean + half, smallest_shown(error, df), p)


def smallest_shown(error: float, df: int, alpha: float = 1 - LEVEL) -> float:
    """The smallest true difference that a t test shows with a chance of `POWER`.

    Args:
        error: The standard error of the mean difference.
        df: Degrees of freedom.
        alpha: The chance of a false verdict.
    """
    return float(nctdtrinc(df, 1 - POWER, stdtrit(df, 1 - alpha / 2))) * error
