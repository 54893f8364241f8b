"""Which validation of a run was the best."""

from __future__ import annotations

import math
from typing import Any

from lightning_meta.modes import Mode


class BestScore:
    """The best validation so far: by its score, of equal scores the one with the lower loss, else the earlier.

    NaN is never the best, nor is an infinite score at the bad end.

    Args:
        mode: Whether a good score is large ("max") or small ("min").

    Attributes:
        score: The best; None where there is none.
        loss: The loss of the same validation, infinite where none was logged.
        validations: How many there were, those without a usable score included.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.score: float | None = None
        self.loss, self.validations = math.inf, 0

    def take(self, score: float, loss: float = math.inf) -> bool:
        """Take a validation into account; whether it is the best.

        Args:
            score: By which validations are compared.
            loss: What decides between equal scores; NaN and infinity are the worst.
        """
        self.validations += 1
        loss = math.inf if math.isnan(loss) else loss
        if not self._better(score, loss):
            return False
        self.score, self.loss = score, loss
        return True

    def _better(self, score: float, loss: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        best = -math.inf if self.score is None else sign * self.score
        return sign * score > best or (sign * score == best > -math.inf and loss < self.loss)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"best_score": self.score, "best_loss": self.loss, "validations": self.validations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up again; checkpoints of earlier versions hold the score alone, which may be NaN."""
        score = state["best_score"]
        self.score = None if score is None or math.isnan(score) else score
        self.loss = state.get("best_loss", math.inf)
        self.validations = state.get("validations", 0 if score is None else 1)
