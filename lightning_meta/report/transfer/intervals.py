"""Confidence intervals for the difference between two methods, paired over seeds and test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from lightning_meta.report.transfer.mean_squares import MeanSquares
from lightning_meta.report.transfer.moderation import moderated, without_common

LEVEL = 0.95
ALPHA, FOR_SEEDS = 0.05, 0.035  # family-wise error of a method, and the part of it spent on common seed effects
FEW = 5  # with fewer tasks, common and task-specific seed effects cannot be separated
METHOD = (
    "Metrics that are no means over examples (AUROC and others) enter by what each example adds to them (infinitesimal "
    "jackknife; of the AUROC that is DeLong's method), with a variance for each class of test examples: few of a class "
    "are few degrees of freedom, and where there is one the task has no interval. "
    "Two-way random-effects analysis of variance (seeds x test examples, no replication) of the paired differences, "
    "Satterthwaite degrees of freedom, t interval. From five tasks on, what a seed does to all tasks alike is "
    "estimated apart, with S - 1 degrees of freedom; what it does to each is moderated over tasks (empirical Bayes, "
    "Smyth 2004) and never taken below the task's own. For accuracy two pseudo-examples are added (Agresti and Min "
    "2005). Verdicts, from three seeds on: of each difference the 96.5 % limit of what seeds do to all tasks alike is "
    "taken off, then Holm's correction over the tasks of a method at the remaining 1.5 %; together 5 %. Of fewer than "
    "five tasks: Holm's correction at 5 %."
)


@dataclass(frozen=True)
class Intervals:
    """Intervals and p-values of T tasks, each `(T,)`.

    Attributes:
        delta: Mean difference.
        low: Lower end of the 95 % interval; NaN if the variance cannot be estimated.
        high: Upper end of the interval.
        df: Degrees of freedom.
        p: Two-sided p-value of no difference, without correction; 1 if there is no interval.
        p_holm: p-value corrected for T tests and for seed effects that tasks share.
    """

    delta: np.ndarray
    low: np.ndarray
    high: np.ndarray
    df: np.ndarray
    p: np.ndarray
    p_holm: np.ndarray


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

    A lucky seed may help all tasks at once, so T tasks are not T estimates of one variance: pooled as if they were,
    false verdicts came in 9 to 14 % of comparisons. From `FEW` tasks on $a_s$ is therefore $c_s + a_{s,i}$ (in units of
    $\sqrt{M_e}$), and $c_s$ is estimated by the mean over tasks with $S - 1$ degrees of freedom, which pooling cannot
    add to. A verdict is about both: with $\alpha = 5\,\%$ and $\alpha_c = 3.5\,\%$ of it for c, the same error in all
    tasks, task i differs where

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
    tables = [MeanSquares(*of) for of in zip(differences, bounded, classes, strict=True)]
    count = np.array([t.count for t in tables], dtype=float)
    between_examples, df_examples = (np.array([getattr(t, k) for t in tables]) for k in ("examples", "df_examples"))
    residual, df_residual = (np.array([getattr(t, k) for t in tables]) for k in ("residual", "df_residual"))
    common, spent = np.zeros(len(tables)), 0.0
    with np.errstate(all="ignore"):
        terms = [(between_examples, df_examples)]
        largest = between_examples
        if seeds > 1:
            own = np.array([t.seeds for t in tables])
            df_seeds = np.full(len(tables), seeds - 1.0)
            sizes = np.array([d.shape[1] for d in differences])
            usable = (residual > 0) & np.isfinite(own)
            if usable.sum() >= FEW:
                means = np.stack([d.mean(1) for d in differences], 1)[:, usable] / np.sqrt(residual[usable])
                variance, apart = without_common(means)
                spent, common[usable] = FOR_SEEDS, variance * (residual * sizes / count)[usable]
                own[usable] = (sizes * residual)[usable] * apart
                own, df_seeds = moderated(own, residual, sizes, seeds)
            terms += [(own, df_seeds), (residual, df_residual)]
            largest = np.maximum.reduce([own + between_examples - residual, own, between_examples, residual])
        df_own = largest**2 / sum(m**2 / k for m, k in terms)
        if seeds > 1 and seeds * len(tables) == 2:
            df_own = np.ones_like(df_own)  # one variance from two numbers: Satterthwaite's approximation is too hopeful
        variance_own = largest / (seeds * count)
        total = variance_own + common
        df = total**2 / (variance_own**2 / df_own + common**2 / max(seeds - 1, 1))
        error = np.sqrt(total)
        known = (error > 0) & np.isfinite(error)
        centre = np.array([t.centre for t in tables])
        p = np.where(known, 2 * stdtr(df, -np.abs(centre) / error), 1.0)
        half = np.where(known, stdtrit(df, (1 + LEVEL) / 2) * error, np.nan)
        beyond = np.abs(centre) - (stdtrit(seeds - 1, 1 - spent / 2) * np.sqrt(common) if spent else 0.0)
        p_own = np.where(known, 2 * stdtr(df_own, -np.maximum(beyond, 0) / np.sqrt(variance_own)), 1.0)
    low, high = centre - half, centre + half
    clip = np.array(bounded, dtype=bool)
    low, high = np.where(clip, np.maximum(low, -1), low), np.where(clip, np.minimum(high, 1), high)
    delta = np.array([d.mean() for d in differences])
    corrected = np.maximum(p, np.minimum(spent + holm(p_own), 1))
    return Intervals(delta, low, high, np.where(known, df, np.nan), p, corrected)


def holm(p: np.ndarray) -> np.ndarray:
    """Corrected p-values of T tests, whose family-wise error is at most α (Holm 1979).

    Args:
        p: `(T,)`.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected
