"""Class and label weights of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Literal

from lightning_meta.errors import UserError

Weights = Sequence[float] | Literal["balanced"] | None


def checked(option: str, weights: Weights, count: int) -> tuple[float, ...] | Literal["balanced"] | None:
    """Validate weights; return numbers as a tuple, "balanced" and None unchanged.

    Args:
        option: Name of the option, for the error.
        weights: The weights to check.
        count: Required number of weights.

    Raises:
        UserError: The weights are not `count` finite numbers of at least 0, with at least one above 0.

    >>> checked("class_weight", [1, 2], count=2)
    (1.0, 2.0)
    """
    if weights is None or weights == "balanced":
        return weights
    numbers = all(isinstance(w, int | float) and isfinite(w) for w in weights)
    if isinstance(weights, str) or not numbers or len(weights) != count or not max(weights) > 0 or min(weights) < 0:
        raise UserError(f"{option}: expected 'balanced' or {count} numbers from 0 on, got {weights!r}")
    return tuple(map(float, weights))


def balanced_weights(shares: Sequence[float]) -> tuple[float, ...]:
    """Return the balanced weights of scikit-learn: 1 / (C p_c) for the C classes that occur; 1 for the others.

    Args:
        shares: Share p_c of each class in the training labels.

    >>> balanced_weights([0.25, 0.75, 0.0])
    (2.0, 0.6666666666666666, 1.0)
    """
    classes = sum(share > 0 for share in shares)
    return tuple(1 / (classes * share) if share > 0 else 1.0 for share in shares)
