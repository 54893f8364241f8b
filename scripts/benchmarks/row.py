"""What one comparison is, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.measure import Timing, side_by_side


class Row(NamedTuple):
    """One comparison. `ours` and `theirs` are seconds, but for memory, which is in bytes.

    Attributes:
        work: What was done.
        ours: By this package.
        peer: By what else.
        theirs: Of the peer; None where it is not installed.
        target: What the ratio theirs / ours should reach; None where nothing was promised.
        note: What a reader should know.
    """

    work: str
    ours: Timing
    peer: str
    theirs: Timing | None
    target: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the peer takes what this package takes, by the medians."""
        return None if self.theirs is None else self.theirs.median / self.ours.median


class Setting(NamedTuple):
    """How to measure.

    Attributes:
        device: Where.
        repeats: Measurements of each contestant.
        seconds: What one measurement takes at least.
        short: Whether to leave out what takes long.
    """

    device: torch.device
    repeats: int
    seconds: float
    short: bool

    def compare(self, contestants: dict[str, Callable[[], object]]) -> dict[str, Timing]:
        """Time them in turn."""
        return side_by_side(contestants, self.device, self.repeats, self.seconds)


def check_equal(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    """Refuse to time two sides that do not do the same.

    Raises:
        RuntimeError: The largest difference.
    """
    apart = float((ours - theirs).detach().abs().max())
    if apart > 1e-4 * float(ours.detach().abs().max()):
        raise RuntimeError(f"{what}: the two sides differ by {apart:.1e}")
