"""Losses of training steps, which are looked at a few dozen at a time: on a GPU every look waits for the device."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

EVERY = 50  # steps from one look to the next; an error comes at most so many steps late, and names the right one


class LossWatch:
    """Notes losses without reading them.

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
        """Whether none was noted since the last look."""
        return not self._noted

    @property
    def is_due(self) -> bool:
        """Whether enough losses were noted for a look."""
        return len(self._noted) >= EVERY

    def note(self, loss: Tensor, step: int) -> None:
        """Keep the loss of a step, a scalar."""
        self._noted.append((step, loss.detach()))

    def first_bad(self) -> tuple[int, float] | None:
        """The step and the loss of the first that is not finite; those noted are forgotten."""
        noted, self._noted = self._noted, []
        losses = torch.stack([loss.float() for _, loss in noted]).tolist() if noted else []
        steps = (step for step, _ in noted)
        return next(((s, loss) for s, loss in zip(steps, losses, strict=True) if not isfinite(loss)), None)
