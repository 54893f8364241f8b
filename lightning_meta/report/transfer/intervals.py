"""How sure a difference between two methods is: intervals paired over seeds and test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

LEVEL = 0.95
METHOD = (
    "Metrics that are no means over examples (AUROC and others) enter by what each example adds to them (infinitesimal "
    "jackknife; of the AUROC that is DeLong's method), with a variance for each class of test examples: few of a class "
    "are few degrees of freedom, and where there is one the task has no interval. "
    "Two-way random-effects analysis of variance (seeds x test examples, no replication) of the paired differences, "
    "Satterthwaite degrees of freedom, t interval; the variance between seeds is moderated over tasks (empirical "
    "Bayes, Smyth 2004) and never taken below the task's own; for accuracy two pseudo-examples are added (Agresti and "
    "Min 2005). Verdicts: Holm's correction over the tasks of a method, at 5 %."
)


@dataclass(frozen=True)
class Intervals:
    """Vectors over T tasks.

    Attributes:
        delta: The mean difference.
        low: The lower end of the 95 % interval; NaN where there is nothing to estimate a variance from.
        high: The upper end.
        df: Degrees of freedom.
        p: The two-sided p-value of no difference, one test alone; 1 where there is no interval.
        p_holm: The same, corrected for T tests.
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
    tables = [_Table(*of) for of in zip(differences, bounded, classes, strict=True)]
    count = np.array([t.count for t in tables], dtype=float)
    between_examples, df_examples = (np.array([getattr(t, k) for t in tables]) for k in ("examples", "df_examples"))
    residual, df_residual = (np.array([getattr(t, k) for t in tables]) for k in ("residual", "df_residual"))
    with np.errstate(all="ignore"):
        terms = [(between_examples, df_examples)]
        largest = between_examples
        if seeds > 1:
            own = np.array([t.seeds for t in tables])
            sizes = np.array([d.shape[1] for d in differences])
            between_seeds, df_seeds = moderated(own, residual, sizes, seeds)
            terms += [(between_seeds, df_seeds), (residual, df_residual)]
            total = between_seeds + between_examples - residual
            largest = np.maximum.reduce([total, between_seeds, between_examples, residual])
        df = largest**2 / sum(m**2 / k for m, k in terms)
        if seeds > 1 and seeds * len(tables) == 2:
            df = np.ones_like(df)  # one variance from two numbers: Satterthwaite's approximation is too hopeful
        error = np.sqrt(largest / (seeds * count))
        known = (error > 0) & np.isfinite(error)
        centre = np.array([t.centre for t in tables])
        p = np.where(known, 2 * stdtr(df, -np.abs(centre) / error), 1.0)
        half = np.where(known, stdtrit(df, (1 + LEVEL) / 2) * error, np.nan)
    low, high = centre - half, centre + half
    clip = np.array(bounded, dtype=bool)
    low, high = np.where(clip, np.maximum(low, -1), low), np.where(clip, np.minimum(high, 1), high)
    delta = np.array([d.mean() for d in differences])
    return Intervals(delta, low, high, np.where(known, df, np.nan), p, holm(p))


def moderated(
    between_seeds: np.ndarray, residual: np.ndarray, sizes: np.ndarray, seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""Steady the mean squares between few seeds by those of all T tasks (Smyth 2004, equation 4).

    Were the variance between seeds the same share ρ of the residual variance in every task, then
    $G_i = (M_{a,i} / M_{e,i}) / (1 + n_i \rho)$ would follow one distribution, a scaled F with $d = S - 1$ and $d_0$
    degrees of freedom. ρ, $d_0$ and the scale $s_0^2$ are estimated by moments over tasks ($d_0$ infinite where tasks
    differ no more than chance makes them), and
    $M_a = \max(M_{a,i},\ M_e (1 + n \rho) (d_0 s_0^2 + d\, G_i) / (d_0 + d))$ has $\min(d_0 + d,\ T d)$ degrees of
    freedom. The maximum guards tasks whose seeds really differ more than most.

    Args:
        between_seeds: $M_{a,i}$, `(T,)`.
        residual: $M_{e,i}$, `(T,)`.
        sizes: $n_i$, `(T,)`.
        seeds: S, at least 2.

    Returns:
        The mean squares `(T,)` and their degrees of freedom `(T,)`.
    """
    d = seeds - 1
    usable = (residual > 0) & np.isfinite(between_seeds)
    mean_square, df = between_seeds.copy(), np.full(len(between_seeds), float(d))
    if usable.sum() < 2:
        return mean_square, df
    ratio, n = between_seeds[usable] / residual[usable], sizes[usable]
    growth = 1 + n * max(0.0, (ratio - 1).sum() / n.sum())
    scaled = ratio / growth
    mean = scaled.mean()
    spread = d * scaled.var(ddof=1) / mean**2 if mean > 0 else 0.0
    prior_df = (4 * spread + 2 * d - 4) / (spread - 2) if spread > 2 else 1e9
    prior = mean * (prior_df - 2) / prior_df
    shrunk = residual[usable] * growth * (prior_df * prior + d * scaled) / (prior_df + d)
    mean_square[usable] = np.maximum(between_seeds[usable], shrunk)
    df[usable] = min(prior_df + d, d * usable.sum())
    return mean_square, df


def holm(p: np.ndarray) -> np.ndarray:
    """Corrected p-values of T tests: below α with probability at most α where no null hypothesis is false (Holm 1979).

    Args:
        p: `(T,)`.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected


class _Table:
    """The mean squares of `(S, n)` differences with their degrees of freedom, and their mean with pseudo-examples."""

    def __init__(self, differences: np.ndarray, bounded: bool, classes: np.ndarray | None) -> None:
        seeds, n = differences.shape
        self.count = n + 2 if bounded else n
        mean, of_seed = differences.mean(), differences.mean(1)
        self.centre = mean * n / self.count
        self.seeds = n * ((of_seed - mean) ** 2).sum() / (seeds - 1) if seeds > 1 else np.nan
        if classes is None:
            of_example = differences.mean(0)
            squares = ((of_example - self.centre) ** 2).sum() + bounded * (1 + 2 * self.centre**2)
            self.examples = seeds * squares / (self.count - 1) if n > 1 else np.nan
            self.df_examples = self.count - 1.0
            free = (seeds - 1) * (n - 1)
            self.residual = _residual(differences) / free if free else 0.0
            self.df_residual = (seeds - 1) * max(n - 1.0, 1)
        else:
            self._by_class(differences, classes)
        negligible = 1e-24 * (differences**2).mean()  # what rounding makes of zero
        self.examples, self.seeds, self.residual = (
            0.0 if m <= negligible else m for m in (self.examples, self.seeds, self.residual)
        )

    def _by_class(self, differences: np.ndarray, classes: np.ndarray) -> None:
        seeds, n = differences.shape
        of = [differences[:, classes == c] for c in np.unique(classes)]
        sizes, means = np.array([d.shape[1] for d in of]), np.array([d.mean() for d in of])
        free = np.where(sizes > 1, sizes - 1, np.nan)  # of one example there is no variance
        shares = sizes / n
        within = shares * [seeds * ((d.mean(0) - d.mean()) ** 2).sum() for d in of] / free
        between = seeds * (sizes * (means - differences.mean()) ** 2).sum() / max(n - 1, 1)
        self.examples, self.df_examples = _sum(np.append(within, between), np.append(free, max(n - 1, 1)))
        self.residual, self.df_residual = 0.0, 1.0
        if seeds > 1:
            rest = shares * [_residual(d) for d in of] / ((seeds - 1) * free)
            self.residual, self.df_residual = _sum(rest, (seeds - 1) * free)


def _residual(differences: np.ndarray) -> float:
    """The sum of squares that neither seeds nor examples explain."""
    rest = differences - differences.mean(1, keepdims=True) - differences.mean(0) + differences.mean()
    return float((rest**2).sum())


def _sum(parts: np.ndarray, df: np.ndarray) -> tuple[float, float]:
    """A sum of mean squares, and Satterthwaite's degrees of freedom of it."""
    total = parts.sum()
    return float(total), float(total**2 / (parts**2 / df).sum()) if total > 0 else float(df.min())
