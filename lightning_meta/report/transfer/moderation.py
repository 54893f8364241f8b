"""What seeds do: to all tasks alike, and to each, where few seeds are steadied by the other tasks."""

from __future__ import annotations

import numpy as np


def without_common(means: np.ndarray) -> tuple[float, np.ndarray]:
    r"""Part what seeds do to all tasks alike from what they do to each.

    Args:
        means: By seed and task, `(S, T)`, in units of each task's noise.

    Returns:
        The variance of the mean over seeds of $c_s$, estimated by the mean over tasks, and by task the variance between
        seeds of the rest, `(T,)`.
    """
    seeds, tasks = means.shape
    common = means.mean(1)
    rest = means - means.mean(0) - (common - common.mean())[:, None]
    return float(common.var(ddof=1)) / seeds, (rest**2).sum(0) / (seeds - 1) * tasks / (tasks - 1)


def moderated(
    between_seeds: np.ndarray, residual: np.ndarray, sizes: np.ndarray, seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""Steady the mean squares between few seeds by those of all T tasks (Smyth 2004, equation 4).

    Were the variance between seeds the same share ρ of the residual variance in every task, then
    $G_i = (M_{a,i} / M_{e,i}) / (1 + n_i \rho)$ would follow one distribution, a scaled F with $d = S - 1$ and $d_0$
    degrees of freedom. ρ, $d_0$ and the scale $s_0^2$ are estimated by moments over tasks ($d_0$ infinite where tasks
    differ no more than chance makes them), and
    $M_a = \max(M_{a,i},\ M_e (1 + n \rho) (d_0 s_0^2 + d\, G_i) / (d_0 + d))$ has $\min(d_0 + d,\ (T - 1) d)$ degrees
    of freedom, as the common effect took d. The maximum guards tasks whose seeds really differ more than most.

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
    df[usable] = min(prior_df + d, d * (usable.sum() - 1))
    return mean_square, df
