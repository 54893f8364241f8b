"""A row of the benchmark, and the settings of its measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.measure import Timing, side_by_side


class Row(NamedTuple):
    """One comparison. Times are in seconds, memory is in bytes.

    Attributes:
        work: Description of the work.
        ours: Measurement of this package.
        peer: Name of the other library or variant.
        theirs: Measurement of the peer; None if it is not installed.
        target: Target of the ratio theirs / ours; None without one.
        note: Further remarks.
    """

    work: str
    ours: Timing
    peer: str
    theirs: Timing | None
    target: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Median of the peer divided by that of this package."""
        return None if self.theirs is None else self.theirs.median / self.ours.median


class Setting(NamedTuple):
    """Settings of the measurements.

    Attributes:
        device: Device of the measurements.
        repeats: Number of measurements of each function.
        seconds: Minimum duration of one measurement.
        short: Whether to skip long cases.
    """

    device: torch.device
    repeats: int
    seconds: float
    short: bool

    def compare(self, contestants: dict[str, Callable[[], object]]) -> dict[str, Timing]:
        """Time functions alternately."""
        return side_by_side(contestants, self.device, self.repeats, self.seconds)


def check_equal(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    """Check that two sides compute the same.

    Raises:
        RuntimeError: The two sides differ.
    """
    difference = float((ours - theirs).detach().abs().max())
    if difference > 1e-4 * float(ours.detach().abs().max()):
        raise RuntimeError(f"{what}: the two sides differ by {difference:.1e}")
