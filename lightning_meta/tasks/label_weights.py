"""Weights of the loss by class or label."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Literal

from lightning_meta.errors import UserError

Weights = Sequence[float] | Literal["balanced"] | None


def checked(option: str, weights: Weights, count: int) -> tuple[float, ...] | Literal["balanced"] | None:
    """Weights as a tuple, or what stands for them.

    Args:
        option: Its name, for the error.
        weights: What was given.
        count: How many are needed.

    Raises:
        UserError: They are not as many numbers from 0 on as are needed, some of them positive.
    """
    if weights is None or weights == "balanced":
        return weights
    numbers = all(isinstance(w, int | float) and isfinite(w) for w in weights)
    if isinstance(weights, str) or not numbers or len(weights) != count or not max(weights) > 0 or min(weights) < 0:
        raise UserError(f"{option}: expected 'balanced' or {count} numbers from 0 on, got {weights!r}")
    return tuple(map(float, weights))


def balanced_weights(shares: Sequence[float]) -> tuple[float, ...]:
    """scikit-learn's balanced weights, 1 / (C p_c) for the C classes that are there; 1 for the others.

    Args:
        shares: p_c, of each class in the training labels.
    """
    there = sum(share > 0 for share in shares)
    return tuple(1 / (there * share) if share > 0 else 1.0 for share in shares)
