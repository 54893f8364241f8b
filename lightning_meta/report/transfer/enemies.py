"""Why sharing hurts a task: interference, a generalisation gap, or a few tasks that dominate."""

from __future__ import annotations

import numpy as np

RULES = (
    "Of a task that is hurt: its training loss at the selected checkpoint (evaluation mode, a fixed subset) rose "
    "against the baseline in every seed: interference; fell in every seed: generalisation gap; else: unclear. "
    "Interference takes shared parameters, and a best validation before the last one on both sides in every seed; "
    "where it was the last, and the loss did not fall: not converged, train longer. "
    "'few tasks dominate' is added where the shares of the gradient (of the training loss where no gradient was "
    "recorded) have an effective number of tasks 1/Σ s² of at most (T + 1)/2, and the hurt task's own share is below "
    "1/T; the dominating tasks are the fewest that hold half of the total."
)


NOT_CONVERGED = "not converged: train longer"


def enemy(
    change_of_loss: np.ndarray, share: float, dominating: list[str], tasks: int, shares: bool, converged: bool | None
) -> str:
    """Name the cause if a task is hurt.

    Args:
        change_of_loss: `(S,)` training loss of the method − the baseline's, by seed.
        share: The task's share of the gradient, or of the loss.
        dominating: The tasks that dominate; none where none do.
        tasks: T.
        shares: Whether the method's tasks share parameters.
        converged: Whether both sides' best validation of the task came before the last; None where it is not known.

    Returns:
        "interference", "generalisation gap", "unclear", "nothing is shared" or `NOT_CONVERGED`, and where it applies
        ", few tasks dominate".
    """
    rose, fell = bool((change_of_loss > 0).all()), bool((change_of_loss < 0).all())
    if fell:
        name = "generalisation gap"
    elif converged is False:
        return NOT_CONVERGED
    elif not shares:
        return "nothing is shared"
    else:
        name = "interference" if rose and converged else "unclear"
    return f"{name}, few tasks dominate" if dominating and share < 1 / tasks else name


def shares(amounts: np.ndarray) -> np.ndarray:
    """Amounts by task as shares of their sum, `(T,)`; NaN where one is unknown or negative, or all are zero."""
    total = amounts.sum()
    return amounts / total if total > 0 and (amounts >= 0).all() else np.full(len(amounts), np.nan)


def dominating_tasks(share: np.ndarray) -> list[int]:
    r"""The few tasks that hold half of the total, where it is concentrated.

    Concentrated is an effective number of tasks (the inverse of Simpson's index, Hill 1973) of at most half way
    between one and all: $1 / \sum_i s_i^2 \le (T + 1) / 2$.

    Args:
        share: s, `(T,)`, adding up to 1.

    Returns:
        Their numbers, the largest share first; empty where the total is not concentrated or not known.
    """
    if len(share) < 2 or not np.isfinite(share).all() or 1 / (share**2).sum() > (len(share) + 1) / 2:
        return []
    order = np.argsort(-share, kind="stable")
    return [int(i) for i in order[: int(np.searchsorted(share[order].cumsum(), 0.5)) + 1]]
