"""The analysis of variance of one task: seeds by test examples, without replication."""

from __future__ import annotations

import numpy as np


class MeanSquares:
    """The mean squares of the differences of one task with their degrees of freedom, and the centre of its interval.

    Args:
        differences: Differences between two methods by seed and test example, `(S, n)`.
        bounded: Whether to add two pseudo-examples (Agresti and Min 2005), for scores in [0, 1].
        classes: Class of each test example, `(n,)`, to estimate a variance for each class; None for a single variance.

    Attributes:
        count: Number of test examples, including pseudo-examples.
        centre: Mean difference, including pseudo-examples.
        seeds: Mean square between seeds $M_a$; NaN for one seed.
        examples: Mean square between test examples $M_b$; NaN for one example.
        residual: Residual mean square $M_e$; 0 if there are no degrees of freedom.
        df_examples: Degrees of freedom of `examples`.
        df_residual: Degrees of freedom of `residual`.
    """

    def __init__(self, differences: np.ndarray, bounded: bool, classes: np.ndarray | None) -> None:
        seeds, n = differences.shape
        self.count = n + 2 if bounded else n
        mean, seed_means = differences.mean(), differences.mean(1)
        self.centre = mean * n / self.count
        self.seeds = n * ((seed_means - mean) ** 2).sum() / (seeds - 1) if seeds > 1 else np.nan
        if classes is None:
            example_means = differences.mean(0)
            # The pseudo-examples are ½ of +1, ½ of −1 and 1 of 0: ½ (1 − c)² + ½ (1 + c)² + c² = 1 + 2 c².
            squares = ((example_means - self.centre) ** 2).sum() + bounded * (1 + 2 * self.centre**2)
            self.examples = seeds * squares / (self.count - 1) if n > 1 else np.nan
            self.df_examples = self.count - 1.0
            df = (seeds - 1) * (n - 1)
            self.residual = _residual(differences) / df if df else 0.0
            self.df_residual = (seeds - 1) * max(n - 1.0, 1)
        else:
            self._by_class(differences, classes)
        negligible = 1e-24 * (differences**2).mean()  # mean squares that are zero except for rounding errors
        self.examples, self.seeds, self.residual = (
            0.0 if m <= negligible else m for m in (self.examples, self.seeds, self.residual)
        )

    def _by_class(self, differences: np.ndarray, classes: np.ndarray) -> None:
        """Estimate a variance for each class.

        $M_b$ is the mean of the classes' mean squares weighted by their sizes, plus the mean square between classes;
        $M_e$ is the weighted mean alone.
        """
        seeds, n = differences.shape
        by_class = [differences[:, classes == c] for c in np.unique(classes)]
        sizes, means = np.array([d.shape[1] for d in by_class]), np.array([d.mean() for d in by_class])
        df = np.where(sizes > 1, sizes - 1, np.nan)  # a single example has no variance, so the task has no interval
        shares = sizes / n
        within = shares * [seeds * ((d.mean(0) - d.mean()) ** 2).sum() for d in by_class] / df
        between = seeds * (sizes * (means - differences.mean()) ** 2).sum() / max(n - 1, 1)
        self.examples, self.df_examples = _sum(np.append(within, between), np.append(df, max(n - 1, 1)))
        self.residual, self.df_residual = 0.0, 1.0
        if seeds > 1:
            rest = shares * [_residual(d) for d in by_class] / ((seeds - 1) * df)
            self.residual, self.df_residual = _sum(rest, (seeds - 1) * df)


def _residual(differences: np.ndarray) -> float:
    """The sum of squares of the residuals of additive seed and example effects."""
    rest = differences - differences.mean(1, keepdims=True) - differences.mean(0) + differences.mean()
    return float((rest**2).sum())


def _sum(parts: np.ndarray, df: np.ndarray) -> tuple[float, float]:
    """A sum of mean squares, and its degrees of freedom by Satterthwaite (1946)."""
    total = parts.sum()
    return float(total), float(total**2 / (parts**2 / df).sum()) if total > 0 else float(df.min())
