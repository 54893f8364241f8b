"""Which tasks have enough examples for their score to count in means over tasks."""

from __future__ import annotations

from collections.abc import Sequence

FEWEST_ROWS = 5
"""Fewest examples of a score that counts: of four, one example decides a quarter of the accuracy, and the variance in
the denominator of an R² may be off by a factor of two."""


def enough_rows(rows: Sequence[int]) -> list[bool]:
    """Whether the score of each task counts in means over tasks, by its number of examples in a split.

    It needs `FEWEST_ROWS` examples; if no task has so many, every task that has an example counts.
    """
    fewest = FEWEST_ROWS if any(n >= FEWEST_ROWS for n in rows) else 1
    return [n >= fewest for n in rows]
