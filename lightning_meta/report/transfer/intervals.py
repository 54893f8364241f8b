"""Intervals for the difference between two methods: of each task, paired over seeds and test examples, and of means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import nctdtrinc, polygamma, stdtr, stdtrit

from lightning_meta.report.transfer.results import (
    SEEDS_FOR_VERDICTS,
    ForTheMethod,
    ForTheseModels,
    MethodVerdict,
    OverSeedsVerdict,
)

ALPHA, FOR_SEEDS = 0.05, 0.035  # family-wise error of a method, and the part of it spent on common seed effects
POWER = 0.8  # with which a difference of the size `smallest` is shown
HEAVY_TAILED = 5.5  # degrees of freedom; chosen in simulations, see docs/multi_task.md
FEW = 5  # with fewer tasks, common and task-specific seed effects cannot be separated


class Intervals(NamedTuple):
    """Intervals and p-values of T tasks, each `(T,)`."""

    delta: np.ndarray  # mean difference
    low: np.ndarray  # lower end of the 95 % interval; NaN if the variance cannot be estimated
    high: np.ndarray
    df: np.ndarray  # degrees of freedom
    p: np.ndarray  # two-sided p-value of no difference, without correction; 1 if there is no interval
    p_holm: np.ndarray  # p-value corrected for T tests and for seed effects that tasks share


def paired_intervals(
    differences: Sequence[np.ndarray], bounded: Sequence[bool], classes: Sequence[np.ndarray | None] | None = None
) -> Intervals:
    r"""The 95 % interval of each task's mean difference, over new seeds and new test examples.

    With $d_{sj} = \Delta + a_s + b_j + e_{sj}$, seed s of S and test example j of n, all effects random,

    $$\widehat{\mathrm{Var}}(\bar d) = \frac{\max(M_a + M_b - M_e,\ M_a,\ M_b,\ M_e)}{S n}$$

    from the mean squares between seeds, between examples, and of the residual; the maximum is what truncating each
    component of variance at zero comes to (Searle, Casella and McCulloch 1992, section 4.4). The degrees of freedom are
    Satterthwaite's (1946). Three seeds give $M_a$ two degrees of freedom, too few for 50 tests: `moderated` pools it.
    One seed has no $M_a$: its interval is over test examples alone.

    A seed may help all tasks at once, so T tasks are not T independent estimates of one variance: if they are pooled as
    such, 9 to 14 % of comparisons have a false verdict. From `FEW` tasks on $a_s$ is therefore $c_s + a_{s,i}$ (in
    units of $\sqrt{M_e}$), and $c_s$ is estimated by the mean over tasks with $S - 1$ degrees of freedom, which pooling
    cannot add to. A verdict is about both: with $\alpha = 5\,\%$ and $\alpha_c = 3.5\,\%$ of it for c, the same error
    in all tasks, task i differs where

    $$|\bar d_i| > t_{S-1,\,1-\alpha_c/2}\, \mathrm{se}(\bar c) + t_{df_i}\, \mathrm{se}(\bar d_i - \bar c)$$

    with the second quantile by Holm's procedure over tasks at $\alpha - \alpha_c$ (Bonferroni between the two). The
    interval of one task alone adds the two variances.

    Where examples have classes c of $n_c$, each has a variance of its own, with $n_c - 1$ degrees of freedom:
    $M_b = \frac{1}{n} \sum_c n_c M_{b,c} + M_{between}$, and $M_e$ alike. What an example of a rare class adds to an
    AUROC varies far more than that of others, so that one variance of all would pretend to many degrees of freedom.

    Differences of scores in [0, 1] get two pseudo-examples, ½ of +1, ½ of −1 and 1 of 0 (Agresti and Min 2005), so that
    20 examples on which two methods agree do not pass for certainty: the interval is centred at
    $n \bar d / (n + 2)$ and clipped to [−1, 1].

    Args:
        differences: By task, `(S, n_i)` method − baseline, each with the same seed and test example.
        bounded: By task, whether scores lie in [0, 1].
        classes: By task, `(n_i,)` the class of each test example; None where the metric is a mean over examples, or
            there are no classes. Not for tasks that are `bounded`.
    """
    seeds = len(differences[0])
    classes = [None] * len(differences) if classes is None else classes
    squares = [_mean_squares(*of) for of in zip(differences, bounded, classes, strict=True)]
    between_seeds, between_examples, df_examples, residual, df_residual = np.array(squares, dtype=float).T
    sizes, clip = np.array([d.shape[1] for d in differences], dtype=float), np.array(bounded, dtype=bool)
    count = sizes + 2 * clip  # with pseudo-examples
    delta = np.array([d.mean() for d in differences])
    common, spent = np.zeros(len(delta)), 0.0
    with np.errstate(all="ignore"):  # a task without a variance divides by 0; `known` leaves it out
        terms = [(between_examples, df_examples)]
        largest = between_examples
        if seeds > 1:
            own, df_seeds = between_seeds, np.full(len(delta), seeds - 1.0)
            usable = (residual > 0) & np.isfinite(own)
            if usable.sum() >= FEW:
                # In units of the residual standard deviation, a seed has an effect of the same size on all tasks.
                means = np.stack([d.mean(1) for d in differences], 1)[:, usable] / np.sqrt(residual[usable])
                variance, rest = without_common(means)
                spent, common[usable] = FOR_SEEDS, variance * (residual * sizes / count)[usable]
                # A mean square between seeds is n times the variance of the seeds' means.
                own[usable] = (sizes * residual)[usable] * rest
                own, df_seeds = moderated(own, residual, sizes, seeds)
            terms += [(own, df_seeds), (residual, df_residual)]
            largest = np.maximum.reduce([own + between_examples - residual, own, between_examples, residual])
        # Satterthwaite's degrees of freedom, with all three mean squares in the denominator whichever is the largest.
        df_own = largest**2 / sum(m**2 / k for m, k in terms)
        if seeds == 2 and len(delta) == 1:
            df_own = np.ones_like(df_own)  # one variance from two numbers: Satterthwaite's approximation is too hopeful
        variance_own = largest / (seeds * count)
        total = variance_own + common
        df = total**2 / (variance_own**2 / df_own + common**2 / max(seeds - 1, 1))
        error = np.sqrt(total)
        known = (error > 0) & np.isfinite(error)
        centre = delta * sizes / count
        p = np.where(known, 2 * stdtr(df, -np.abs(centre) / error), 1.0)
        half = np.where(known, stdtrit(df, 1 - ALPHA / 2) * error, np.nan)
        # A verdict must hold for any effect of the seeds on all tasks together, up to its confidence limit.
        beyond = np.abs(centre) - (stdtrit(seeds - 1, 1 - spent / 2) * np.sqrt(common) if spent else 0.0)
        p_own = np.where(known, 2 * stdtr(df_own, -np.maximum(beyond, 0) / np.sqrt(variance_own)), 1.0)
    low = np.where(clip, np.maximum(centre - half, -1), centre - half)
    high = np.where(clip, np.minimum(centre + half, 1), centre + half)
    # Bonferroni: the limit has spent a part of the error. A verdict also needs a task's own interval that excludes 0.
    corrected = np.maximum(p, np.minimum(spent + holm(p_own), 1))
    return Intervals(delta, low, high, np.where(known, df, np.nan), p, corrected)


def holm(p: np.ndarray) -> np.ndarray:
    """Correct the p-values of T tests, `(T,)`, so that their family-wise error is at most α (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected


def _mean_squares(differences: np.ndarray, bounded: bool, classes: np.ndarray | None) -> Sequence[float]:
    """The mean squares of the differences of one task, `(S, n)`, see `paired_intervals`.

    Returns $M_a$, NaN for one seed; $M_b$, NaN for one example, and its degrees of freedom; $M_e$, 0 if it has no
    degrees of freedom, and these.
    """
    seeds, n = differences.shape
    mean, seed_means = differences.mean(), differences.mean(1)
    between_seeds = n * ((seed_means - mean) ** 2).sum() / (seeds - 1) if seeds > 1 else np.nan
    residual, df_residual = 0.0, 1.0
    if classes is None:
        count = n + 2 if bounded else n
        centre = mean * n / count
        # The pseudo-examples are ½ of +1, ½ of −1 and 1 of 0: ½ (1 − c)² + ½ (1 + c)² + c² = 1 + 2 c².
        squares = ((differences.mean(0) - centre) ** 2).sum() + bounded * (1 + 2 * centre**2)
        examples, df_examples = seeds * squares / (count - 1) if n > 1 else np.nan, count - 1.0
        df = (seeds - 1) * (n - 1)
        residual, df_residual = _residual(differences) / df if df else 0.0, (seeds - 1) * max(n - 1.0, 1)
    else:
        by_class = [differences[:, classes == c] for c in np.unique(classes)]
        sizes, means = np.array([d.shape[1] for d in by_class]), np.array([d.mean() for d in by_class])
        df_classes = np.where(sizes > 1, sizes - 1, np.nan)  # one example has no variance, so the task has no interval
        within = sizes / n * [seeds * ((d.mean(0) - d.mean()) ** 2).sum() for d in by_class] / df_classes
        between = seeds * (sizes * (means - mean) ** 2).sum() / max(n - 1, 1)
        examples, df_examples = _sum(np.append(within, between), np.append(df_classes, max(n - 1, 1)))
        if seeds > 1:
            df_classes *= seeds - 1
            residual, df_residual = _sum(sizes / n * [_residual(d) for d in by_class] / df_classes, df_classes)
    negligible = 1e-24 * (differences**2).mean()  # mean squares that are zero except for rounding errors
    between_seeds, examples, residual = (0.0 if m <= negligible else m for m in (between_seeds, examples, residual))
    return between_seeds, examples, df_examples, residual, df_residual


def _residual(differences: np.ndarray) -> float:
    """The sum of squares of the residuals of additive seed and example effects."""
    rest = differences - differences.mean(1, keepdims=True) - differences.mean(0) + differences.mean()
    return float((rest**2).sum())


def _sum(parts: np.ndarray, df: np.ndarray) -> tuple[float, float]:
    """A sum of mean squares, and its degrees of freedom by Satterthwaite (1946)."""
    total = parts.sum()
    return float(total), float(total**2 / (parts**2 / df).sum()) if total > 0 else float(df.min())


def without_common(means: np.ndarray) -> tuple[float, np.ndarray]:
    r"""Separate the effect $c_s$ of a seed on all tasks from its effects on single tasks.

    From mean differences m by seed and task, `(S, T)`, in units of each task's residual standard deviation, $c_s$ is
    estimated by the mean over tasks; the rest is $m_{s,i} - \bar m_i - (c_s - \bar c)$. Returns the variance of the
    mean of $c_s$ over seeds, and for each task the variance of the rest between seeds, `(T,)`.
    """
    seeds, tasks = means.shape
    common = means.mean(1)
    rest = means - means.mean(0) - (common - common.mean())[:, None]
    # Subtracting the mean over tasks removes 1/T of the variance of each task, hence the factor T / (T − 1).
    return float(common.var(ddof=1)) / seeds, (rest**2).sum(0) / (seeds - 1) * tasks / (tasks - 1)


def moderated(
    between_seeds: np.ndarray, residual: np.ndarray, sizes: np.ndarray, seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""Moderate each task's mean square between seeds by those of all T tasks (Smyth 2004, equation 4).

    With few seeds, the mean square of a single task is inexact. If the variance between seeds were the same share ρ of
    the residual variance in every task, then $G_i = (M_{a,i} / M_{e,i}) / (1 + n_i \rho)$ would have the same
    distribution for all tasks, a scaled F with $d = S - 1$ and $d_0$ degrees of freedom. ρ, $d_0$ and the scale $s_0^2$
    are estimated by the method of moments over tasks; $d_0$ is infinite if tasks differ no more than by chance. Then
    $M_a = \max(M_{a,i},\ M_e (1 + n \rho) (d_0 s_0^2 + d\, G_i) / (d_0 + d))$ has $\min(d_0 + d,\ (T - 1) d)$ degrees
    of freedom, since d of the T·d were used for the effect that all tasks share. The maximum protects tasks whose seeds
    differ more than those of most tasks.

    The variance of an F exists for $d_0 > 4$ only, so the moments of any sample give a $d_0$ above 4. If it is below
    `HEAVY_TAILED`, the mean squares may have heavier tails, as with a few very noisy tasks. Then $d_0$ is the smaller
    of this estimate and that from the variance of $\log G_i$ over tasks with $G_i > 0$, which is
    $\psi'(d / 2) + \psi'(d_0 / 2)$ (section 6.2); $s_0^2$ stays that of the moments.

    Takes $M_{a,i}$, $M_{e,i}$ and $n_i$, `(T,)` each, and S, at least 2; returns the moderated mean squares and their
    degrees of freedom. Tasks without both mean squares keep their own, and so do all if fewer than two tasks have them.
    """
    d = seeds - 1
    usable = (residual > 0) & np.isfinite(between_seeds)
    mean_square, df = between_seeds.copy(), np.full(len(between_seeds), float(d))
    if usable.sum() < 2:
        return mean_square, df
    ratio, n = between_seeds[usable] / residual[usable], sizes[usable]
    # 1 + n ρ, where ρ solves Σ ratio = Σ (1 + n ρ) and is at least 0.
    growth = 1 + n * max(0.0, (ratio - 1).sum() / n.sum())
    scaled = ratio / growth
    mean = scaled.mean()
    # A scaled F has the mean s₀² d₀ / (d₀ − 2), and d · variance / mean² = 2 (d + d₀ − 2) / (d₀ − 4), solved for d₀.
    spread = d * scaled.var(ddof=1) / mean**2 if mean > 0 else 0.0
    prior_df = (4 * spread + 2 * d - 4) / (spread - 2) if spread > 2 else 1e9
    prior = mean * (prior_df - 2) / prior_df
    if prior_df < HEAVY_TAILED:
        prior_df = min(prior_df, _df_from_logs(scaled[scaled > 0], d))
    shrunk = residual[usable] * growth * (prior_df * prior + d * scaled) / (prior_df + d)
    mean_square[usable] = np.maximum(between_seeds[usable], shrunk)
    df[usable] = min(prior_df + d, d * (usable.sum() - 1))
    return mean_square, df


def _df_from_logs(scaled: np.ndarray, d: int) -> float:
    """Solve for d₀ in ψ'(d₀ / 2) = Var(log G) − ψ'(d / 2); infinite if the right side is not positive or unknown."""
    excess = np.log(scaled).var(ddof=1) - polygamma(1, d / 2) if len(scaled) > 1 else 0.0
    if not excess > 0:
        return math.inf
    return 2 * float(brentq(lambda half: polygamma(1, half) - excess, 1e-6, 1e12))


def state(differences: np.ndarray) -> tuple[ForTheseModels, ForTheMethod]:
    """Compute both statements from Δ by seed and task, `(S, T)`, without the tasks that have a NaN."""
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
    """Give a verdict for each method by its statement over seeds, corrected for their number (Holm 1979).

    If no method differs from the baseline, the probability that any is called better or worse is at most 5 %.
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
