"""Check training losses in groups, because reading a loss synchronises with the GPU."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

EVERY = 50  # steps between checks: the largest delay of an error, which still names the right step


class LossWatch:
    """Stores losses on their device until they are checked.

    >>> watch = LossWatch()
    >>> watch.note(torch.tensor(0.5), step=0)
    >>> watch.note(torch.tensor(float("nan")), step=1)
    >>> watch.first_bad()
    (1, nan)
    """

    def __init__(self) -> None:
        self._noted: list[tuple[int, Tensor]] = []

    @property
    def is_empty(self) -> bool:
        """Whether no loss was stored since the last check."""
        return not self._noted

    @property
    def is_due(self) -> bool:
        """Whether enough losses are stored for a check."""
        return len(self._noted) >= EVERY

    def note(self, loss: Tensor, step: int) -> None:
        """Store the loss of a step, a scalar."""
        self._noted.append((step, loss.detach()))

    def first_bad(self) -> tuple[int, float] | None:
        """Return the step and value of the first loss that is not finite, or None; discard the stored losses."""
        noted, self._noted = self._noted, []
        losses = torch.stack([loss.float() for _, loss in noted]).tolist() if noted else []
        steps = (step for step, _ in noted)
        return next(((s, loss) for s, loss in zip(steps, losses, strict=True) if not isfinite(loss)), None)
