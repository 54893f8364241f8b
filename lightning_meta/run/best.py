"""The best validation of a run."""

from __future__ import annotations

import math
from typing import Any

from lightning_meta.modes import Mode


class BestScore:
    """The best validation so far: ties in the score go to the lower loss, then to the earlier validation.

    NaN and the worst possible infinite score are never the best.

    Args:
        mode: "max" if larger scores are better, "min" if smaller ones are.

    Attributes:
        score: The best score; None if there is none yet.
        loss: Loss of the same validation; infinite if none was logged.
        validations: Number of validations, including those without a finite score.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.forget()

    def forget(self) -> None:
        """Reset to the state before the first validation."""
        self.score: float | None = None
        self.loss, self.validations = math.inf, 0

    def take(self, score: float, loss: float = math.inf) -> bool:
        """Add a validation, and return whether it is the best so far.

        Args:
            score: Score of the validation.
            loss: Loss of the validation, which breaks ties; NaN counts as infinity.
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
        """The state for a checkpoint."""
        return {"best_score": self.score, "best_loss": self.loss, "validations": self.validations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state; checkpoints of earlier versions only have the score, which may be NaN."""
        score = state["best_score"]
        self.score = None if score is None or math.isnan(score) else score
        self.loss = state.get("best_loss", math.inf)
        self.validations = state.get("validations", 0 if score is None else 1)
