"""The analysis of variance of one task: seeds by test examples, without replication."""

from __future__ import annotations

import numpy as np


class MeanSquares:
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
