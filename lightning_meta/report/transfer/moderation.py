"""Estimates of seed effects: of the effect on all tasks, and of the effect on each task, moderated by other tasks."""

from __future__ import annotations

import numpy as np


def without_common(means: np.ndarray) -> tuple[float, np.ndarray]:
    r"""Separate the effect $c_s$ of a seed on all tasks from its effects on single tasks.

    $c_s$ is estimated by the mean over tasks; the rest is $m_{s,i} - \bar m_i - (c_s - \bar c)$.

    Args:
        means: Mean differences m by seed and task, `(S, T)`, in units of each task's residual standard deviation.

    Returns:
        The estimated variance of the mean of $c_s$ over seeds, and for each task the variance of the rest between
        seeds, `(T,)`.
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

    Args:
        between_seeds: Mean squares between seeds $M_{a,i}$, `(T,)`.
        residual: Residual mean squares $M_{e,i}$, `(T,)`.
        sizes: Numbers $n_i$ of test examples, `(T,)`.
        seeds: Number S of seeds, at least 2.

    Returns:
        The moderated mean squares `(T,)` and their degrees of freedom `(T,)`. Tasks without a residual or a mean square
        keep their own; so do all tasks if fewer than two have both.
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
    shrunk = residual[usable] * growth * (prior_df * prior + d * scaled) / (prior_df + d)
    mean_square[usable] = np.maximum(between_seeds[usable], shrunk)
    df[usable] = min(prior_df + d, d * (usable.sum() - 1))
    return mean_square, df
