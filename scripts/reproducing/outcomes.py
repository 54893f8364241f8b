"""Mean, interval and verdict of a figure over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from lightning_meta.meta.scores import mean_and_interval
from reproducing.records import Record
from reproducing.rows import Figure, Row

JUDGED_FROM = 3  # seeds
NOT_RUN = "not run"


@dataclass(frozen=True)
class Outcome:
    """A figure over its seeds.

    Attributes:
        row: The row.
        figure: The figure.
        records: One record per seed.
    """

    row: Row
    figure: Figure
    records: Sequence[Record]

    @property
    def values(self) -> list[float]:
        """The value of each seed; NaN if it is not finite."""
        return [float(record.value or "nan") for record in self.records]

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without seeds."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def half_width(self) -> float:
        """Half-width of the 95 % interval over seeds (t, S - 1 degrees of freedom), or over the tasks of one seed."""
        if len(self.values) == 1:
            return float(self.records[0].over_tasks or "nan")
        return mean_and_interval(torch.tensor(self.values, dtype=torch.float64))[1] if self.values else math.nan

    @property
    def interval(self) -> str:
        """The source of variation that the interval covers."""
        if len(self.values) != 1:
            return "seeds" if self.values else ""
        return "test tasks" if self.records[0].over_tasks else "none: one seed, named tasks"

    @property
    def verdict(self) -> str:
        """Whether the published figure was reached, or "not judged" with the reason."""
        if not self.records:
            return NOT_RUN
        if self.figure.published is None:
            return verdict(self.mean, self.half_width, self.figure)
        if self.row.shortened:
            return f"not judged (shortened: {self.row.shortened})"
        if not self.row.comparable:
            return "not judged (another protocol)"
        if len({record.data for record in self.records}) > 1:
            return "not judged (seeds differ in their data)"
        if len(self.records) < JUDGED_FROM:
            return f"not judged ({len(self.records)} of {JUDGED_FROM} seeds)"
        judged, commits = verdict(self.mean, self.half_width, self.figure), {r.revision for r in self.records}
        return judged if len(commits) == 1 else f"{judged} (seeds of {len(commits)} commits)"


def verdict(mean: float, half_width: float, figure: Figure) -> str:
    """Compare the interval over three or more seeds with the published figure or its interval.

    Args:
        mean: Mean over seeds.
        half_width: Half-width of the interval.
        figure: The figure with its published value.

    Returns:
        "within" if they overlap, "above" if the whole interval is better than published, "below" if it is worse or a
        seed is not finite. For errors, smaller is better, and "above" means smaller.
    """
    if figure.published is None:
        return "nothing published"
    if not math.isfinite(mean):
        return "below (not finite)"
    better = (mean - figure.published) * (1 if figure.better == "higher" else -1)
    if abs(better) <= half_width + (figure.half_width or 0.0) + 1e-9 * abs(figure.published):  # tolerance for rounding
        return "within"
    return "above" if better > 0 else "below"


def outcomes(rows: Iterable[Row], records: Iterable[Record]) -> list[Outcome]:
    """All figures of all rows, including those that were not run.

    Args:
        rows: Rows in the order of the table.
        records: All records; those of other versions of a row are ignored.
    """
    records = list(records)
    return [
        Outcome(
            row, figure, [r for r in records if (r.row, r.version, r.figure) == (row.name, row.version, figure.name)]
        )
        for row in rows
        for figure in row.figures
    ]
